"""Changes of several decisions, added up: nothing is lost, and a deadline stays what it is after the last of them."""

from __future__ import annotations

import dataclasses

import pytest

from events import codec, requests
from machine import changes, job_key, model, ports, presence
from store import unsaved
from tests import examples

OWNER = job_key.SessionKey(examples.TASK)
ROOM = requests.Room(sdk_app_id=1, room_id=2)
ARMED, OTHER = changes.Armed(5, "one"), changes.Armed(6, "other")
ONCE, ONCE_MORE = changes.Armed(5, "one", once=True), changes.Armed(6, "other", once=True)


def full() -> changes.Changes:
    """A value in each field."""
    recording, session = examples.recording(), examples.session()
    sent = model.Delivery(task_id=examples.TASK, revision=1, url="https://example.com", body="{}")
    event = codec.make("stop", id="e", time_ms=1, data={"TaskId": examples.TASK})
    return changes.Changes(
        sessions={session.task_id: (None, session)},
        recordings={recording.key: (None, recording)},
        deliveries={sent.key: (None, sent)},
        segments=[(recording.key, 1, {"media_ms": 1})],
        secrets={session.task_id: None},
        results=[(session.task_id, 1, "{}")],
        deadlines={(OWNER, "idle"): ARMED},
        journal=[changes.JournalEntry(OWNER, "e", "stop", "", "", "")],
        messages=[changes.OutgoingMessage("event", event)],
        presence={(ROOM, "al"): presence.left(1)},
        applications={1},
        audit=[changes.AuditNote(model.Caller(name="me"), "stop", "")],
    )


def test_nothing_is_lost() -> None:
    """Every field is added, also one that comes later."""
    made, later = changes.Changes(), full()
    assert all(getattr(later, field.name) for field in dataclasses.fields(later))
    made.add(later)
    assert made == later


def test_a_row_is_written_from_its_first_version_to_its_last() -> None:
    """Two decisions move one session: the row is written once."""
    first = examples.session()
    second, third = model.changed(first, version=2), model.changed(first, version=3)
    made = changes.Changes(sessions={first.task_id: (first, second)})
    made.add(changes.Changes(sessions={first.task_id: (second, third)}))
    assert made.sessions == {first.task_id: (first, third)}


@pytest.mark.parametrize(
    ("then", "later", "left"),
    [
        (ARMED, OTHER, OTHER),
        (ARMED, None, None),
        (None, OTHER, OTHER),
        (ARMED, ONCE_MORE, ARMED),
        (ONCE, ONCE_MORE, ONCE),
        (ONCE, OTHER, OTHER),
        (None, ONCE_MORE, changes.Armed(6, "other")),
    ],
)
def test_a_deadline_is_what_the_last_decision_leaves(
    then: changes.Armed | None, later: changes.Armed | None, left: changes.Armed | None
) -> None:
    """One that is armed only once keeps an earlier one, unless that was disarmed meanwhile."""
    made = changes.Changes(deadlines={(OWNER, "idle"): then})
    made.add(changes.Changes(deadlines={(OWNER, "idle"): later}))
    assert made.deadlines == {(OWNER, "idle"): left}


def test_every_reading_is_known_after_unsaved_changes() -> None:
    """A reading that a snapshot gains must say what unsaved changes do to it; until then it ends each chain."""
    readings = {name for name in vars(ports.Snapshot) if not name.startswith("_")}
    assert set(unsaved._READINGS) == readings
