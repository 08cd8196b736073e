"""What a URL of Redis says, and what of it may be shown."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from config.values import Secret
from tasks.errors import ConfigError

#: Parameters of a URL whose values are secret.
_HIDDEN_PARAMETERS: Final = "(?:sentinel_)?password|(?:api|access)?[-_]?key|(?:access_)?token|secret|sig|code"
#: What a URL may hide, and what is shown instead.
_SECRETS: Final = (
    (re.compile(r"(://[^:@/]*):.*@", re.DOTALL), r"\1:***@"),
    # No host in sight: what stands where a port should may be the password. A list of host:port is none.
    (re.compile(r"(://(?![^/]*@)[^:@/?#\[]*):(?!\d*(?:,[^:@/?#\[]+:\d+)*(?:[/?#]|$))[^/]*"), r"\1:***"),
    (re.compile(rf"([?&](?:{_HIDDEN_PARAMETERS})=)[^&#]*", re.IGNORECASE), r"\1***"),
)
#: How Celery spells what redis-py calls none, optional and required.
_CERT_REQS: Final = re.compile(r"([?&]ssl_cert_reqs=)CERT_(NONE|OPTIONAL|REQUIRED)(?=&|#|$)", re.IGNORECASE)
#: `sentinel` as Celery has it, the others as Lettuce and asynq.
_SENTINEL: Final = re.compile(
    r"(?:sentinel|redis(?P<tls>s?)-sentinel)://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
#: Celery's list of sentinels is one of whole URLs.
_NEXT_URL: Final = re.compile(r";(?=(?:sentinel|rediss?-sentinel)://)")
_SENTINEL_PORT: Final = 26_379
_EXPECTED: Final = "redis://[:password@]host:port/db (or rediss://, or sentinel://)"
_EXPECTED_SENTINEL: Final = "sentinel://[:password@]host:port,host:port/db?master=NAME (or rediss-sentinel://)"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that was understood. Where sentinels know the master, `text` leads to the first of them."""

    #: As redis-py reads it, and Celery.
    text: Secret
    sentinels: tuple[tuple[str, int], ...] = ()
    #: The name that the sentinels know the master by.
    master: str = ""
    #: User and password that the sentinels themselves ask for, where they do.
    sentinel_login: tuple[str | None, str | None] = (None, None)


def masked(url: str) -> str:
    """A URL without its password, however malformed it is: people forget to encode a `/` or an `@` in it."""
    for secret, replacement in _SECRETS:
        url = secret.sub(replacement, url)
    return url


def secret_values(query: str) -> list[str]:
    return [value for name, value in parse_qsl(query) if re.fullmatch(_HIDDEN_PARAMETERS, name, re.IGNORECASE)]


def parsed(url: str) -> RedisUrl:
    """What a URL says.

    Raises:
        ConfigError: it is malformed. What redis-py would misread in silence is (`/abc` as database 0), and what it
            would report with the password in it.
    """
    if _SENTINEL.match(url):
        return _of_sentinels(url)
    if not url.startswith(("redis://", "rediss://")):
        # A unix socket has another URL in Celery, so one setting cannot name it for both.
        raise ConfigError(f"redis_url: expected {_EXPECTED}, got {masked(url)!r}")
    path = _path_of(url)
    if path is None:
        raise _invalid(url, _EXPECTED)
    if not re.fullmatch(r"/?[0-9]{0,5}", path):
        raise ConfigError(f"redis_url: {masked(url)!r} is not valid: its database must be a number, as in {_EXPECTED}")
    # Celery takes both spellings of TLS options.
    return RedisUrl(Secret(_CERT_REQS.sub(lambda match: match[1] + match[2].lower(), url)))


def _of_sentinels(url: str) -> RedisUrl:
    parts = [_SENTINEL.fullmatch(part) for part in _NEXT_URL.split(url)]
    found = [part for part in parts if part]
    if len(found) < len(parts):
        raise _invalid(url, _EXPECTED_SENTINEL)
    sentinels = tuple(_address(host, url) for part in found for host in part["hosts"].split(","))
    # Of whole URLs in a list, the first that says it.
    login, path = (next((part[name] for part in found if part[name]), "") for name in ("login", "path"))
    if re.search("@.*,", login):
        # A login of each host would take all hosts but the last for a part of it.
        raise _invalid(url, _EXPECTED_SENTINEL)
    options = dict(parse_qsl("&".join(part["query"] for part in found if part["query"])))
    master = options.pop("master", "")
    user, password = (options.pop(f"sentinel_{name}", None) for name in ("username", "password"))
    if not master:
        raise ConfigError(
            f"redis_url: {masked(url)!r} names no master: end it in ?master=NAME, the name in `sentinel monitor NAME`"
        )
    host, port = sentinels[0]
    place = f"{login}@" * bool(login) + (f"[{host}]" if ":" in host else host)
    query = f"?{urlencode(options)}" if options else ""
    text = parsed(f"redis{found[0]['tls'] or ''}://{place}:{port}{path}{query}").text
    return RedisUrl(Secret(text), sentinels, master, (user, password and Secret(password)))


def _address(host: str, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{host}")
        port = _SENTINEL_PORT if parts.port is None else parts.port
    except ValueError:
        # Outside of the handler: what was caught quotes the URL, and would be chained.
        port = 0
    if not port or not parts.hostname:
        raise _invalid(url, _EXPECTED_SENTINEL)
    return parts.hostname, port


def _invalid(url: str, expected: str) -> ConfigError:
    # Without the reason in the library's words, which quote a piece of the password and nothing chained that does.
    return ConfigError(
        f"redis_url: {masked(url)!r} is not valid: expected {expected}; in a password, write / ? # @ : % as "
        "%2F %3F %23 %40 %3A %25"
    )


def _path_of(url: str) -> str | None:
    """The path of a URL whose host and port can be read; None otherwise."""
    try:
        parts = urlsplit(url)
        return parts.path if parts.port != 0 else None
    except ValueError:
        return None
