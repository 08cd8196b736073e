"""Traces of OpenTelemetry, from `enqueue` through Celery to the commit.

    enqueue -> process_chunk -> destination -> stage -> llm.call
                                     `-> publish -> commit (in the consumer)

Off unless `profiling.enable_traces`; then a span costs one look at a global. OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME) configure the exporter. A trace travels as W3C
`traceparent` in the headers of Celery messages, a job's options and its results. Spans carry ids, names of stages and
models, and counts; no prompts, answers, keys.
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

from config.errors import ConfigError
from config.settings import Settings

#: The header, and the field of a result, in which a trace travels.
TRACEPARENT: Final = "traceparent"

_NOTHING: Final = contextlib.nullcontext()
_KINDS: Final = {"internal": 0, "server": 1, "client": 2, "producer": 3, "consumer": 4}


class _State:
    """This process's tracer, once `start` has made one."""

    tracer: Any = None
    provider: Any = None
    propagator: Any = None


def start(settings: Settings, role: str) -> None:
    """Trace from now on, where the settings say so; a second time changes nothing.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if not settings.profiling.enable_traces or _State.tracer is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as exc:
        raise ConfigError(
            f"profiling.enable_traces ({settings.origin('profiling.enable_traces')}): OpenTelemetry is not installed: "
            "scripts/setup --extra otel, or turn it off"
        ) from exc
    about: dict[str, str | int] = {"themes.role": role, "host.name": socket.gethostname(), "process.pid": os.getpid()}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = "themes"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=True)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _State.provider, _State.propagator = provider, TraceContextTextMapPropagator()
    _State.tracer = provider.get_tracer("themes")


def stop() -> None:
    """Send what is left, within the exporter's own time-out, and trace no more."""
    if _State.provider is not None:
        _State.provider.shutdown()
    _State.tracer = _State.provider = _State.propagator = None


def span(name: str, kind: str = "internal", *, parent: str = "", **attributes: Any) -> AbstractContextManager[Any]:
    """Trace the body, within what is traced around it, or within the `parent` from elsewhere (a `traceparent`).

    The context is the span, or None where nothing is traced. An error that ends the body marks the span with its class.
    """
    if _State.tracer is None:
        return _NOTHING
    return _span(name, kind, parent, attributes)


@contextlib.contextmanager
def _span(name: str, kind: str, parent: str, attributes: dict[str, Any]) -> Iterator[Any]:
    from opentelemetry.trace import SpanKind, Status, StatusCode

    with _State.tracer.start_as_current_span(
        name,
        context=_context(parent) if parent else None,
        kind=SpanKind(_KINDS[kind]),
        attributes=_known(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as exc:
            # The message may quote an answer: the class is enough.
            current.set_status(Status(StatusCode.ERROR, type(exc).__name__))
            current.set_attribute("error.type", type(exc).__name__)
            raise


def note(current: Any, **attributes: Any) -> None:
    """Add to a span what was found out meanwhile; nothing where nothing is traced."""
    if current is not None:
        current.set_attributes(_known(attributes))


def traceparent() -> str:
    """What is traced here, as others are told it; empty where nothing is."""
    if _State.tracer is None:
        return ""
    carrier: dict[str, str] = {}
    _State.propagator.inject(carrier)
    return carrier.get(TRACEPARENT, "")


def headers() -> dict[str, str] | None:
    """The headers of a message that goes on with what is traced here; None where nothing is."""
    told = traceparent()
    return {TRACEPARENT: told} if told else None


def done(name: str, parents: Iterable[str], began_ns: int, ended_ns: int, **attributes: Any) -> None:
    """Add a span that has ended to each of these traces, as of one batch for many; times are of `time.time_ns`."""
    if _State.tracer is None:
        return
    from opentelemetry.trace import SpanKind

    for parent in parents:
        if parent:
            one = _State.tracer.start_span(
                name,
                context=_context(parent),
                kind=SpanKind.CONSUMER,
                start_time=began_ns,
                attributes=_known(attributes),
            )
            one.end(end_time=ended_ns)


def _context(parent: str) -> Any:
    return _State.propagator.extract({TRACEPARENT: parent})


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes under their full names (`job_id` is `themes.job_id`, `gen_ai__x` is `gen_ai.x`)."""
    # What is not known is left out.
    return {
        name.replace("__", ".") if "__" in name else f"themes.{name}": value
        for name, value in attributes.items()
        if value is not None
    }
