"""Simulated histories: some of the hundred thousand (`python -m tests.simulated`), and those with a name."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from machine import model
from tests import engines
from tests.simulated import __main__ as command
from tests.simulated import fault_profile, history_runner, nodes, script, verdicts, world

PIECES = 8
IN_A_PIECE = 128
S = model.SECOND


@pytest.mark.parametrize("piece", range(PIECES))
def test_disturbed_histories_end_as_the_ordered_ones(piece: int) -> None:
    """With copies, delay, disorder, loss and deaths every history ends with true results. Without loss it ends like the history
    without faults."""
    _, failed, _ = command.batch(range(piece * IN_A_PIECE, (piece + 1) * IN_A_PIECE))
    assert failed == [], f"python -m tests.simulated --seed {failed[0][0]}"


def test_a_seed_is_one_history() -> None:
    """The same seed plays the same history, line by line, whatever was played before."""
    shown: list[list[str]] = [[], []]
    for lines in shown:
        history_runner.history(5, lines.append)
        history_runner.history(4)
    assert shown[0] == shown[1]
    assert len(shown[0]) > 20


def _acts(*acts: tuple[int, str, Any]) -> list[script.Act]:
    return [script.Act(at_s * S, name, about) for at_s, name, about in acts]


def storage_away() -> script.Script:
    """Two speakers, one of whom leaves early; COS is away for an hour, in which the room is stopped."""
    made = script.Script(seed=0, roomy=True, mode="00", room={"RoomId": 88}, callback="https://example.com/done")
    made.speakers, made.outages = ("al", "bo"), ((120 * S, 3_720 * S),)
    made.acts = _acts(
        (60, "start", ()),
        (70, "switch_on", ("al", "audio")),
        (75, "switch_on", ("bo", "audio")),
        (600, "leave", ("bo",)),
        (1_200, "stop", ()),
        (1_210, "leave", ("al",)),
    )
    return made


ROUGH = fault_profile.FaultProfile(
    kind="rough", seed=7, copies=5, bus_late_ms=3 * S, trtc_late_ms=5 * S, conflict=0.1, crash=0.05, relay_dies=0.1
)


@pytest.mark.parametrize("profile", [pytest.param(fault_profile.calm(), id="calm"), pytest.param(ROUGH, id="rough")])
def test_storage_away_for_an_hour(profile: fault_profile.FaultProfile) -> None:
    """While COS is unavailable no capture stops or is lost. The result due then has UploadPending, and a Revision corrects it."""
    played = world.World(storage_away(), profile).play()
    verdicts.true(played)
    tables = played.store.tables
    results = [json.loads(body) for _, body in sorted(tables.results.items())]
    assert [f["Code"] for f in results[0]["Files"]] == ["UploadPending", "UploadPending"]
    assert [f["Code"] for f in results[-1]["Files"]] == ["Success", "Success"]
    assert [r["Revision"] for r in results] == list(range(1, len(results) + 1))
    (first,) = {_at_s(body) for type_, body in played.results if type_ == "session-finished" and _revision(body) == 1}
    assert first == pytest.approx(1_200 + script.POLICY.result_wait_ms / S, abs=15)
    media_s = {r.speaker: sum(nodes.on_disk(played, r.key).values()) / S for r in tables.recordings.values()}
    assert media_s == {"al": pytest.approx(1_200 - 70, abs=15), "bo": pytest.approx(600 - 75, abs=15)}
    captures = {r.speaker: sum(owner == str(r.key) for owner, _ in tables.segments) for r in tables.recordings.values()}
    assert captures["al"] == 1, "no fault of COS ends a capture"


def _at_s(body: bytes) -> float:
    return datetime.fromisoformat(str(json.loads(body)["time"])).timestamp() - engines.START_MS / S


def _revision(body: bytes) -> int:
    return int(json.loads(body)["data"]["Revision"])
