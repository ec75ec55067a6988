"""Plans of chaos runs, made from a seed.

A strike kills, freezes or fails a process when it reaches `point` for the `hit`-th time. Rule: the same engine and seed give the
same plan; the scheduler of the operating system may still order the run differently.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from machine import failpoints

EMBEDDED, DISTRIBUTED = ENGINES = ("embedded", "distributed")
KILL, FREEZE, RAISE = ACTS = ("kill", "freeze", "raise")
NATIVE, FFMPEG = CAPTURES = ("native", "ffmpeg")
DISMISS, STOP, LEAVE = ENDINGS = ("dismiss", "stop", "leave")
"""The endings of a room: it is dismissed, the session is stopped, or the speakers leave and then it is dismissed."""

HITS = {
    "inbox": 14, "decision": 14, "bus": 10, "outbox": 14, "lease.take": 6, "lease.renew": 8, "callback": 1, "manifest": 1,
}  # fmt: skip
"""How often a room with two speakers reaches the failpoints of these names, at least; the others at least twice."""
SKEWS_MS = (1_000, 1_500, 5_000, 61_000, 600_000, 3_600_000)
SKEWED = 0.5
"""The share of runs on many nodes in which clocks are off."""
IN_CAPTURE = 0.4
"""The share of runs with one more kill in the middle of a capture, which measures the lost media."""
FOLLOWED = 0.7
"""The share of runs with native captures in which these are followed."""
BOUNDED = 0.5
"""The share of followed runs on one node whose spool is bounded."""
PART_HITS = 12
"""How often a run on a bounded spool sends a part, at most: while the room is live, and the first part at the end."""
NODES = ("control", "worker1", "worker2")
"""The nodes of the distributed engine."""
CONTROL_ONLY = ("inbox", "decision")
WORKER_ONLY = ("lease", "capture", "segment", "transcode", "upload", "callback", "manifest", "cleanup")
# Phases are far apart in the life of a recording, so the strikes of one run do not prevent each other.
PHASES = (
    ("inbox", "decision", "lease.take"),
    ("capture.spawn", "capture.media", "lease.renew"),
    ("outbox", "bus"),
    ("capture.stop", "segment"),
    ("transcode",),
    ("upload.create", "upload.part", "upload.complete"),
    ("upload.head", "upload.done"),
    ("callback", "cleanup", "manifest"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One act at one failpoint."""

    point: str
    hit: int
    act: str

    @property
    def roles(self) -> tuple[str, ...]:
        """The kinds of node that reach this failpoint when there are many: `control` (roles api and machine), `worker`."""
        if self.point.startswith(CONTROL_ONLY):
            return ("control",)
        return ("worker",) if self.point.startswith(WORKER_ONLY) else ("control", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. `away_s`: how long a killed worker stays away where others can take over; `shared`: one spool for all workers;
    `part`: not 0 for a plan of `grouped`; `skews`: node → (s after its start, ms that its clock is ahead from then on);
    `capture`: the setting CAPTURE of all nodes; `follow`: the setting FOLLOW, within seconds; `bounded`: on a bounded spool."""

    engine: str
    seed: int
    strikes: tuple[Strike, ...]
    ending: str = DISMISS
    away_s: float = 0.0
    shared: bool = True
    part: int = 0
    skews: Mapping[str, Sequence[tuple[float, int]]] = field(default_factory=dict)
    capture: str = NATIVE
    follow: bool = False
    bounded: bool = False

    @property
    def repeat(self) -> str:
        """The command that repeats the run."""
        more = f" --part {self.part}" * bool(self.part)
        more += f" --follow --spool-policy {'bounded' if self.bounded else 'keep'}" * self.follow
        return f"python -m tests.chaos --engine {self.engine} --seed {self.seed}{more}"


def points(engine: str) -> list[str]:
    """The failpoints of an engine, in the order of the table."""
    others = failpoints.BOUNDED_ONLY if engine == DISTRIBUTED else failpoints.DISTRIBUTED_ONLY
    return [name for name in failpoints.POINTS if name not in others]


def make(engine: str, seed: int) -> Plan:
    """The plan of a seed. The failpoints take turns: one strike, often a second one half the table further on, and often a kill
    in the middle of the captures."""
    chance = random.Random(f"{engine} {seed}")
    names = points(engine)
    struck = [names[seed % len(names)]]
    if engine == DISTRIBUTED or chance.random() < 0.4:
        struck.append(names[(seed + len(names) // 2) % len(names)])
    acts = [_act(chance) for _ in struck]
    strikes = tuple(
        Strike(point=name, hit=chance.randint(1, _most(name)), act=act) for name, act in zip(struck, acts, strict=True)
    )
    if seed < len(names):  # the first round of seeds strikes each point for certain, because a first hit always happens
        strikes = (replace(strikes[0], hit=1), *strikes[1:])
    if chance.random() < IN_CAPTURE:
        strikes = (*strikes, Strike(point="lease.renew.after", hit=chance.randint(2, 8), act=KILL))
    made = Plan(
        engine=engine,
        seed=seed,
        strikes=strikes,
        ending=_ending(strikes, chance.choice(ENDINGS)),
        away_s=chance.choice((0.0, 6.0)),
        shared=chance.random() < 0.7,
        skews=_skews(chance) if engine == DISTRIBUTED and chance.random() < SKEWED else {},
        capture=chance.choice(CAPTURES),
    )
    if chance.random() < FOLLOWED and may_follow(made):
        made = followed(made, bounded=chance.random() < BOUNDED)
    return followed(made, bounded=True) if needs_bounded(made) else made


def followed(plan: Plan, *, bounded: bool) -> Plan:
    """The plan with FOLLOW, on one node with a `bounded` spool. There parts are struck wherever they come, the first one last."""
    bounded = plan.engine == EMBEDDED and (bounded or needs_bounded(plan))
    hits = random.Random(plan.seed)
    strikes = [
        replace(each, hit=hits.randint(1, PART_HITS)) if bounded and each.point.startswith("upload.part") else each
        for each in plan.strikes
    ]
    return replace(plan, capture=NATIVE, follow=True, bounded=bounded, strikes=tuple(strikes))


def needs_bounded(plan: Plan) -> bool:
    """Whether a plan strikes what only a bounded spool has."""
    return any(strike.point in failpoints.BOUNDED_ONLY for strike in plan.strikes)


def may_follow(plan: Plan) -> bool:
    """Whether a plan is as good with FOLLOW: ffmpeg's segments cannot be followed, and a follower's transcode is not struck."""
    return plan.capture == NATIVE and not any(strike.point.startswith("transcode") for strike in plan.strikes)


def _skews(chance: random.Random) -> dict[str, list[tuple[float, int]]]:
    """One or two of the nodes have a wrong clock; every third one of them is set while it runs."""
    found = {}
    for name in chance.sample(NODES, chance.choice((1, 2))):
        off = [chance.choice((-1, 1)) * chance.choice(SKEWS_MS) for _ in range(2)]
        found[name] = [(0.0, off[0]), *([(chance.uniform(3, 8), off[1])] if chance.random() < 1 / 3 else [])]
    return found


def grouped(engine: str, seed: int, *, part: int = 1) -> list[Plan]:
    """A few runs with many strikes each, apart in time: every failpoint once, or with `part` every `part`-th one, chosen by the
    seed. One run more has those of a bounded spool."""
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
        capture = CAPTURES[(seed + place) % len(CAPTURES)]
        ending = _ending(strikes, DISMISS)
        plan = Plan(engine=engine, seed=seed, strikes=strikes, ending=ending, part=part, capture=capture)
        made.append(replace(plan, follow=may_follow(plan)))
    bounded = [Strike(point=name, hit=1, act=KILL) for name in chosen if name in failpoints.BOUNDED_ONLY]
    if bounded:
        made.append(followed(Plan(engine=engine, seed=seed, strikes=tuple(bounded), part=part), bounded=True))
    return made


def _ending(strikes: Sequence[Strike], otherwise: str) -> str:
    """STOP where a strike needs it: a capture whose stream ends may be over before its `stop-capture` arrives."""
    return STOP if any(strike.point.startswith("capture.stop") for strike in strikes) else otherwise


def _act(chance: random.Random, *, freezes: int = 2) -> str:
    return chance.choices(ACTS, weights=(6, freezes, 3))[0]


def _most(name: str) -> int:
    return next((hits for start, hits in HITS.items() if name.startswith(start)), 2)


def sentence(strikes: Sequence[Strike]) -> str:
    """The strikes as text."""
    return ", ".join(f"{s.act} at {s.point} ({s.hit})" for s in strikes)
