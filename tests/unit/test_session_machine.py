"""The session's machine against an oracle written by hand: every state × every event × the relevant facts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import requests
from machine import effects, model, session

NOW_MS = 1_800_000_000_000
POLICY = model.Policy()
STATES = ("Open", "Closing", "Finished")
CLOSING = {
    "room-destroyed": "RoomDestroyed",
    "user-removed": "UserRemoved",
    "stop": "Stopped",
    "max-duration-over": "MaxDuration",
    "join-over": "NobodyPublished",
    "idle-over": "Idle",
}
EVENTS = (*CLOSING, "start", "result-wait-over", "revise-over", "all-final")
REQUEST = requests.StartRequest(
    room=requests.Room(sdk_app_id=1, room_id=2), user_id="rec", region="ap-shanghai", bucket="b-12345", path="p"
)
Case = dict[str, Any]


def oracle(c: Case) -> tuple[str, str]:
    """(kind, state afterwards): the design's answer for this state, event and facts."""
    state, event = c["state"], c["event"]
    if event == "start":
        return ("stay", state) if state == "Open" else ("ignore", state)
    if event == "all-final":
        return _all_final(c)
    if event == "result-wait-over":
        return _result_wait_over(c)
    if event == "revise-over":
        return ("stay", state) if state == "Finished" else ("ignore", state)  # to publish, or to wait for replays
    if state != "Open":
        return "ignore", state
    if event == "join-over" and c["published"]:
        return "ignore", state
    if event == "idle-over" and (not c["published"] or c["present"] or c["lately"]):
        return "stay", state
    return "move", "Closing"


def _all_final(c: Case) -> tuple[str, str]:
    if c["state"] == "Open":
        return "ignore", "Open"
    if c["state"] == "Closing":
        return ("ignore", "Closing") if c["live"] else ("move", "Finished")
    return "stay", "Finished"  # a later change: the next revision


def _result_wait_over(c: Case) -> tuple[str, str]:
    if c["state"] != "Closing":
        return "ignore", c["state"]
    return ("move", "Finished") if c["live"] == c["uploading"] else ("stay", "Closing")


def cases() -> Iterator[Case]:
    """Every state × event × relevant fact."""
    facts = {
        "published": (False, True),
        "present": (False, True),
        "lately": (False, True),
        "live": (0, 2),
        "uploading": (0, 1, 2),
    }
    for state, event, *values in itertools.product(STATES, EVENTS, *facts.values()):
        case = {"state": state, "event": event, **dict(zip(facts, values, strict=True))}
        if case["uploading"] <= case["live"]:
            yield case


def _session(case: Case, **changes: Any) -> model.Session:
    idle_from_ms = NOW_MS - (1_000 if case.get("lately") else POLICY.idle_timeout_ms)
    plain = model.Session(task_id="T", request=REQUEST, state=case["state"], idle_from_ms=idle_from_ms, revision=3)
    return dataclasses.replace(plain, published=case.get("published", False), **changes)


def _decide(case: Case, **changes: Any) -> session.SessionDecision:
    known = {k: case[k] for k in ("live", "uploading", "present", "replaying", "replay_ended") if k in case}
    return session.decide(_session(case, **changes), case["event"], session.SessionFacts(now_ms=NOW_MS, policy=POLICY, **known))


@pytest.mark.parametrize("event", EVENTS)
def test_the_table_does_what_the_design_says(event: str) -> None:
    """Every state × this event × the relevant facts moves, stays or is ignored as designed."""
    for case in cases():
        if case["event"] == event:
            got = _decide(case)
            kind = "ignore" if got.ignored else "move" if got.moves else "stay"
            assert (kind, got.session.state) == oracle(case), case
            assert got.moves in ((), ((case["state"], got.session.state),))
            if got.ignored:
                assert (got.session, got.effects) == (_session(case), ())


def test_the_oracle_knows_every_event_and_state() -> None:
    """No state and no event of the machine is left out of the oracle."""
    assert set(session.EVENTS) == set(EVENTS)
    assert set(session.MACHINE.states) == set(STATES)


