"""OpenTelemetry traces, by flag: one span for each prediction request on either wire, sent over OTLP/HTTP.

isthmus serve … --otlp_endpoint=http://collector:4318

A W3C `traceparent` of the client (an HTTP header or gRPC metadata) becomes the span's parent. Spans are sent by a
thread of their own; a collector that is gone costs spans, never a request. Without the flag nothing of
OpenTelemetry is imported, and `annotate` is a look at a context variable.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from isthmus.serving.errors import ServingError
from isthmus.serving.status import Code

__all__ = ["Tracing", "annotate"]

_EXPORT_TIMEOUT_S = 3
_FLUSH_TIMEOUT_MS = 3000
_PREFIX = "isthmus."

_span: ContextVar[Any] = ContextVar("span", default=None)


def annotate(**facts: str | int) -> None:
    """Write attributes (isthmus.<name>) on the span of the request that is being answered, if there is one."""
    span = _span.get()
    if span is not None:
        for name, value in facts.items():
            span.set_attribute(_PREFIX + name, value)


class Tracing:
    """Makes spans and sends them.

    Args:
        endpoint: the collector's base address; spans go to <endpoint>/v1/traces.
        sampling_rate: share of the requests without a traced parent that get a span, 0 to 1.

    Raises:
        ServingError: the endpoint is no http(s) address, the rate is no share, or OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, sampling_rate: float) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ServingError(
                f"--otlp_endpoint={endpoint}: give the collector's address, such as http://localhost:4318"
            )
        if not 0.0 <= sampling_rate <= 1.0:
            raise ServingError(f"--otlp_sampling_rate must lie between 0 and 1; got {sampling_rate:g}")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ServingError(
                f"--otlp_endpoint needs {error.name}: pip install 'isthmus[serving]'"
            ) from error
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sampling_rate)),
            resource=Resource.create({"service.name": "isthmus-serving"}),
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("isthmus.serving")
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> Iterator["Request"]:
        """The span around one request; `annotate` below it writes on it."""
        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(name, parent, self._kind, attributes, start_time=time.time_ns())
        token = _span.set(span)
        try:
            yield Request(span)
        finally:
            _span.reset(token)
            span.end()

    def stop(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)
        self._provider.shutdown()


class Request:
    """The span of one request."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def done(self, code: Code, **attributes: str | int) -> None:
        """How it ended. Only what is the server's fault marks the span as an error."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute(_PREFIX + "status", code.name)
        for name, value in attributes.items():
            self._span.set_attribute(name, value)
        if code in (Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            self._span.set_status(StatusCode.ERROR)
