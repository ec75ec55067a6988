"""Nodes over HTTP and with `recorder nodes`: list, cordon, drain, uncordon, and who may."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator

import pytest

from assembly import operations
from config import settings
from machine import model, nodes
from store import store as stores
from tests import cli_runner, engines
from tests.integration import api_service
from tests.integration.api_service import Service

MASTER = "master-token"
SPARE = model.SpareCapacity(free_bytes=9 << 30, needed_bytes=1 << 30)


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,)) as running:
        yield running


async def beat(store: stores.Store, *names: str) -> None:
    """Heartbeats of workers with these names."""
    for name in names:
        about = {"host": f"host-{name}", "address": f"http://{name}:8080", "version": "0.1.0", "started_ms": 1}
        slots = {"capture": (0, 20)}
        await store.nodes.heartbeat(
            name, spare=SPARE, skew_ms=-3, report=nodes.NodeReport(**about, roles=("worker",), slots=slots)
        )


async def test_a_node_is_drained_over_http(service: Service) -> None:
    """The list has what nodes report. A cordon and a drain answer with the node's new state; a worker without another one is not
    drained, and an unknown name is not found."""
    await beat(service.store, "w1")
    status, answer = await service.ask("POST", "/nodes/w1/drain")
    assert (status, answer["Code"]) == (409, "FailedOperation")
    await beat(service.store, "w2")
    for action, state in (("cordon", "cordoned"), ("drain", "drained"), ("uncordon", "active"), ("cordon", "cordoned")):
        status, answer = await service.ask("POST", f"/nodes/w1/{action}")
        assert (status, answer["State"]) == (200, state), answer
    assert (await service.ask("POST", "/nodes/w%2F1/cordon"))[0] == 404
    assert (await service.ask("POST", "/nodes/w3/cordon"))[0] == 404
    status, answer = await service.ask("GET", "/nodes")
    first, second = answer["Nodes"]
    assert (first["Node"], first["Cordon"], second["State"]) == ("w1", "cordoned", "active")
    assert (first["Host"], first["Slots"], first["FreeBytes"]) == ("host-w1", {"capture": {"Used": 0, "Limit": 20}}, 9 << 30)
    assert (first["Roles"], first["ClockAheadMs"], first["Started"]) == (["worker"], -3, "1970-01-01T00:00:00.001Z")


async def test_only_a_key_that_operates_cordons(service: Service) -> None:
    """A key that reads sees the nodes; its forged cordon and drain get 403, and the node stays as it is."""
    await beat(service.store, "w1", "w2")
    _, text = await service.key("read", "start")
    reads = {"Authorization": f"Bearer {text}"}
    assert (await service.ask("GET", "/nodes", headers=reads))[0] == 200
    for action in ("cordon", "drain", "uncordon"):
        assert (await service.ask("POST", f"/nodes/w1/{action}", headers=reads))[0] == 403
    await beat(service.store, "w1")
    assert service.store.nodes.cordon == nodes.ACTIVE


async def test_a_single_node_is_not_cordoned(database: engines.Database) -> None:
    """Where no other node can be, nobody could take its captures: the refusal says what to do."""
    opened = database.open(api_service.now_ms, api_service.new_id)
    alone = operations.Operations(settings.load({"HOME": tempfile.gettempdir()}), opened.connections, alone=True, alive_ms=60_000)
    async with api_service.running(database, operations=alone) as service:
        await beat(service.store, "only")
        status, answer = await service.ask("POST", "/nodes/only/cordon")
        assert (status, answer["Code"]) == (409, "FailedOperation")
        assert "single node" in answer["Message"]
        assert [node["Node"] for node in (await service.ask("GET", "/nodes"))[1]["Nodes"]] == ["only"]
    await opened.stop()


async def test_the_command_lists_and_cordons(service: Service) -> None:
    """`recorder nodes` shows a line for each node, and prints what became of the one that it acts on."""
    await beat(service.store, "w1", "w2")
    environment = {"RECORDER_URL": service.url, "RECORDER_TOKEN": MASTER}
    done = await cli_runner.inside(environment, "nodes", "drain", "w2")
    assert (done.code, done.out) == (0, "w2 drained, 0 captures\n")
    listed = await cli_runner.inside(environment, "nodes", "list")
    rows = [line.split("\t") for line in listed.out.splitlines()]
    assert [row[:6] for row in rows[1:]] == [
        ["w1", "active", "host-w1", "worker", "0 of 20", "9216"],
        ["w2", "drained", "host-w2", "worker", "0 of 20", "9216"],
    ]
    assert (await cli_runner.inside(environment, "nodes", "uncordon", "w2", "--json")).json["State"] == "active"
    assert (await cli_runner.inside(environment, "nodes", "cordon", "w3")).code == 4
