"""Rules for sessions that need attention: each has a name, its meaning, the reason in one case, and the next step. Pure.

A rule reads only rows, jobs and the policy; it keeps no state. `store.queries` selects the candidates, and no rule may hold for
another session.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from machine import delivery, model, session_view, states
from web import next_steps

MANY_FAILURES = 3
QUEUED_TOO_LONG_MS = 60 * model.SECOND
# The sweeper finds an expired lease within a second; after this time no sweeper runs.
LEASE_GRACE_MS = 5 * model.SECOND


class _Any:
    """Contains every name."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One session with all the data that a rule may read."""

    session: model.Session
    parts: session_view.SessionParts
    policy: model.Policy
    now_ms: int
    # The nodes that send heartbeats. A node that is not known does not count as away where nobody looked.
    alive: Container[str] = field(default_factory=_Any)


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckFinding:
    """One reason for attention. `of` is "" for the session, `speaker/n` for a recording, `#revision` for a delivery."""

    rule: str
    of: str
    why: str
    next: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckRule:
    """`meaning` is the condition; `why` gives the sentence for one case, or "" if the rule does not hold."""

    name: str
    meaning: str
    why: Callable[[Snapshot, Any], str]
    next: Callable[[Snapshot, Any], str]


def findings(snapshot: Snapshot) -> list[StuckFinding]:
    """Every reason why this session needs attention; none if it proceeds on its own."""
    return [*_matches(snapshot, SESSION_RULES, snapshot.session, ""), *_of_recordings(snapshot), *_of_deliveries(snapshot)]


def _of_recordings(snapshot: Snapshot) -> Iterator[StuckFinding]:
    for value in snapshot.parts.recordings:
        yield from _matches(snapshot, RECORDING_RULES, value, f"{value.speaker}/{value.n}")


def _of_deliveries(snapshot: Snapshot) -> Iterator[StuckFinding]:
    """Only for the newest revision, which contains all older ones, and for its manifest."""
    for value in (*snapshot.parts.deliveries[-1:], *snapshot.parts.manifests):
        yield from _matches(snapshot, DELIVERY_RULES, value, f"#{snapshot.session.revision}")


def _matches(snapshot: Snapshot, rules: tuple[StuckRule, ...], value: Any, of: str) -> Iterator[StuckFinding]:
    for rule in rules:
        why = rule.why(snapshot, value)
        if why:
            yield StuckFinding(rule=rule.name, of=of, why=why, next=rule.next(snapshot, value))


# --- the session ----------------------------------------------------------------------------------------------------------
def _closing_long(snapshot: Snapshot, session: model.Session) -> str:
    over_ms = snapshot.now_ms - (session.closing_ms or snapshot.now_ms)
    if session.state != states.CLOSING or over_ms <= snapshot.policy.result_wait_ms:
        return ""
    live = ", ".join(f"{r.speaker}/{r.n} ({r.state})" for r in snapshot.parts.recordings if not r.final)
    return f"It has been Closing for {_duration(over_ms)}, longer than RESULT_WAIT. It waits for {live or 'nothing'}."


# --- its recordings -------------------------------------------------------------------------------------------------------
def _failed_kept(_: Snapshot, value: model.Recording) -> str:
    has_files = value.media_ms > 0 or value.output is not None
    if value.state != states.FAILED or value.files_removed or not has_files:
        return ""
    return f"{value.code}: {value.detail}"


def _failed_live(snapshot: Snapshot, value: model.Recording) -> str:
    has_files = value.media_ms > 0 or value.output is not None
    if value.state != states.FAILED or has_files or value.never_seen or snapshot.session.state != states.OPEN:
        return ""
    if any(r.speaker == value.speaker and r.n > value.n for r in snapshot.parts.recordings):
        return ""
    return f"Nothing was captured, and the session is still Open. {value.detail}"


def _no_media(snapshot: Snapshot, value: model.Recording) -> str:
    if (
        value.state not in states.CAPTURING
        or not value.present
        or value.failures < MANY_FAILURES
        or snapshot.session.state != states.OPEN
    ):
        return ""
    return f"The speaker is publishing, and {value.failures} pulls in a row returned no media. {value.detail}".strip()


def _node_away(snapshot: Snapshot, value: model.Recording) -> str:
    if value.state not in (states.TRANSCODING, states.UPLOADING) or value.job is None or value.job.state == states.LEASED:
        return ""
    node = value.job.node
    if node and node not in snapshot.alive:
        return f"Its files are on {node}, which sends no heartbeat. They are waited for until NODE_RETURN is over."
    # Only the wait for a node starts no row of failures and leaves a detail.
    waits = value.state == states.TRANSCODING and value.job.state == states.WAITING and not value.failures
    return value.detail if waits else ""


def _tried_often(_: Snapshot, value: model.Recording) -> str:
    if value.state not in (states.TRANSCODING, states.UPLOADING) or value.failures < MANY_FAILURES:
        return ""
    step = "transcode" if value.state == states.TRANSCODING else "upload"
    return f"The {step} has failed {value.failures} times in a row. {value.detail}".strip()


def _not_taken(snapshot: Snapshot, value: model.Recording | model.Delivery) -> str:
    job = snapshot.parts.jobs.get(value.key)
    if job is None or job.state != states.QUEUED or snapshot.now_ms - job.since_ms <= QUEUED_TOO_LONG_MS:
        return ""
    return f"Its {job.kind} has been queued for {_duration(snapshot.now_ms - job.since_ms)}: no worker takes it."


