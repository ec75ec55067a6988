"""Effects: what a decision yields besides the new state.

Rule: values only. The unit of work makes changes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
class Publish:
    """Publish this message to subscribers."""

    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StopRecordings:
    """Stop every recording of the session, which closes for `reason` (the contract's EndReason)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Publish the session's result under its current revision, and cancel pending deliveries of older ones."""


Effect = Command | Arm | Disarm | Report | Publish | StopRecordings | Finish
