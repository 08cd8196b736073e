"""What is wrong with TLS to a Redis that cannot be reached, and the mend."""

import socket
import ssl
from typing import Final

from redis.connection import ConnectionPool, SSLConnection

#: Seconds for a handshake with a server that has just closed a connection without TLS.
HANDSHAKE_SECONDS: Final = 2.0


def mend(pool: ConnectionPool, exc: BaseException) -> str:
    """What a user can do about an error of a connection of this pool; empty: it is not about TLS."""
    options, said = pool.connection_kwargs, f"{exc} {exc.__context__}"
    if "CERTIFICATE_VERIFY_FAILED" in said and "mismatch" in said:
        return "its certificate is for another host: write a name or address into REDIS_URL that it has"
    if "CERTIFICATE_VERIFY_FAILED" in said and "expired" in said:
        return "have its certificate renewed"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "put the file of its authority into REDIS_URL, rediss://host:port/1?ssl_ca_certs=FILE"
    if not issubclass(pool.connection_class, SSLConnection):
        is_closed = isinstance(exc.__context__, ConnectionResetError) or "closed by server" in said
        speaks_tls = is_closed and _speaks_tls(options.get("host", "localhost"), options.get("port", 6379))
        return "it speaks TLS: write rediss:// in REDIS_URL" if speaks_tls else ""
    if isinstance(exc.__context__, FileNotFoundError):
        return f"REDIS_URL names a file that is not there, {options.get('ssl_ca_certs')}"
    return "it may not speak TLS: write redis:// in REDIS_URL" if "handshake operation timed out" in said else ""


def _speaks_tls(host: str, port: int) -> bool:
    """Whether a server answers a handshake; nothing is sent to it, so its certificate is not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), HANDSHAKE_SECONDS) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as exc:
        # It wants a certificate of ours, for instance.
        return "ALERT" in str(exc)
    except OSError:
        return False
