"""Outages of the database: what probes tell while one lasts, on each engine."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest

from machine import errors
from store import connections
from store import store as stores

PINGS = 20


async def _refused() -> None:
    raise errors.DatabaseUnavailable("The disk is full.", refused=True)


async def _silent() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("check", [_refused, _silent])
@pytest.mark.parametrize("every_s", [-1.0, 3_600.0])
async def test_an_outage_keeps_one_traceback(
    store: stores.Store, monkeypatch: pytest.MonkeyPatch, check: Any, every_s: float
) -> None:
    """However often a probe asks, it gets the same outage, and the error's traceback, which goes to the log, does not grow: the
    frames of earlier answers are not in it."""
    monkeypatch.setattr(connections, "PING_TIMEOUT_S", 0.01)
    monkeypatch.setattr(connections, "PROBE_EVERY_S", every_s)
    monkeypatch.setattr(store.connections, "_check_writable", check)
    with pytest.raises(errors.DatabaseUnavailable):
        async with store.connections.read():
            raise errors.DatabaseUnavailable("The server does not answer.")
    told, lengths = set(), list[int]()
    for _ in range(PINGS):
        with pytest.raises(errors.DatabaseUnavailable) as caught:
            await store.connections.ping()
        told.add(caught.value.message)
        lengths.append(len(traceback.extract_tb(caught.tb)))
    assert len(told) <= 2
    assert max(lengths[1:]) == min(lengths[1:])
