"""The session's state machine: Open → Closing → Finished, one total table and the pure `decide`.

Rules: a session that is closed never opens again, because its room may belong to somebody else by now. Otherwise as for the
recording's machine. The caller holds the session's row and states in the facts how its recordings are. The handlers trigger
`all-final` whenever a recording has ended or the session has closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    "revise-over",
    "all-final",
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
class SessionFacts:
    """The facts of one decision about a session."""

    now_ms: int
    policy: model.Policy = field(default_factory=model.Policy)
    live: int = 0  # recordings that are not final
    uploading: int = 0  # those of them in Uploading
    present: bool = False  # callbacks reported that some speaker is there
    replaying: bool = False  # the next revision waits for a replayed recording that is not final
    replay_ended: bool = False  # the recording that has just ended was replayed


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDecision:
    """The session's new version, the effects and the moves made; or the reason why the event is ignored."""

    session: model.Session
    effects: tuple[effects.Effect, ...] = ()
    moves: tuple[tuple[str, str], ...] = ()
    ignored: str = ""


class SessionRules:
    """One decision about a session: guards read the session and the facts, actions change the session and add effects."""

    def __init__(self, session: model.Session, facts: SessionFacts, event: str) -> None:
        self.session = session
        self.facts = facts
        self.event = event
        self.state = session.state
        self.effects: list[effects.Effect] = []

    # --- guards -----------------------------------------------------------------------------------------------------------
    @property
    def all_recordings_final(self) -> bool:
        """Every recording is final."""
        return self.facts.live == 0

    @property
    def only_uploads_left(self) -> bool:
        """All recordings that are not final are in Uploading."""
        return self.facts.live == self.facts.uploading

    @property
    def published(self) -> bool:
        """Some speaker has published."""
        return self.session.published

    @property
    def media_recent(self) -> bool:
        """Some speaker's media arrived within IDLE_TIMEOUT."""
        return self.session.idle_from_ms + self.facts.policy.idle_timeout_ms > self.facts.now_ms

    @property
    def speaker_present(self) -> bool:
        """A callback reported that some speaker is there."""
        return self.facts.present

    @property
    def replaying(self) -> bool:
        """A replayed recording is not final (after RESULT_WAIT without an end: and its stage began meanwhile)."""
        return self.facts.replaying

    @property
    def replay_ended(self) -> bool:
        """The recording that has just ended was replayed."""
        return self.facts.replay_ended

    # --- actions ----------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Stop the recordings; no recording is added any more."""
        reason = END_REASON[self.event]
        self.session = model.changed(self.session, closing_ms=self.facts.now_ms, end_reason=reason)
        self.effects += [effects.Disarm(kind) for kind in OPEN_DEADLINES]
        self.effects.append(effects.Arm("result-wait", self.facts.now_ms + self.facts.policy.result_wait_ms))
        self.effects.append(effects.StopRecordings(reason))

    def publish_result(self) -> None:
        """Publish the result as the next revision."""
        self.session = model.changed(
            self.session, revision=self.session.revision + 1, finished_ms=self.session.finished_ms or self.facts.now_ms
        )
        self.effects += [effects.Disarm("result-wait"), effects.Disarm("revise"), effects.Finish()]

    def arm_revise(self) -> None:
        """The next revision waits a moment, and reports the uploads that end meanwhile together."""
        self.effects.append(effects.Arm("revise", self.facts.now_ms + self.facts.policy.revise_every_ms, once=True))

    def wait_for_replays(self) -> None:
        """The next revision waits for the replayed recordings, until none of them ends or begins a stage within RESULT_WAIT."""
        self.effects.append(effects.Arm("revise", self.facts.now_ms + self.facts.policy.result_wait_ms))

    def arm_idle(self) -> None:
        """Check again when IDLE_TIMEOUT may be over."""
        active = self.facts.present or not self.session.published
        from_ms = self.facts.now_ms if active else self.session.idle_from_ms
        at_ms = max(from_ms + self.facts.policy.idle_timeout_ms, self.facts.now_ms + model.SECOND)
        self.effects.append(effects.Arm("idle", at_ms))

    def arm_result_wait(self) -> None:
        """The result waits for the captures and transcodes that are not final."""
        self.effects.append(effects.Arm("result-wait", self.facts.now_ms + model.MINUTE))


def opening(facts: SessionFacts) -> list[effects.Arm]:
    """The deadlines of a session that opens."""
    policy, now_ms = facts.policy, facts.now_ms
    return [
        effects.Arm("max-duration", now_ms + policy.max_duration_ms),
        effects.Arm("join", now_ms + policy.join_timeout_ms),
        effects.Arm("idle", now_ms + policy.idle_timeout_ms),
    ]


Row = decision_table.DecisionRow
CLOSED = "it is closed already"

ROWS: tuple[decision_table.DecisionRow, ...] = (
    # A repeated start renews the secrets, which is the handler's part, and changes nothing else.
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
    Row(on="idle-over", at=(O,), when=("speaker_present",), do=("arm_idle",)),
    Row(on="idle-over", at=(O,), when=("media_recent",), do=("arm_idle",)),
    Row(on="idle-over", at=(O,), to=C, do=("close",)),
    Row(on="idle-over", at=(C, F), ignore=CLOSED),
    Row(on="result-wait-over", at=(C,), when=("all_recordings_final",), to=F, do=("publish_result",)),
    Row(on="result-wait-over", at=(C,), when=("only_uploads_left",), to=F, do=("publish_result",)),
    Row(on="result-wait-over", at=(C,), do=("arm_result_wait",)),
    Row(on="result-wait-over", at=(O, F), ignore="no result is due"),
    Row(on="all-final", at=(O,), ignore="an Open session may add recordings"),
    Row(on="all-final", at=(C,), when=("all_recordings_final",), to=F, do=("publish_result",)),
    Row(on="all-final", at=(C,), ignore="other recordings are not final"),
    # A pending upload or a replay ended: a new revision, at once after the last one or the last replay, together while others are
    # pending.
    Row(on="all-final", at=(F,), when=("all_recordings_final",), do=("publish_result",)),
    Row(on="all-final", at=(F,), when=("replaying",), do=("wait_for_replays",)),
    Row(on="all-final", at=(F,), when=("replay_ended",), do=("publish_result",)),
    Row(on="all-final", at=(F,), do=("arm_revise",)),
    Row(on="revise-over", at=(F,), when=("replaying",), do=("wait_for_replays",)),
    Row(on="revise-over", at=(F,), do=("publish_result",)),
    Row(on="revise-over", at=(O, C), ignore="no revision is due"),
)

MACHINE = decision_table.build(ROWS, ALL, EVENTS, SessionRules)


def decide(session: model.Session, event: str, facts: SessionFacts) -> SessionDecision:
    """Apply `event` to `session`: pure and total. Raises only KeyError, for an event that is not in EVENTS."""
    rules = SessionRules(session, facts, event)
    row = MACHINE.fire(rules, event)
    moves = ((session.state, rules.state),) if rules.state != session.state else ()
    return SessionDecision(
        session=model.changed(rules.session, state=rules.state), effects=tuple(rules.effects), moves=moves, ignored=row.ignore
    )
