"""A history by its seed: the script, its ordered play, its disturbed play, the judgement. Imports nothing of ours but the world.

Rule: sixteen seeds in a row share a script, and so the ordered history; each has weather of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulated import fault_profile, script, verdicts, world

PER_SCRIPT = len(fault_profile.KINDS)


@dataclass(slots=True)
class Told:
    """What a history came to."""

    events: int = 0
    faults: int = 0
    kind: str = ""


@functools.lru_cache(maxsize=4)
def ordered(number: int, *, roomy: bool) -> dict[str, Any]:
    """The end of a script when nothing goes wrong."""
    played = world.World(script.write(number, roomy=roomy), fault_profile.calm()).play()
    verdicts.true(played)
    if roomy:
        verdicts.foretold(played)
    return verdicts.of(played)


def kind_of(seed: int) -> tuple[str, bool]:
    """The weather of a seed, and whether its script is a roomy one."""
    kind = fault_profile.KINDS[seed % PER_SCRIPT]
    return kind, kind == "rough" or seed // PER_SCRIPT % 2 == 0


def history(seed: int, tell: Callable[[str], None] | None = None) -> Told:
    """Play the history of a seed and judge it. Raises AssertionError."""
    kind, roomy = kind_of(seed)
    number = seed // PER_SCRIPT
    outer = script.write(number, roomy=roomy)
    sky = fault_profile.rough(seed, kind, max(act.at_ms for act in outer.acts))
    should = ordered(number, roomy=roomy)
    if tell is not None:
        tell(f"script  {outer}\nweather {sky}\nordered {should}")
    played = world.World(outer, sky, tell).play()
    if tell is not None:
        tell(f"end     {verdicts.of(played)}")
    verdicts.true(played)
    if kind == "rough":
        verdicts.same(should, verdicts.of(played))
    else:
        verdicts.excused(should, played)
    return Told(events=played.events, faults=played.faults, kind=kind)
