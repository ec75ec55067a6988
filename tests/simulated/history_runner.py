"""One history by its seed: the script, its play without faults, its play with faults, and the verdict.

Rule: sixteen consecutive seeds share a script, and so its play without faults; each seed has a fault profile of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulated import fault_profile, script, verdicts, world

PER_SCRIPT = len(fault_profile.KINDS)


@dataclass(slots=True)
class Summary:
    """The figures of one history."""

    events: int = 0
    faults: int = 0
    kind: str = ""


@functools.lru_cache(maxsize=4)
def ordered(number: int, *, roomy: bool) -> dict[str, Any]:
    """The end of a script without faults."""
    played = world.World(script.write(number, roomy=roomy), fault_profile.calm()).play()
    verdicts.true(played)
    verdicts.told(played)
    if roomy:
        verdicts.predicted(played)
    return verdicts.of(played)


def kind_of(seed: int) -> tuple[str, bool]:
    """The kind of faults of a seed, and whether its script is a roomy one."""
    kind = fault_profile.KINDS[seed % PER_SCRIPT]
    return kind, kind == "rough" or seed // PER_SCRIPT % 2 == 0


def history(seed: int, show: Callable[[str], None] | None = None) -> Summary:
    """Play the history of a seed and judge it; `show` gets each line of it. Raises AssertionError."""
    kind, roomy = kind_of(seed)
    number = seed // PER_SCRIPT
    outer = script.write(number, roomy=roomy)
    profile = fault_profile.rough(seed, kind, max(act.at_ms for act in outer.acts))
    ordered_end = ordered(number, roomy=roomy)
    if show is not None:
        show(f"script  {outer}\nfaults  {profile}\nordered {ordered_end}")
    played = world.World(outer, profile, show).play()
    if show is not None:
        show(f"end     {verdicts.of(played)}")
    verdicts.true(played)
    verdicts.told(played)
    if kind == "rough":
        verdicts.same(ordered_end, verdicts.of(played))
    else:
        verdicts.excused(ordered_end, played)
    return Summary(events=played.events, faults=played.faults, kind=kind)
