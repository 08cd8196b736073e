"""TLS before a Redis that speaks none: certificates of openssl, handshakes of Python's own library."""

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

BYTES = 1 << 16


def certificate(folder: Path, name: str, address: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """The files of a certificate that signs itself, for an address, and of its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={address}"]
    subprocess.run([*made, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def front(upstream: int, certificate: Path, key: Path) -> Iterator[int]:
    """Take TLS on a port of 127.0.0.1, which is given, and pass on what is in it to the port `upstream`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # handshakes that fail are what is tested
    thread = threading.Thread(target=loop.run_forever, name="tls")
    thread.start()

    async def serve() -> asyncio.Server:
        async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            theirs, ours = await asyncio.open_connection("127.0.0.1", upstream)
            await asyncio.gather(_copied(reader, ours), _copied(theirs, writer))

        return await asyncio.start_server(passed_on, "127.0.0.1", 0, ssl=context)

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(180)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(_ended(server), loop).result(180)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(180)
        loop.close()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(BYTES):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()


async def _ended(server: asyncio.Server) -> None:
    server.close()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for _ in range(10):
        await asyncio.sleep(0)  # what was aborted is closed in the next rounds of the loop
