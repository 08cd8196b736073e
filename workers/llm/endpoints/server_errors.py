"""What an endpoint's errors mean, whatever was asked: an error of ours that names the place and shows no key."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import aiohttp

from tasks.errors import (
    BadRequestError,
    EndpointAwayError,
    EndpointDownError,
    EndpointRefusedError,
    NoCapacityError,
    RateLimitedError,
    RejectedAnswerError,
    ThemesError,
)
from tasks.redis_url import masked
from workers.llm.endpoints.error_body import ErrorBody
from workers.llm.endpoints.faults import PLACE, Fault, Rule, fault_of
from workers.llm.limits.headers import exhausted_seconds, retry_after_seconds, words_seconds

#: What a request can end with instead of an answer; a time-out is an `OSError`.
NETWORK_ERRORS: Final = (aiohttp.ClientError, OSError)
#: Characters of a secret that is searched for in what a server says.
SHORTEST_SECRET: Final = 8

#: What a fault is raised as, where nothing more than the fault decides.
_ERRORS: Final[Mapping[Fault, type[ThemesError]]] = {
    Fault.ACCOUNT: EndpointRefusedError,
    Fault.ANSWER: RejectedAnswerError,
    Fault.AWAY: EndpointAwayError,
    Fault.ENDPOINT: EndpointDownError,
}
#: What a fault of a prompt's own is where there is no prompt.
_WITHOUT_PROMPT: Final = {Fault.CAPACITY: Fault.RATE, Fault.ANSWER: Fault.PROMPT}


class ServerErrors:
    """Of one server. `timeout_seconds` is how long one of its requests may take."""

    def __init__(self, base_url: str, secrets: Sequence[str], timeout_seconds: float) -> None:
        #: The server as errors and logs show it.
        self.place = masked(base_url)
        self._secrets = secrets
        self._timeout_seconds = timeout_seconds

    def of_network(self, exc: aiohttp.ClientError | OSError) -> ThemesError:
        if isinstance(exc, aiohttp.ClientConnectorCertificateError):
            problem = getattr(exc.certificate_error, "verify_message", "") or exc.certificate_error
            return EndpointRefusedError(
                f"{self.place}: its certificate is not trusted ({problem}): name the file of its "
                "authority with llm.ca_file or SSL_CERT_FILE"
            )
        if isinstance(exc, aiohttp.ClientConnectorSSLError):
            return self._tls_error(exc)
        if isinstance(exc, aiohttp.ClientConnectorError):
            return EndpointAwayError(f"{self.place}: cannot connect ({exc.strerror or exc})", is_unreachable=True)
        if isinstance(exc, TimeoutError):
            return EndpointAwayError(f"{self.place}: no answer within {self._timeout_seconds:g} s")
        return EndpointAwayError(f"{self.place}: connection lost ({type(exc).__name__}: {exc})")

    def _tls_error(self, exc: aiohttp.ClientConnectorSSLError) -> ThemesError:
        """A server that speaks no TLS has a wrong address; another fault of the handshake may pass."""
        if "WRONG_VERSION_NUMBER" in str(exc) or "HTTP_REQUEST" in str(exc):
            return EndpointRefusedError(f"{self.place}: does not speak TLS: {PLACE} (http:// instead of https://?)")
        return EndpointAwayError(f"{self.place}: cannot connect ({exc})", is_unreachable=True)

    def of(self, status: int, headers: Mapping[str, str], error: ErrorBody) -> ThemesError:
        """What an error means in reply to a request that has no prompt, so that there is nothing to ask differently."""
        rule = fault_of(status, error)
        rule = replace(rule, fault=_WITHOUT_PROMPT.get(rule.fault, rule.fault))
        return self.of_rule(rule, self.said(status, error, rule), headers, error)

    def of_rule(self, rule: Rule, said: str, headers: Mapping[str, str], error: ErrorBody) -> ThemesError:
        """The error of a rule (`workers.llm.endpoints.faults`) that fits."""
        if rule.fault in {Fault.RATE, Fault.CAPACITY}:
            kind = RateLimitedError if rule.fault is Fault.RATE else NoCapacityError
            return kind(said, retry_after_seconds=self.wait_seconds(headers, error))
        return _ERRORS.get(rule.fault, BadRequestError)(said)

    def said(self, status: int, error: ErrorBody, rule: Rule) -> str:
        """An error for people: the place, the status, the server's words and a hint."""
        said = f"{self.place}: {status} {self.without_secret(error.message)}"
        return f"{said} ({rule.hint})" if rule.hint else said

    def wait_seconds(self, headers: Mapping[str, str], error: ErrorBody) -> float | None:
        """When the server wants to be asked again, as its headers or its words say; None where they do not."""
        asked = retry_after_seconds(headers, now=time.time(), endpoint=self.place)
        asked = exhausted_seconds(headers, endpoint=self.place) if asked is None else asked
        return words_seconds(error.words) if asked is None else asked

    def without_secret(self, said: str) -> str:
        """What a server says, without our keys: some repeat them when they refuse them."""
        for secret in self._secrets:
            # A short value stands in other words too.
            said = said.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else said
        return said
