"""Cases of the recording's state machine: every key × every event × the values of the relevant facts.

Rule: a case names states, captures and events in its own words; it takes none of them from the machine's table.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from machine import internal_events, model, recording_facts

NOW_MS = 1_800_000_000_000
EPOCH = 7
POLICY = model.Policy()

STATES = ("Joining", "Recording", "Transcoding", "Uploading", "Done", "Failed")
CAPTURES = ("none", "waiting", "queued", "leased")
EVENTS = (
    "user-publishing",
    "user-left",
    "stop",
    "capture-started",
    "capture-exit",
    "transcode-exit",
    "upload-finished",
    "upload-failed",
    "worker-lost",
    "retry-due",
    "linger-over",
    "idle-over",
    "replay",
    "media-found",
    "node-return-over",
)
CAPTURING = ("Joining", "Recording")
FINAL = ("Done", "Failed")
LASTED_MS = 10_000
OUTPUT = {"DurationMs": 5_000, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": [{"AtMs": 1, "DurationMs": 2}]}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One key, one event, and the relevant facts."""

    state: str
    stop: bool
    capture: str
    event: str
    job: str = ""  # of a transcode or an upload: "", waiting, queued or leased
    present: bool | None = None
    never_seen: bool = False
    last_pull: bool = False
    publish_pending: bool = False
    failures: int = 0
    media_ms: int = 0
    reason: str = "eof"
    retry: bool = True
    stale: bool = False
    media_lately: bool = False
    upload_over: bool = False
    segments: bool = False
    output: bool = False
    remade: int = 0
    from_: str = ""
    home: str = ""
    target_away: bool = False

    @property
    def short(self) -> str:
        """The differences from the default, for messages."""
        said = [
            f.name for f in dataclasses.fields(self) if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        ]
        return " ".join(f"{name}={getattr(self, name)}" for name in said)

    @property
    def row(self) -> model.Recording:
        """The recording of this key."""
        job = None
        if self.capture != "none":
            job = model.Job(kind="capture", state=self.capture, node="n" if self.capture == "leased" else "")
        elif self.job:
            job = model.Job(kind={"Transcoding": "transcode"}.get(self.state, "upload"), state=self.job)
        return model.Recording(
            task_id="T",
            speaker="al",
            n=1,
            state=self.state,
            stop_requested=self.stop,
            epoch=EPOCH,
            failures=self.failures,
            present=self.present,
            never_seen=self.never_seen,
            last_pull=self.last_pull,
            publish_pending=self.publish_pending,
            idle_from_ms=NOW_MS - (1_000 if self.media_lately else POLICY.idle_timeout_ms + 1),
            stage_started_ms=NOW_MS - (POLICY.upload_retry_for_ms + 1 if self.upload_over else 1_000),
            code="FailedRecording" if self.state == "Failed" else "",
            output=model.Output.from_json(OUTPUT | {"Remade": self.remade}) if self.output else None,
            job=job,
        )

    @property
    def outcome(self) -> internal_events.RecordingOutcome | None:
        """The payload of the event, if it has one."""
        epoch = EPOCH - 1 if self.stale else EPOCH
        match self.event:
            case "capture-started":
                return internal_events.CaptureStarted(epoch=epoch)
            case "capture-exit" | "transcode-exit":
                return internal_events.FfmpegExit(
                    epoch=epoch,
                    job=self.event.removesuffix("-exit"),
                    reason=self.reason,
                    retry=self.retry,
                    media_ms=self.media_ms,
                    size_bytes=9,
                    output=model.Output.from_json(OUTPUT) if self.reason == "ok" else None,
                )
            case "upload-finished":
                return internal_events.UploadFinished(epoch=epoch, size_bytes=9, crc64="1", url="https://x/y")
            case "upload-failed":
                return internal_events.UploadFailure(epoch=epoch, reason=self.reason, retry=self.retry)
            case "worker-lost":
                return internal_events.WorkerLost(owner="T/al/1", epoch=epoch, node="n", media_ms=self.media_ms, size_bytes=9)
        return None

    @property
    def facts(self) -> recording_facts.RecordingFacts:
        """The event's data."""
        return recording_facts.RecordingFacts(
            now_ms=NOW_MS,
            policy=POLICY,
            has_segments=self.segments,
            has_output=self.output,
            outcome=self.outcome,
            from_stage=self.from_,
            home=self.home,
            target_away=self.target_away,
        )


def every_case() -> Iterator[Case]:
    """Every key × every event × the values of the relevant facts."""
    for state, stop, capture, event in itertools.product(STATES, (False, True), CAPTURES, EVENTS):
        jobs = ("", "waiting", "queued", "leased") if state in ("Transcoding", "Uploading") and capture == "none" else ("",)
        for job in jobs:
            for extra in _facts_that_matter(state, event):
                yield Case(state=state, stop=stop, capture=capture, event=event, job=job, **extra)


def _facts_that_matter(state: str, event: str) -> Iterator[dict[str, Any]]:
    reasons = (
        "eof",
        "stopped",
        "stalled",
        "refused",
        "refused-for-good",
        "disk-full",
        "spool-lost",
        "new-track",
        "no-media",
        "error",
    )
    values: dict[str, tuple[Any, ...]] = {
        "capture-started": {"stale": (False, True)},
        "capture-exit": {
            "stale": (False, True),
            "media_ms": (0, 5_000),
            "reason": reasons,
            "present": (None, True, False),
            "last_pull": (False, True),
            "publish_pending": (False, True),
            "segments": (False, True),
        },
        "worker-lost": {
            "stale": (False, True),
            "media_ms": (0, 5_000, LASTED_MS),
            "present": (None, True, False),
            "last_pull": (False, True),
            "failures": (0, 4, 5, 9),
            "upload_over": (False, True) if state == "Uploading" else (False,),
            "segments": (False, True),
        },
        "transcode-exit": {
            "stale": (False, True),
            "reason": ("ok", "ffmpeg-failed", "node-away", "node-stopping", "disk-full", "spool-lost"),
            "retry": (False, True),
            "failures": (0, 1, 2),
            "upload_over": (False, True),
        },
        "upload-finished": {"stale": (False, True)},
        "upload-failed": {
            "stale": (False, True),
            "reason": ("network", "file-missing", "file-damaged"),
            "retry": (False, True),
            "upload_over": (False, True),
            "failures": (0, 50),
            "segments": (False, True),
            "output": (False, True),
            "remade": (0, 2, 3),
        },
        "linger-over": {"present": (None, True, False)},
        "stop": {"segments": (False, True), "home": ("", "n9")},
        "idle-over": {
            "present": (None, True, False),
            "never_seen": (False, True),
            "media_lately": (False, True),
            "segments": (False, True),
        },
        "user-publishing": {"present": (None, True, False), "last_pull": (False, True), "never_seen": (False, True)},
        "user-left": {"present": (None, True, False), "last_pull": (False, True)},
        "node-return-over": {"target_away": (False, True), "upload_over": (False, True)},
        "replay": {
            "home": ("", "n9"),
            "from_": ("", "joining", "transcoding", "uploading"),
            "segments": (False, True),
            "output": (False, True),
        },
    }.get(event, {})
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))
