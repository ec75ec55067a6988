"""The recording's state machine compared with the oracle: every key × every event × the relevant facts."""

from __future__ import annotations

import pytest

from machine import effects, recording
from tests import recording_cases as cases
from tests import recording_oracle as oracle


def _differences(case: cases.Case) -> list[str]:
    before, facts = case.row, case.facts
    got = recording.decide(before, case.event, facts)
    want = oracle.answer(case)
    after = got.recording
    kind = "ignore" if got.ignored else "move" if got.moves else "stay"
    commands = [e.type for e in got.effects if isinstance(e, effects.Command)]
    armed = [e.kind for e in got.effects if isinstance(e, effects.Arm)]
    found = []
    if kind != want.kind or got.moves != want.moves:
        found.append(f"{kind} {got.moves}, not {want.kind} {want.moves}")
    if kind == "ignore" and (after != before or got.effects):
        found.append("ignored, but not without traces")
    if want.capture and after.capture != want.capture:
        found.append(f"capture is {after.capture}, not {want.capture}")
    if want.job and (after.job is None or after.job.state != want.job):
        found.append(f"job is {after.job}, not {want.job}")
    if want.kind != "ignore" and commands != ([want.command] if want.command else []):
        found.append(f"commands are {commands}, not {want.command!r}")
    if want.raised is not None and (after.epoch > before.epoch) != want.raised:
        found.append(f"epoch went from {before.epoch} to {after.epoch}")
    if want.stop is not None and after.stop_requested != want.stop:
        found.append(f"stop requested is {after.stop_requested}")
    if after.job != before.job and after.job is not None and after.job.kind == "transcode":
        place = "" if case.event == "node-return-over" else case.home
        if after.job.node != place or ("node-return" in armed) != bool(place):
            found.append(f"the transcode is for {after.job.node!r}, not {place!r}; armed {armed}")
    if want.armed and want.armed not in armed:
        found.append(f"armed {armed}, not {want.armed}")
    return [f"{case.short}: {text}" for text in found]


def _reachable(case: cases.Case) -> bool:
    """A capture is leased in Joining and Recording only: elsewhere the key exists, and must do no harm."""
    return case.capture == "none" or case.state in cases.CAPTURING


@pytest.mark.parametrize("event", cases.EVENTS)
def test_the_table_does_what_the_design_says(event: str) -> None:
    """Every key × this event × the relevant facts moves, stays or is ignored as designed."""
    wrong = [d for case in cases.every_case() if case.event == event and _reachable(case) for d in _differences(case)]
    assert not wrong, f"{len(wrong)} differences, the first:\n" + "\n".join(wrong[:10])


def test_the_oracle_knows_every_event_and_state() -> None:
    """No state and no event of the machine is left out of the oracle."""
    assert set(recording.EVENTS) == set(cases.EVENTS)
    assert set(recording.MACHINE.states) == set(cases.STATES)


def test_a_key_that_cannot_be_is_harmless() -> None:
    """A capture in a later state raises nothing, and moves nothing backwards."""
    for case in cases.every_case():
        if not _reachable(case):
            got = recording.decide(case.row, case.event, case.facts)
            assert set(got.moves) <= oracle.EDGES | oracle.REPLAY_EDGES