@pytest.mark.parametrize("event", CLOSING)
def test_closing_has_its_reason_and_stops_everybody(event: str) -> None:
    """Every cause of closing sets EndReason, disarms the deadlines of an Open session, arms the wait for the result, and stops
    all recordings."""
    got = _decide({"state": "Open", "event": event, "published": event == "idle-over", "live": 1})
    assert (got.session.state, got.session.end_reason, got.session.closing_ms) == ("Closing", CLOSING[event], NOW_MS)
    assert {e.kind for e in got.effects if isinstance(e, effects.Disarm)} >= {"max-duration", "join", "idle"}
    assert effects.Arm("result-wait", NOW_MS + 15 * 60_000) in got.effects
    assert effects.StopRecordings(CLOSING[event]) in got.effects


@pytest.mark.parametrize("state", ["Closing", "Finished"])
def test_each_result_is_the_next_revision(state: str) -> None:
    """A result raises the revision by one and goes out once; the time of the first end stays."""
    got = _decide({"state": state, "event": "all-final"}, finished_ms=5 if state == "Finished" else None)
    assert (got.session.revision, got.session.finished_ms) == (4, 5 if state == "Finished" else NOW_MS)
    assert got.effects.count(effects.Finish()) == 1


def test_uploads_that_end_one_after_the_other_share_a_revision() -> None:
    """While uploads are pending, a revision waits a moment from the first end on; the last end publishes at once."""
    waits = _decide({"state": "Finished", "event": "all-final", "live": 2, "uploading": 2})
    assert waits.session.revision == 3
    assert waits.effects == (effects.Arm("revise", NOW_MS + 5_000, once=True),)
    for event, live in (("revise-over", 2), ("revise-over", 0), ("all-final", 0)):
        got = _decide({"state": "Finished", "event": event, "live": live, "uploading": live})
        assert got.session.revision == 4
        assert effects.Disarm("revise") in got.effects
        assert effects.Finish() in got.effects


def test_a_closed_session_never_opens_again() -> None:
    """No event, with any facts, leads back to an earlier state: the room may belong to somebody else by now."""
    for case in cases():
        assert STATES.index(_decide(case).session.state) >= STATES.index(case["state"]), case


@pytest.mark.parametrize("event", ["all-final", "revise-over"])
def test_a_revision_waits_for_what_is_replayed(event: str) -> None:
    """No revision goes out while a replayed recording is under way. The last one publishes at once, pending uploads or not."""
    waits = _decide({"state": "Finished", "event": event, "live": 2, "uploading": 1, "replaying": True, "replay_ended": True})
    assert (waits.session.revision, waits.effects) == (3, (effects.Arm("revise", NOW_MS + 15 * 60_000),))
    ended = _decide({"state": "Finished", "event": "all-final", "live": 1, "uploading": 1, "replay_ended": True})
    assert (ended.session.revision, effects.Finish() in ended.effects) == (4, True)


def test_a_look_at_idleness_is_always_in_the_future() -> None:
    """An IDLE_TIMEOUT that fires too early is armed again, later than now."""
    for case in cases():
        if case["event"] == "idle-over" and oracle(case)[0] == "stay":
            (armed,) = [e for e in _decide(case).effects if isinstance(e, effects.Arm)]
            assert armed.kind == "idle"
            assert armed.at_ms > NOW_MS


SESSIONS = st.builds(
    model.Session,
    task_id=st.just("T"),
    request=st.just(REQUEST),
    state=st.sampled_from(STATES),
    opened_ms=st.integers(0, 2**53),
    closing_ms=st.none() | st.integers(0, 2**53),
    finished_ms=st.none() | st.integers(0, 2**53),
    end_reason=st.text(max_size=9),
    revision=st.integers(0, 99),
    idle_from_ms=st.integers(0, 2**53),
    published=st.booleans(),
)
FACTS = st.builds(
    session.SessionFacts,
    now_ms=st.integers(0, 2**53),
    live=st.integers(0, 9),
    uploading=st.integers(0, 9),
    present=st.booleans(),
    replaying=st.booleans(),
    replay_ended=st.booleans(),
)


@given(SESSIONS, st.sampled_from(EVENTS), FACTS)
def test_a_decision_is_pure_and_never_raises(value: model.Session, event: str, facts: session.SessionFacts) -> None:
    """Any facts give a decision, the same one twice; no value is changed; revisions never fall."""
    before = repr((value, facts))
    got = session.decide(value, event, facts)
    assert session.decide(value, event, facts) == got
    assert repr((value, facts)) == before
    assert got.session.revision in (value.revision, value.revision + 1)
    assert (got.session.revision > value.revision) == (effects.Finish() in got.effects)
