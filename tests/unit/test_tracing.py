"""Traces: when they are on, what a message carries, and what a span says about an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from assembly import tracing as assembled
from events import codec
from machine import tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
STOP = {"TaskId": "01JBX5Q9V7T3M8K2C4D6F8H0ZW"}


@pytest.fixture
def spans() -> Iterator[Any]:
    """An exporter of OpenTelemetry that keeps the spans that end."""
    from opentelemetry.sdk import trace
    from opentelemetry.sdk.trace import export
    from opentelemetry.sdk.trace.export import in_memory_span_exporter

    provider = trace.TracerProvider(shutdown_on_exit=False)
    exporter = in_memory_span_exporter.InMemorySpanExporter()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    tracing.use(*assembled._by(provider))
    yield exporter
    tracing.use(None, None)


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_environment_decides(environment: dict[str, str], on: bool) -> None:
    """Traces are on if the standard variables name a collector and do not switch them off."""
    assert assembled.configured(environment) is on


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_missing_packages_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A configured service without the packages says what to install, and goes on."""
    monkeypatch.setitem(sys.modules, missing, None)
    with structlog.testing.capture_logs() as lines:
        assert assembled.start(ENDPOINT, "node") is None
    assert [(line["event"], line["reason"]) for line in lines] == [("tracing.off", assembled.INSTALL)]
    assert "opentelemetry-sdk" in assembled.INSTALL


def test_another_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol that the service does not speak is reported with the variable to set."""
    with structlog.testing.capture_logs() as lines:
        assert assembled.start(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "node") is None
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in lines[0]["reason"]


def test_without_tracing_a_parent_is_passed_on() -> None:
    """A span of a node without tracing is its parent, so that the next node continues the trace."""
    with tracing.span("decide start", parent=PARENT) as here:
        assert here == PARENT


def test_a_span_follows_the_message_that_brought_it(spans: Any) -> None:
    """The parent of a message counts where the task has no span, and the task's own span otherwise."""
    with tracing.span("outer", "consumer", PARENT) as outer, tracing.span("inner", parent=PARENT):
        assert outer.split("-")[1] == PARENT.split("-")[1]
    inner, first = spans.get_finished_spans()
    assert (f"{first.parent.span_id:016x}", inner.parent.span_id) == (PARENT.split("-")[2], first.context.span_id)


def test_a_span_names_an_error_without_its_text(spans: Any) -> None:
    """The type of an error is in its span; its text, which may hold an address with secrets, is not."""
    with pytest.raises(ValueError, match="PLANTED"), tracing.span("execute callback"):
        raise ValueError("https://receiver.example/?token=PLANTED")
    (span,) = spans.get_finished_spans()
    assert (span.status.is_ok, span.status.description, span.events) == (False, "ValueError", ())
    assert "PLANTED" not in span.to_json()


def test_a_message_carries_its_parent() -> None:
    """The attribute survives encoding; without one there is none, and a malformed one is ignored."""
    event = codec.make("stop", id="one", time_ms=1, data=STOP, traceparent=PARENT)
    assert codec.decode(codec.encode(event), now_ms=0).traceparent == PARENT
    assert b"traceparent" not in codec.encode(codec.make("stop", id="one", time_ms=1, data=STOP))
    for wrong in ("", "00-0-0-01", PARENT.upper(), PARENT + "x", f"00-{'0' * 32}-00f067aa0ba902b7-01"):
        told = codec.encode(codec.make("stop", id="one", time_ms=1, data=STOP, traceparent=wrong))
        assert codec.decode(told, now_ms=0).traceparent == ""
    assert codec.traceparent({"traceparent": 7}) == ""
