"""What a run does to the service, made from a seed. Imports the table of fault points.

A strike: at the `hit`-th time that a process comes by `point`, it kills, freezes or fails. Rule: the same engine and seed give
the same plan; what the operating system's scheduler makes of it is another matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from machine import failpoints

EMBEDDED, DISTRIBUTED = ENGINES = ("embedded", "distributed")
KILL, FREEZE, RAISE = ACTS = ("kill", "freeze", "raise")
DISMISS, STOP, LEAVE = ENDINGS = ("dismiss", "stop", "leave")
"""How the room ends: it is dismissed, the session is stopped, or the speakers leave and then it is dismissed."""

HITS = {
    "inbox": 14, "decision": 14, "bus": 10, "outbox": 14, "lease.take": 6, "lease.renew": 8, "callback": 1,
}  # fmt: skip
"""How often two speakers' room comes by the points of these names, at least; the others at least twice."""
IN_CAPTURE = 0.4
"""How many runs are killed once more in the middle of a capture, to see what media that costs."""
DESK_ONLY = ("inbox", "decision")
WORKER_ONLY = ("lease", "capture", "segment", "transcode", "upload", "callback", "cleanup")
# Apart in the life of a recording, so that the strikes of one run do not keep each other from happening.
PHASES = (
    ("inbox", "decision", "lease.take"),
    ("capture.spawn", "capture.media", "lease.renew"),
    ("outbox", "bus"),
    ("capture.stop", "segment"),
    ("transcode",),
    ("upload.create", "upload.part", "upload.complete"),
    ("upload.head", "upload.done"),
    ("callback", "cleanup"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What happens where. `roles` says which kind of node it may be on the engine of many nodes."""

    point: str
    hit: int
    act: str

    @property
    def roles(self) -> tuple[str, ...]:
        """The nodes that come by this point: `desk` (api and machine), `worker`."""
        if self.point.startswith(DESK_ONLY):
            return ("desk",)
        return ("worker",) if self.point.startswith(WORKER_ONLY) else ("desk", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. `away_s`: how long a killed worker stays dead where others can take over; `shared`: one spool for all
    workers; `part`: not 0 for a plan of `grouped`."""

    engine: str
    seed: int
    strikes: tuple[Strike, ...]
    ending: str = DISMISS
    away_s: float = 0.0
    shared: bool = True
    part: int = 0

    @property
    def repeat(self) -> str:
        """The line that does it again."""
        return f"python -m tests.chaos --engine {self.engine} --seed {self.seed}" + (f" --part {self.part}" if self.part else "")


def points(engine: str) -> list[str]:
    """The fault points that an engine has, in the order of the table."""
    return [name for name in failpoints.POINTS if engine == DISTRIBUTED or name not in failpoints.DISTRIBUTED_ONLY]


def make(engine: str, seed: int) -> Plan:
    """The plan of a seed: the points in turn, one strike, often a second one elsewhere (half the table further
    on), and often a kill in the middle of the captures."""
    chance = random.Random(f"{engine} {seed}")
    names = points(engine)
    struck = [names[seed % len(names)]]
    if engine == DISTRIBUTED or chance.random() < 0.4:
        struck.append(names[(seed + len(names) // 2) % len(names)])
    acts = [_act(chance) for _ in struck]
    strikes = tuple(
        Strike(point=name, hit=chance.randint(1, _most(name)), act=act) for name, act in zip(struck, acts, strict=True)
    )
    if seed < len(names):  # the first time round, where nothing else decides whether it happens: each point is struck
        strikes = (replace(strikes[0], hit=1), *strikes[1:])
    if chance.random() < IN_CAPTURE:
        strikes = (*strikes, Strike(point="lease.renew.after", hit=chance.randint(2, 8), act=KILL))
    return Plan(
        engine=engine,
        seed=seed,
        strikes=strikes,
        ending=_ending(strikes, chance.choice(ENDINGS)),
        away_s=chance.choice((0.0, 6.0)),
        shared=chance.random() < 0.7,
    )


def grouped(engine: str, seed: int, *, part: int = 1) -> list[Plan]:
    """Few runs with many strikes each, apart in time: every point once (or, of them, every `part`-th, chosen by the seed)."""
    chance = random.Random(f"{engine} {seed} grouped")
    names = points(engine)
    chosen = chance.sample(names, len(names) // part)
    lanes = [[name for name in chosen if name.startswith(phase)] for phase in PHASES]
    for lane in lanes:
        chance.shuffle(lane)
    width = max(map(len, lanes))
    made = []
    for place in range(width):
        struck = [lane[place] for lane in lanes if place < len(lane)]
        strikes = tuple(Strike(point=name, hit=1, act=_act(chance, freezes=1)) for name in struck)
        made.append(Plan(engine=engine, seed=seed, strikes=strikes, ending=_ending(strikes, DISMISS), part=part))
    return made


def _ending(strikes: Sequence[Strike], otherwise: str) -> str:
    """A capture whose stream ends may be over before it is told to stop; only a session that is stopped tells it for certain."""
    return STOP if any(strike.point.startswith("capture.stop") for strike in strikes) else otherwise


def _act(chance: random.Random, *, freezes: int = 2) -> str:
    return chance.choices(ACTS, weights=(6, freezes, 3))[0]


def _most(name: str) -> int:
    return next((hits for start, hits in HITS.items() if name.startswith(start)), 2)


def sentence(strikes: Sequence[Strike]) -> str:
    """The strikes, for people."""
    return ", ".join(f"{s.act} at {s.point} ({s.hit})" for s in strikes)
