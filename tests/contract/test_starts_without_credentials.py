"""Starts without COS keys, on each engine: a service without a role refuses them; a role whose service fails is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from assembly import start_checks
from events import codec
from machine import errors
from store import store as stores
from tencent import credentials
from tests import decider_harness, engines

START = {**decider_harness.START, "CosConfig": {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p"}}
POD = {"TKE_REGION": "r", "TKE_PROVIDER_ID": "p", "TKE_ROLE_ARN": "a", "TKE_WEB_IDENTITY_TOKEN_FILE": "/no/such/file"}


def harness(store: stores.Store, clock: engines.Clock, folder: Path, environment: dict[str, str]) -> decider_harness.Harness:
    """A service that has these variables, and on whose machine no metadata service answers."""
    chain = credentials.CredentialChain(
        environment, clock=clock, home=folder, system_profile=folder / "none", metadata_url="http://127.0.0.1:1"
    )

    async def has_capacity() -> tuple[str, ...]:
        return ()

    unused: Any = None
    checks = start_checks.StartChecks(unused, unused, chain, has_capacity)
    return decider_harness.connect(store, clock, checks.check)


async def _say(made: decider_harness.Harness, ids: Sequence[str]) -> None:
    for id_ in ids:
        await made.decider.decide_from_bus(codec.make("start", id=id_, time_ms=made.clock(), data=START))


async def test_without_a_role_they_are_refused_on_the_bus(store: stores.Store, clock: engines.Clock, tmp_path: Path) -> None:
    """Each start gets its reply and none is retried; the reply names the places where keys were looked for."""
    made = harness(store, clock, tmp_path, {})
    ids = [f"keyless-{number}" for number in range(20)]
    await _say(made, ids)
    replies = await made.messages("result")
    assert [(m.type, m.correlation_id, m.data["Code"]) for m in replies] == [
        ("session-refused", id_, "InvalidParameter") for id_ in ids
    ]
    assert all("the role of this CVM" in m.data["Message"] for m in replies)


async def test_a_role_that_fails_for_now_is_tried_again(store: stores.Store, clock: engines.Clock, tmp_path: Path) -> None:
    """No reply is final while the role's service fails: the bus delivers the start again, for as long as it retries."""
    made = harness(store, clock, tmp_path, POD)
    with pytest.raises(errors.Unavailable) as failed:
        await _say(made, ["patient"])
    assert failed.value.retry
    assert await made.messages("result") == []
