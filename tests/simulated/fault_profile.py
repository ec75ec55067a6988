"""The faults of one history, from a seed: copies, delay, loss, deaths, freezes, crashes, conflicts.

Three kinds. `rough`: faults that must not change the end of a history. Bus messages are repeated up to five times and delayed by
up to 10 s (outcomes of workers sometimes by a minute, longer than a lease). Callbacks are delayed by up to 20 s, in any order.
Nodes die or freeze at most three times. The clocks of their machines are up to an hour off, and are set. Relays and deciders die
between any two steps. `lossy`: callbacks are also lost. `late`: callbacks are delayed by up to a minute, which is when TRTC gives
up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from machine import model

S = model.SECOND
SKEWS_MS = [sign * ahead_ms for ahead_ms in (0, 1 * S, 40 * S, 10 * model.MINUTE, model.HOUR) for sign in (1, -1)]
KINDS = ("rough", "rough", "rough", "rough", "rough", "lossy", "lossy", "late") * 2


@dataclass(slots=True)
class FaultProfile:
    """The bounds of the faults. Chances are per message or decision."""

    kind: str = "calm"
    seed: int = 0
    copies: int = 0
    bus_late_ms: int = 0
    trtc_late_ms: int = 0
    straggles: float = 0.0
    lost: float = 0.0
    conflict: float = 0.0
    crash: float = 0.0
    relay_dies: float = 0.0
    all_sweep: bool = False
    deaths: list[tuple[int, str, int]] = field(default_factory=list)  # when, which node, back after (0: never)
    freezes: list[tuple[int, str, int]] = field(default_factory=list)
    clocks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # of a node: from when, how far its clock is ahead

    def skew_ms(self, node: str, elapsed_ms: int) -> int:
        """How far the clock of a node's machine is ahead now."""
        return next((ahead_ms for from_ms, ahead_ms in reversed(self.clocks.get(node, [])) if from_ms <= elapsed_ms), 0)


def calm() -> FaultProfile:
    """No faults: the ordered history."""
    return FaultProfile()


def rough(seed: int, kind: str, span_ms: int) -> FaultProfile:
    """The faults of a seed over a script of `span_ms`."""
    chance = random.Random(seed ^ 0x5EED)
    made = FaultProfile(kind=kind, seed=seed)
    made.copies = chance.choice((0, 1, 2, 5))
    made.bus_late_ms = chance.choice((100, 1 * S, 3 * S, 10 * S))
    made.trtc_late_ms = 60 * S if kind == "late" else chance.choice((200, 5 * S, 20 * S))
    made.straggles = chance.choice((0.0, 0.0, 0.04))
    made.lost = chance.choice((0.1, 0.3, 0.6)) if kind == "lossy" else 0.0
    made.conflict = chance.choice((0.0, 0.0, 0.05, 0.2))
    made.crash = chance.choice((0.0, 0.02, 0.1))
    made.relay_dies = chance.choice((0.0, 0.05, 0.3))
    made.all_sweep = chance.random() < 0.3
    for _ in range(chance.choice((0, 0, 1, 2, 3))):
        at_ms, node = chance.randrange(span_ms + 60 * S), chance.choice(("n1", "n2"))
        if chance.random() < 0.4:
            made.freezes.append((at_ms, node, chance.randrange(1 * S, 90 * S)))
        else:
            back_ms = chance.randrange(1 * S, 20 * S) if node == "n1" or chance.random() < 0.8 else 0
            made.deaths.append((at_ms, node, back_ms))
    made.clocks = _clocks(random.Random(seed ^ 0xC10C), span_ms)
    return made


def _clocks(chance: random.Random, span_ms: int) -> dict[str, list[tuple[int, int]]]:
    """Clocks that are off from the beginning, and set once or twice."""
    return {
        node: [(0, chance.choice(SKEWS_MS)), *sorted((chance.randrange(span_ms), chance.choice(SKEWS_MS)) for _ in range(2))]
        for node in ("n1", "n2")
        if chance.random() < 0.5
    }
