"""Traces of the real service, on each engine: one start is one trace, from the request to the worker's job."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests import backends, ports, waiting
from tests.e2e.conftest import APP, World

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["POST", "decide start", "process command.start-capture", "execute capture", "decide capture-started"]


@dataclass
class Collector:
    """A collector of OTLP on loopback: (name, span, parent) of each span, by trace."""

    url: str = ""
    spans: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    text: str = ""

    async def take(self, request: web.Request) -> web.Response:
        """Take a batch."""
        sent = trace_service_pb2.ExportTraceServiceRequest.FromString(await request.read())
        self.text += str(sent)
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    told = (span.name, span.span_id.hex(), span.parent_span_id.hex())
                    self.spans.setdefault(span.trace_id.hex(), []).append(told)
        return web.Response(body=trace_service_pb2.ExportTraceServiceResponse().SerializeToString())


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    application = web.Application()
    application.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(application)
    await runner.setup()
    port = ports.free()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    made.url = f"http://127.0.0.1:{port}"
    yield made
    await runner.cleanup()


async def test_one_start_is_one_trace(world: World, collector: Collector) -> None:
    """The caller's trace has the request, its decision, the command on the bus, the worker's job and the decision of its outcome,
    each below the one before."""
    service = await world.serve(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100")
    room = world.simulator.create_room(APP, 7401)
    await room.join("alice")
    body = world.request(7401, Mode="00", SubscribeUserIds=["alice"])
    called = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    async with aiohttp.ClientSession(headers=called) as http, http.post(f"{service.url}/sessions", json=body) as response:
        task_id = json.loads(await response.text())["TaskId"]
    await waiting.until(lambda: _decided(collector), 30, "the outcome of the capture in the trace")
    await room.dismiss()
    await service.finished(task_id)
    # A job ends long after its first outcome, and only then its span is sent.
    await waiting.until(lambda: set(STAGES) <= {name for name, _, _ in collector.spans[TRACE]}, 30, "all spans of the start")
    spans = {name: (span, parent) for name, span, parent in reversed(collector.spans[TRACE])}
    by_id = {span: parent for _, span, parent in collector.spans[TRACE]}
    assert spans["POST"][1] == SPAN
    for above, below in itertools.pairwise(STAGES):
        assert spans[above][0] in ancestors(by_id, spans[below][0]), (above, below)
    published = world.engine == backends.DISTRIBUTED
    assert ("publish command" in spans) == published
    assert "AKIDexample" not in collector.text
    assert "secret-key-example" not in collector.text


def ancestors(by_id: dict[str, str], span: str) -> list[str]:
    """The spans above one, nearest first."""
    found = []
    while span in by_id:
        span = by_id[span]
        found.append(span)
    return found


async def _decided(collector: Collector) -> bool:
    return any(name == "decide capture-started" for name, _, _ in collector.spans.get(TRACE, ()))
