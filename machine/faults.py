"""Named points where a crash matters. A no-op until the composition root installs a harness.

Imports nothing. Rule: `faultpoint` never changes what the program does unless a harness was installed; names are
`room.step.before` or `room.step.after`.
"""

from __future__ import annotations

from collections.abc import Callable

_harness: Callable[[str], None] | None = None


def install(harness: Callable[[str], None] | None) -> None:
    """Install the function that every fault point calls with its name (None removes it). Only `service.py` and tests do this."""
    global _harness
    _harness = harness


def faultpoint(name: str) -> None:
    """Say that the program is at the boundary `name`; the harness may kill, freeze or raise here."""
    if _harness is not None:
        _harness(name)
