"""The session's machine: Open → Closing → Finished, a total table and the pure `decide` that reads it.

May import `machine` and `events`. Rule: as for the recording's machine; the caller holds the session's row and says in the facts
what is true of its recordings. `all-final` is said by the deciding handler itself whenever a recording has ended or the
session has closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transitions import EventData

from machine import decision_table, effects, model, states

O, C, F = states.OPEN, states.CLOSING, states.FINISHED  # noqa: E741 - one letter a state keeps the table readable
ALL = states.SESSION_STATES

EVENTS = (
    "start",
    "stop",
    "room-destroyed",
    "user-removed",
    "max-duration-over",
    "join-over",
    "idle-over",
    "result-wait-over",
    "all-final",
    "reopen",
)

END_REASON = {
    "stop": states.STOPPED,
    "room-destroyed": states.ROOM_DESTROYED,
    "user-removed": states.USER_REMOVED,
    "max-duration-over": states.MAX_DURATION,
    "join-over": states.NOBODY_PUBLISHED,
    "idle-over": states.IDLE,
}
OPEN_DEADLINES = ("max-duration", "join", "idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`live`: recordings that are not final; `uploading`: those of them in Uploading; `present`: callbacks say that some speaker
    is there."""

    now_ms: int
    policy: model.Policy = field(default_factory=model.Policy)
    live: int = 0
    uploading: int = 0
    present: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The session as it is to be, what is to be done, the moves made, or why nothing happens."""

    session: model.Session
    effects: tuple[effects.Effect, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    ignored: str = ""


class Cursor:
    """A throw-away walker of the table."""

    def __init__(self, session: model.Session, facts: Facts, event: str) -> None:
        self.session = session
        self.facts = facts
        self.event = event
        self.state = session.state
        self.fired = decision_table.Fired()
        self.effects: list[effects.Effect] = []

    # --- conditions -----------------------------------------------------------------------------------------------------
    def none_live(self, _: EventData) -> bool:
        """Every recording is final."""
        return self.facts.live == 0

    def only_uploads(self, _: EventData) -> bool:
        """What is not final is only waiting for its upload."""
        return self.facts.live == self.facts.uploading

    def published(self, _: EventData) -> bool:
        """Somebody published at some time."""
        return self.session.published

    def lately(self, _: EventData) -> bool:
        """The last media of all is younger than IDLE_TIMEOUT."""
        return self.session.idle_from_ms + self.facts.policy.idle_timeout_ms > self.facts.now_ms

    def present(self, _: EventData) -> bool:
        """Callbacks say that a speaker is there."""
        return self.facts.present

    # --- actions --------------------------------------------------------------------------------------------------------
    def close(self, _: EventData) -> None:
        """No recording is added any more; those that run are told to stop."""
        reason = END_REASON[self.event]
        self.session = replace(self.session, closing_ms=self.facts.now_ms, end_reason=reason)
        self.effects += [effects.Disarm(kind) for kind in OPEN_DEADLINES]
        self.effects.append(effects.Arm("result-wait", self.facts.now_ms + self.facts.policy.result_wait_ms))
        self.effects.append(effects.StopRecordings(reason))

    def report(self, _: EventData) -> None:
        """The result goes out under the next revision."""
        self.session = replace(
            self.session, revision=self.session.revision + 1, finished_ms=self.session.finished_ms or self.facts.now_ms
        )
        self.effects += [effects.Disarm("result-wait"), effects.Finish()]

    def arm_idle(self, _: EventData) -> None:
        """Look again when IDLE_TIMEOUT may be over."""
        active = self.facts.present or not self.session.published
        from_ms = self.facts.now_ms if active else self.session.idle_from_ms
        at_ms = max(from_ms + self.facts.policy.idle_timeout_ms, self.facts.now_ms + model.SECOND)
        self.effects.append(effects.Arm("idle", at_ms))

    def arm_result_wait(self, _: EventData) -> None:
        """A capture or transcode is still under way: the result waits for it."""
        self.effects.append(effects.Arm("result-wait", self.facts.now_ms + model.MINUTE))

    def open_anew(self, _: EventData) -> None:
        """Joining is replayed: fresh deadlines."""
        self.session = replace(
            self.session,
            opened_ms=self.facts.now_ms,
            closing_ms=None,
            finished_ms=None,
            end_reason="",
            idle_from_ms=self.facts.now_ms,
        )
        self.effects += opening(self.facts)


def opening(facts: Facts) -> list[effects.Effect]:
    """The deadlines of a session that opens."""
    policy, now_ms = facts.policy, facts.now_ms
    return [
        effects.Arm("max-duration", now_ms + policy.max_duration_ms),
        effects.Arm("join", now_ms + policy.join_timeout_ms),
        effects.Arm("idle", now_ms + policy.idle_timeout_ms),
    ]


Row = decision_table.Row
CLOSED = "it is closed already"

ROWS: tuple[decision_table.Row, ...] = (
    # A repeated start renews the secrets (the handler's part) and changes nothing else.
    Row(on="start", at=(O,)),
    Row(on="start", at=(C, F), ignore="a start now opens a new session"),
    Row(on="stop", at=(O,), to=C, do=("close",)),
    Row(on="stop", at=(C, F), ignore=CLOSED),
    Row(on="room-destroyed", at=(O,), to=C, do=("close",)),
    Row(on="room-destroyed", at=(C, F), ignore=CLOSED),
    Row(on="user-removed", at=(O,), to=C, do=("close",)),
    Row(on="user-removed", at=(C, F), ignore=CLOSED),
    Row(on="max-duration-over", at=(O,), to=C, do=("close",)),
    Row(on="max-duration-over", at=(C, F), ignore=CLOSED),
    Row(on="join-over", at=(O,), when=("published",), ignore="somebody published"),
    Row(on="join-over", at=(O,), to=C, do=("close",)),
    Row(on="join-over", at=(C, F), ignore=CLOSED),
    Row(on="idle-over", at=(O,), unless=("published",), do=("arm_idle",)),
    Row(on="idle-over", at=(O,), when=("present",), do=("arm_idle",)),
    Row(on="idle-over", at=(O,), when=("lately",), do=("arm_idle",)),
    Row(on="idle-over", at=(O,), to=C, do=("close",)),
    Row(on="idle-over", at=(C, F), ignore=CLOSED),
    Row(on="result-wait-over", at=(C,), when=("none_live",), to=F, do=("report",)),
    Row(on="result-wait-over", at=(C,), when=("only_uploads",), to=F, do=("report",)),
    Row(on="result-wait-over", at=(C,), do=("arm_result_wait",)),
    Row(on="result-wait-over", at=(O, F), ignore="no result is waited for"),
    Row(on="all-final", at=(O,), ignore="more may come while it is Open"),
    Row(on="all-final", at=(C,), when=("none_live",), to=F, do=("report",)),
    Row(on="all-final", at=(C,), ignore="others are still under way"),
    # A pending upload or a replay ended: every later change is a new revision.
    Row(on="all-final", at=(F,), do=("report",)),
    Row(on="reopen", at=(O,), ignore="it is Open"),
    Row(on="reopen", at=(C, F), to=O, do=("open_anew",)),
)

MACHINE = decision_table.build(ROWS, ALL, EVENTS, Cursor)


def decide(session: model.Session, event: str, facts: Facts) -> Decision:
    """What `event` makes of `session`: pure and total. Raises nothing but KeyError for an event that is not in EVENTS."""
    cursor = Cursor(session, facts, event)
    row = decision_table.fire(MACHINE, cursor, event)
    moves = ((session.state, cursor.state),) if cursor.state != session.state else ()
    return Decision(
        session=replace(cursor.session, state=cursor.state), effects=tuple(cursor.effects), moves=moves, ignored=row.ignore
    )
