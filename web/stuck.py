"""Which sessions a person should look at, why, and what to type: the rules, each with its sentence. Pure. May import `machine`.

Rule: everything is derived from what is written down anyway (rows, jobs, the policy's figures); nothing here is remembered.
`store.queries` casts a wider net for candidates; a new rule must not look outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from machine import delivery, model, session_view, states
from web import next_steps

MANY_TRIES = 3
QUEUED_TOO_LONG_MS = 60 * model.SECOND
# The sweeper sees an ended lease within a second; where it does not, nobody sweeps.
LEASE_GRACE_MS = 5 * model.SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One session with all that the rules may look at."""

    session: model.Session
    parts: session_view.SessionParts
    policy: model.Policy
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason to snapshot: `of` is "" for the session, `speaker/n` for a recording, `#revision` for a result's delivery."""

    rule: str
    of: str
    why: str
    next: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A reason under its name. `meaning` says when it holds; `why` is the sentence for one case, "" where it does not hold."""

    name: str
    meaning: str
    why: Callable[[Snapshot, Any], str]
    next: Callable[[Snapshot, Any], str]


def findings(snapshot: Snapshot) -> list[Finding]:
    """Every reason to look at this session; none means that it goes on by itself."""
    return [*_held(snapshot, SESSION_RULES, snapshot.session, ""), *_of_recordings(snapshot), *_of_callbacks(snapshot)]


def _of_recordings(snapshot: Snapshot) -> Iterator[Finding]:
    for value in snapshot.parts.recordings:
        yield from _held(snapshot, RECORDING_RULES, value, f"{value.speaker}/{value.n}")


def _of_callbacks(snapshot: Snapshot) -> Iterator[Finding]:
    """The newest revision's delivery counts: it holds all that the older ones said."""
    for value in snapshot.parts.deliveries[-1:]:
        yield from _held(snapshot, CALLBACK_RULES, value, f"#{value.revision}")


def _held(snapshot: Snapshot, rules: tuple[Rule, ...], value: Any, of: str) -> Iterator[Finding]:
    for rule in rules:
        why = rule.why(snapshot, value)
        if why:
            yield Finding(rule=rule.name, of=of, why=why, next=rule.next(snapshot, value))


# --- the session ----------------------------------------------------------------------------------------------------------
def _closing_long(snapshot: Snapshot, session: model.Session) -> str:
    over_ms = snapshot.now_ms - (session.closing_ms or snapshot.now_ms)
    if session.state != states.CLOSING or over_ms <= snapshot.policy.result_wait_ms:
        return ""
    live = ", ".join(f"{r.speaker}/{r.n} ({r.state})" for r in snapshot.parts.recordings if not r.final)
    return f"It has been Closing for {_for(over_ms)}, longer than RESULT_WAIT. It waits for {live or 'nothing'}."


# --- its recordings -------------------------------------------------------------------------------------------------------
def _failed_kept(_: Snapshot, value: model.Recording) -> str:
    kept = value.media_ms > 0 or value.output is not None
    if value.state != states.FAILED or value.files_removed or not kept:
        return ""
    return f"{value.code}: {value.detail}"


def _failed_live(snapshot: Snapshot, value: model.Recording) -> str:
    kept = value.media_ms > 0 or value.output is not None
    if value.state != states.FAILED or kept or value.never_seen or snapshot.session.state != states.OPEN:
        return ""
    return f"Nothing was captured, and the session is still Open. {value.detail}"


def _no_media(snapshot: Snapshot, value: model.Recording) -> str:
    if value.state != states.JOINING or not value.present or value.failures < MANY_TRIES or snapshot.session.state != states.OPEN:
        return ""
    return f"The speaker is publishing, and {value.failures} pulls in a row brought nothing. {value.detail}".strip()


def _tried_often(_: Snapshot, value: model.Recording) -> str:
    if value.state not in (states.TRANSCODING, states.UPLOADING) or value.failures < MANY_TRIES:
        return ""
    step = "transcode" if value.state == states.TRANSCODING else "upload"
    return f"The {step} has failed {value.failures} times in a row. {value.detail}".strip()


