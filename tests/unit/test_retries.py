"""Retries on RabbitMQ, without a broker: the pause of the copy that waits, and the queue in which it waits."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from bus import publisher, retries
from bus import topology as topologies
from machine import supervised_task

TOPOLOGY = topologies.Topology("recorder")


def failed(id_: str) -> Any:
    """A message as its first delivery brings it."""
    properties = dict.fromkeys(publisher.PROPERTIES) | {"message_id": id_}
    return SimpleNamespace(**properties, exchange="recorder", routing_key="event.stop", body=b"{}", headers={})


def test_messages_that_fail_together_do_not_return_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause of each copy varies around the backoff by the jitter, and the copy waits in a queue that keeps it for so long."""
    factors = itertools.cycle((0.8, 1.0, 1.2))
    monkeypatch.setattr(supervised_task, "jittered_s", lambda pause_s: pause_s * next(factors))
    copies = [retries.outgoing(failed(f"m{number}"), TOPOLOGY.requests, TOPOLOGY, 30.0) for number in range(3)]
    assert [copy.properties["expiration"] for copy in copies] == [24.0, 30.0, 36.0]
    assert {copy.exchange for copy in copies} == {f"recorder.requests.retry.{topologies.RETRY_MS[-1]}"}
    short = [retries.outgoing(failed(f"m{number}"), TOPOLOGY.machines, TOPOLOGY, 1.5) for number in range(3)]
    assert [copy.properties["expiration"] for copy in short] == [1.2, 1.5, 1.8]
    assert [copy.exchange for copy in short] == [f"recorder.retry.{topologies.RETRY_MS[level]}" for level in (0, 0, 1)]
