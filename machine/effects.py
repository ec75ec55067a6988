"""What a decision asks for besides the new state. Values only; written in the same transaction. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Send the command `type` for the owner's present epoch."""

    type: str


@dataclass(frozen=True, slots=True)
class Arm:
    """Let `deadline-passed` of `kind` come at `at_ms` (Unix ms); an earlier arming of the same kind is replaced."""

    kind: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Disarm:
    """Take the deadline of `kind` away."""

    kind: str


@dataclass(frozen=True, slots=True)
class Report:
    """Publish what became of this recording, and tell its session that it has ended."""


@dataclass(frozen=True, slots=True)
class StopRecordings:
    """Tell every recording of the session that it closes."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Publish the session's result under its present revision; cancel what is undelivered of older ones."""


Effect = Command | Arm | Disarm | Report | StopRecordings | Finish