def _not_taken(snapshot: Snapshot, value: model.Recording | model.Delivery) -> str:
    job = snapshot.parts.jobs.get(value.id)
    if job is None or job.state != states.QUEUED or snapshot.now_ms - job.since_ms <= QUEUED_TOO_LONG_MS:
        return ""
    return f"Its {job.kind} has been queued for {_for(snapshot.now_ms - job.since_ms)}: no worker takes it."


def _lease_over(snapshot: Snapshot, value: model.Recording | model.Delivery) -> str:
    job = snapshot.parts.jobs.get(value.id)
    if job is None or job.state != states.LEASED or snapshot.now_ms <= job.lease_until_ms + LEASE_GRACE_MS:
        return ""
    ago = _for(snapshot.now_ms - job.lease_until_ms)
    return f"The lease of its {job.kind} on {job.node} ended {ago} ago, and nobody took the work over."


# --- the deliveries of its results ----------------------------------------------------------------------------------------
def _not_delivered(snapshot: Snapshot, value: model.Delivery) -> str:
    finished_ms = snapshot.session.finished_ms or snapshot.now_ms
    if value.state != delivery.FAILED or snapshot.now_ms - finished_ms > snapshot.policy.keep_failed_ms:
        return ""
    return f"The result was not taken, and is not sent again. {value.detail}".strip()


def _refused_often(_: Snapshot, value: model.Delivery) -> str:
    if value.state != delivery.PENDING or value.failures < MANY_TRIES:
        return ""
    return f"The result was refused {value.failures} times. {value.detail}".strip()


SESSION_RULES = (
    Rule(
        name="closing-long",
        meaning="A session is Closing for longer than RESULT_WAIT.",
        why=_closing_long,
        next=lambda snapshot, _: next_steps.send_again(snapshot.session.task_id),
    ),
)
RECORDING_RULES = (
    Rule(
        name="failed-kept",
        meaning="A recording has failed, and its files are still kept (until KEEP_FAILED is over): a replay can deliver it.",
        why=_failed_kept,
        next=lambda _, value: next_steps.for_recording(value),
    ),
    Rule(
        name="failed-live",
        meaning="A recording has failed with nothing captured while its session is still Open: there may be something to save.",
        why=_failed_live,
        next=lambda _, value: next_steps.for_recording(value),
    ),
    Rule(
        name="no-media",
        meaning=f"A speaker is publishing by TRTC's callbacks, and {MANY_TRIES} pulls in a row or more brought nothing.",
        why=_no_media,
        next=lambda _, value: next_steps.for_recording(value),
    ),
    Rule(
        name="tried-often",
        meaning=f"A transcode or upload has failed {MANY_TRIES} times in a row or more, and is tried again by itself.",
        why=_tried_often,
        next=lambda _, value: next_steps.for_recording(value),
    ),
    Rule(
        name="not-taken",
        meaning=f"A job has been queued for longer than {QUEUED_TOO_LONG_MS // model.SECOND} s: no worker takes it.",
        why=_not_taken,
        next=lambda _, value: next_steps.send_again(value.task_id, value),
    ),
    Rule(
        name="lease-over",
        meaning="The lease of a job is over, and nobody has taken the work over.",
        why=_lease_over,
        next=lambda _, value: next_steps.send_again(value.task_id, value),
    ),
)
CALLBACK_RULES = (
    Rule(
        name="not-delivered",
        meaning="The newest result was not taken by the callback URL and is not sent again (listed until KEEP_FAILED is over).",
        why=_not_delivered,
        next=lambda snapshot, _: next_steps.fetch_result(snapshot.session.task_id),
    ),
    Rule(
        name="refused-often",
        meaning=f"The newest result was refused by the callback URL {MANY_TRIES} times or more, and is sent again by itself.",
        why=_refused_often,
        next=lambda snapshot, _: next_steps.mend_receiver(snapshot.session.task_id),
    ),
    Rule(
        name="not-taken",
        meaning="As for recordings.",
        why=_not_taken,
        next=lambda snapshot, _: next_steps.look_around(snapshot.session.task_id),
    ),
    Rule(
        name="lease-over",
        meaning="As for recordings.",
        why=_lease_over,
        next=lambda snapshot, _: next_steps.look_around(snapshot.session.task_id),
    ),
)


def _for(time_ms: int) -> str:
    """A time span as people say it."""
    seconds = time_ms // model.SECOND
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"