def _lease_over(snapshot: Snapshot, value: model.Recording | model.Delivery) -> str:
    job = snapshot.parts.jobs.get(value.key)
    if job is None or job.state != states.LEASED or snapshot.now_ms <= job.lease_until_ms + LEASE_GRACE_MS:
        return ""
    ago = _duration(snapshot.now_ms - job.lease_until_ms)
    return f"The lease of its {job.kind} on {job.node} ended {ago} ago, and no worker took the job over."


# --- the deliveries of its results ----------------------------------------------------------------------------------------
def _not_delivered(snapshot: Snapshot, value: model.Delivery) -> str:
    if value.is_manifest or not _given_up(snapshot, value):
        return ""
    return f"The receiver did not accept the result, and it is not sent again. {value.detail}".strip()


def _given_up(snapshot: Snapshot, value: model.Delivery) -> bool:
    finished_ms = snapshot.session.finished_ms or snapshot.now_ms
    return value.state == delivery.FAILED and snapshot.now_ms - finished_ms <= snapshot.policy.keep_failed_ms


def _no_manifest(snapshot: Snapshot, value: model.Delivery) -> str:
    retried = value.state == delivery.PENDING and value.failures >= MANY_FAILURES
    if not value.is_manifest or not (retried or _given_up(snapshot, value)):
        return ""
    return f"The manifest was not written{', and is tried again' if retried else ' and is given up'}. {value.detail}".strip()


def _refused_often(_: Snapshot, value: model.Delivery) -> str:
    if value.is_manifest or value.state != delivery.PENDING or value.failures < MANY_FAILURES:
        return ""
    return f"The receiver refused the result {value.failures} times. {value.detail}".strip()


SESSION_RULES = (
    StuckRule(
        name="closing-long",
        meaning="A session is Closing for longer than RESULT_WAIT.",
        why=_closing_long,
        next=lambda snapshot, _: next_steps.for_blocked_job(snapshot.session.task_id),
    ),
)
RECORDING_RULES = (
    StuckRule(
        name="failed-kept",
        meaning="A recording has failed, and its files are kept until KEEP_FAILED ends: a replay can deliver it.",
        why=_failed_kept,
        next=lambda snapshot, value: next_steps.for_recording(value, snapshot.session),
    ),
    StuckRule(
        name="failed-live",
        meaning="A speaker's newest recording failed without media in an Open session: a replay can still record the speaker.",
        why=_failed_live,
        next=lambda snapshot, value: next_steps.for_recording(value, snapshot.session),
    ),
    StuckRule(
        name="no-media",
        meaning=f"TRTC callbacks report a speaker as publishing, and {MANY_FAILURES} or more pulls in a row returned no media.",
        why=_no_media,
        next=lambda snapshot, value: next_steps.for_recording(value, snapshot.session),
    ),
    StuckRule(
        name="node-away",
        meaning="A recording waits for its files, which are on a node that sends no heartbeat.",
        why=_node_away,
        next=lambda _, value: next_steps.for_node_away(value),
    ),
    StuckRule(
        name="tried-often",
        meaning=f"A transcode or upload has failed {MANY_FAILURES} or more times in a row, and is retried automatically.",
        why=_tried_often,
        next=lambda snapshot, value: next_steps.for_recording(value, snapshot.session),
    ),
    StuckRule(
        name="not-taken",
        meaning=f"A job has been queued for longer than {QUEUED_TOO_LONG_MS // model.SECOND} s: no worker takes it.",
        why=_not_taken,
        next=lambda _, value: next_steps.for_blocked_job(value.task_id, value),
    ),
    StuckRule(
        name="lease-over",
        meaning="The lease of a job has expired, and no worker has taken the job over.",
        why=_lease_over,
        next=lambda _, value: next_steps.for_blocked_job(value.task_id, value),
    ),
)
DELIVERY_RULES = (
    StuckRule(
        name="no-manifest",
        meaning=f"The newest manifest failed {MANY_FAILURES} or more times, or is given up (listed until KEEP_FAILED ends).",
        why=_no_manifest,
        next=lambda snapshot, _: next_steps.for_failed_manifest(snapshot.session.task_id),
    ),
    StuckRule(
        name="not-delivered",
        meaning="The callback URL did not accept the newest result, and it is not retried (listed until KEEP_FAILED ends).",
        why=_not_delivered,
        next=lambda snapshot, _: next_steps.for_failed_delivery(snapshot.session.task_id),
    ),
    StuckRule(
        name="refused-often",
        meaning=f"The callback URL refused the newest result {MANY_FAILURES} or more times, and it is retried automatically.",
        why=_refused_often,
        next=lambda snapshot, _: next_steps.for_refused_delivery(snapshot.session.task_id),
    ),
    StuckRule(
        name="not-taken",
        meaning="As for recordings.",
        why=_not_taken,
        next=lambda snapshot, _: next_steps.for_blocked_delivery(snapshot.session.task_id),
    ),
    StuckRule(
        name="lease-over",
        meaning="As for recordings.",
        why=_lease_over,
        next=lambda snapshot, _: next_steps.for_blocked_delivery(snapshot.session.task_id),
    ),
)


def _duration(time_ms: int) -> str:
    """A time span in its largest unit."""
    seconds = time_ms // model.SECOND
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"
