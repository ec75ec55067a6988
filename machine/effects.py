"""Effects: what a decision yields besides the new state.

Rule: values only. The unit of work makes changes of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Send the command `type` under the owner's current epoch."""

    type: str


@dataclass(frozen=True, slots=True)
class Arm:
    """Arm the deadline `kind` for `at_ms` (Unix ms). It replaces an earlier one of the same kind, unless `once`."""

    kind: str
    at_ms: int
    once: bool = False


@dataclass(frozen=True, slots=True)
class Disarm:
    """Disarm the deadline `kind`."""

    kind: str


@dataclass(frozen=True, slots=True)
class Report:
    """Publish the recording's result."""


@dataclass(frozen=True, slots=True)
class StopRecordings:
    """Stop every recording of the session, which closes for `reason` (the contract's EndReason)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Publish the session's result under its current revision, and cancel pending deliveries of older ones."""


Effect = Command | Arm | Disarm | Report | StopRecordings | Finish
