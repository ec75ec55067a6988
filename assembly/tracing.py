"""Traces by OpenTelemetry: off unless its own environment variables name a collector.

Rule: tracing is no condition of recording. If the packages are missing or the protocol is another one, the service says so in one
line of its log, and goes on.
Source: the environment variables of OpenTelemetry's specification. Its SDK reads the other ones itself, from the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import structlog

from assembly.identity import VERSION
from machine import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
INSTALL = f"Install opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http next to the service, or unset {ENDPOINTS[0]}."


def configured(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a collector and does not switch traces off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("", "otlp"):
        return False
    return any(environment.get(name, "").strip() for name in ENDPOINTS)


def start(environment: Mapping[str, str], node: str) -> Callable[[], None] | None:
    """Trace if the environment says so; returns how to end it, which sends what waits. Blocking for some seconds at most."""
    if not configured(environment):
        return None
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        log.warning("tracing.off", reason=f"Traces are sent by {PROTOCOL} only: set {PROTOCOLS[1]}={PROTOCOL}.")
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter
        from opentelemetry.sdk import resources
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.trace import export
    except ImportError:
        log.warning("tracing.off", reason=INSTALL)
        return None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
    resource = resources.Resource({"service.name": "recorder", "service.version": VERSION, "service.instance.id": node})
    provider = sdk.TracerProvider(resource=resource.merge(resources.OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(export.BatchSpanProcessor(trace_exporter.OTLPSpanExporter()))
    tracing.use(*_by(provider))
    log.info("tracing.on", node=node)

    def end() -> None:
        tracing.use(None, None)
        provider.shutdown()

    return end


def _by(provider: TracerProvider) -> tuple[tracing.Make, tracing.Note]:
    """The functions of machine.tracing, by a provider of the SDK."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation import tracecontext

    tracer, propagator = provider.get_tracer("recorder", VERSION), tracecontext.TraceContextTextMapPropagator()
    kinds = {kind.name.lower(): kind for kind in trace.SpanKind}

    @contextlib.contextmanager
    def make(name: str, kind: str, parent: str, attributes: dict[str, tracing.Value]) -> Iterator[str]:
        outer = None
        if parent and not trace.get_current_span().get_span_context().is_valid:
            outer = propagator.extract({"traceparent": parent})
        # Only the kind of an error: its text may hold an address with secrets.
        begun = tracer.start_as_current_span(
            name, outer, kinds[kind], attributes, record_exception=False, set_status_on_exception=False
        )
        with begun as span:
            carrier: dict[str, str] = {}
            propagator.inject(carrier)
            try:
                yield carrier.get("traceparent", parent)
            except BaseException as error:
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def note(attributes: dict[str, tracing.Value]) -> None:
        trace.get_current_span().set_attributes(attributes)

    return make, note
