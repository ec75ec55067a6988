"""Report of all runs: the printed table, and report.json.

Rules: a run counts for every failpoint that was struck in it, and each fault of the run is charged to all of them. The media
that kills cost is listed by engine and kind of capture, because the kinds promise different limits.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests import waiting
from tests.chaos import cover, media, plans, worlds

FAULTS = ("lost_recordings", "lost_results", "doubled_results", "doubled_objects", "leaked_uploads", "orphan_processes")
OTHER = ("unfinished", "exit_codes", "media")
# The loss is counted in whole frames of the stream.
MEDIA_LIMIT_S = {capture: limit_s + 1 / media.RATE for capture, limit_s in cover.LOST_S.items()}
HEADS = ("lost rec", "lost res", "dbl res", "dbl obj", "leaks", "orphans")


def summary(outcomes: Sequence[worlds.Outcome]) -> dict[str, Any]:
    """The whole report."""
    lost = {
        engine: {capture: _distribution(_lost_s(engine, capture, outcomes)) for capture in plans.CAPTURES}
        for engine in plans.ENGINES
    }
    return {
        "runs": len(outcomes),
        "captures": {capture: sum(o.plan.capture == capture for o in outcomes) for capture in plans.CAPTURES},
        "followed": {"runs": sum(o.plan.follow for o in outcomes), "files": _followed(outcomes)},
        "bounded": {"runs": sum(o.plan.bounded for o in outcomes), "files": _bounded(outcomes)},
        "points": [_point(engine, point, outcomes) for engine in plans.ENGINES for point in _struck_points(engine, outcomes)],
        "unstruck": {engine: _unstruck(engine, outcomes) for engine in plans.ENGINES},
        "repeated_posts": sum(o.repeated_posts for o in outcomes),
        "heard": sum(o.heard for o in outcomes),
        "repeated_deliveries": sum(o.repeated_deliveries for o in outcomes),
        "media_lost_to_a_kill_s": lost,
        "speakers_judged": {engine: _judged(engine, outcomes) for engine in plans.ENGINES},
        "failures": [_failure(o) for o in outcomes if o.failed],
        "too_much_media_lost": too_much_lost(outcomes),
    }


def shortfalls(engines: Sequence[str], outcomes: Sequence[worlds.Outcome]) -> list[str]:
    """Omissions of a full run on these engines. Without this check, 0 faults could mean that nothing was checked."""
    found = []
    for engine in engines:
        runs = [o for o in outcomes if o.plan.engine == engine]
        if not any(o.covers for o in runs):
            found.append(f"{engine}: no file was examined")
        for capture in plans.CAPTURES:
            if not _lost_s(engine, capture, outcomes):
                found.append(f"{engine}: no kill hit a capture by {capture}, so no loss was measured")
        if unstruck := [point for point in plans.points(engine) if point not in _struck_points(engine, outcomes)]:
            found.append(f"{engine}: not struck: {', '.join(unstruck)}")
    return found


def too_much_lost(outcomes: Sequence[worlds.Outcome]) -> list[str]:
    """The engines and captures with which more than MEDIA_LIMIT_S is lost at the 99th percentile; later on a busy machine, on
    which what arrived waits for the processor."""
    found = []
    for engine, capture in itertools.product(plans.ENGINES, plans.CAPTURES):
        lost, limit_s = sorted(_lost_s(engine, capture, outcomes)), waiting.limit_s(MEDIA_LIMIT_S[capture])
        if lost and _percentile(lost, 99) > limit_s:
            found.append(f"{engine}, {capture}: {_percentile(lost, 99):.2f} s, allowed {limit_s:.2f} s")
    return found


def _lost_s(engine: str, capture: str, outcomes: Sequence[worlds.Outcome]) -> list[float]:
    """The media that each capture of this kind lost to the kill that took it along."""
    return [s for o in outcomes if (o.plan.engine, o.plan.capture) == (engine, capture) for s in o.media_lost_s]


def write(path: Path, outcomes: Sequence[worlds.Outcome], about: dict[str, Any]) -> None:
    """Write the report, and every run into runs.jsonl in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | summary(outcomes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [json.dumps(asdict(o), default=str, ensure_ascii=False) for o in outcomes]
    path.with_name("runs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(outcomes: Sequence[worlds.Outcome]) -> str:
    """The table to print."""
    lines = []
    for engine in plans.ENGINES:
        rows = [_point(engine, point, outcomes) for point in _struck_points(engine, outcomes)]
        if not rows:
            continue
        lines += ["", f"{engine:25} runs  kill frz raise " + "".join(f"{h:>9}" for h in HEADS) + "   s to end (max)"]
        for row in rows:
            acts = "".join(f"{row['acts'].get(a, 0):>5}" for a in plans.ACTS)
            faults = "".join(f"{row[name]:>9}" for name in FAULTS)
            end = f"{row['end_median_s']:>8} ({row['end_max_s']})" if row["end_max_s"] is not None else "       –"
            lines.append(f"{row['point']:25}{row['runs']:>5}{acts}{faults}{end}")
        for capture in plans.CAPTURES:
            lost = _distribution(_lost_s(engine, capture, outcomes))
            lines.append(f"media lost to a kill, by {capture} capture that it hit, s: {_values(lost)}")
        of_engine = [o for o in outcomes if o.plan.engine == engine]
        lines.append(f"followed: {sum(o.plan.follow for o in of_engine)} runs, {_followed(of_engine)} files made by followers")
        lines.append(f"on a bounded spool: {sum(o.plan.bounded for o in of_engine)} runs, files by speaker {_bounded(of_engine)}")
        heard = [(o.heard, o.repeated_deliveries) for o in outcomes if o.plan.engine == engine]
        if engine == plans.DISTRIBUTED:
            lines.append(f"heard by a subscriber: {sum(n for n, _ in heard)} results, {sum(n for _, n in heard)} of them again")
        lines.append(f"missing without a reason, s: {_values(_judged(engine, outcomes))}")
    return "\n".join(lines)


def _followed(outcomes: Sequence[worlds.Outcome]) -> int:
    """The files that followers made; of the others the usual transcode did."""
    return sum(sum(o.followed) for o in outcomes)


def _bounded(outcomes: Sequence[worlds.Outcome]) -> dict[str, int]:
    """How many speakers of runs on a bounded spool got so many files."""
    counts = Counter(number for o in outcomes if o.plan.bounded for number in o.files)
    return {str(number): count for number, count in sorted(counts.items())}


def failure(outcome: worlds.Outcome) -> str:
    """A failed run as text, with the command that repeats it."""
    faults = [f"  {name}: {each}" for name, faults in outcome.faults.items() for each in faults]
    struck = plans.sentence(outcome.plan.strikes)
    ends = [f"  again: {outcome.plan.repeat}", f"  logs:  {outcome.folder}"]
    return "\n".join([f"FAILED {outcome.plan.capture} {struck}", *faults, *ends])


def _failure(outcome: worlds.Outcome) -> dict[str, Any]:
    faults = {name: each for name, each in outcome.faults.items() if each}
    plan = {"repeat": outcome.plan.repeat, "capture": outcome.plan.capture, "follow": outcome.plan.follow}
    plan |= {"bounded": outcome.plan.bounded}
    return plan | {"strikes": outcome.struck, "faults": faults, "folder": str(outcome.folder)}


def _struck_points(engine: str, outcomes: Sequence[worlds.Outcome]) -> list[str]:
    struck = {s["Point"] for o in outcomes if o.plan.engine == engine for s in o.struck}
    return [point for point in plans.points(engine) if point in struck]


def _unstruck(engine: str, outcomes: Sequence[worlds.Outcome]) -> list[str]:
    if not any(o.plan.engine == engine for o in outcomes):
        return []
    return [point for point in plans.points(engine) if point not in _struck_points(engine, outcomes)]


def _point(engine: str, point: str, outcomes: Sequence[worlds.Outcome]) -> dict[str, Any]:
    runs = [o for o in outcomes if o.plan.engine == engine and point in {s["Point"] for s in o.struck}]
    acts = [s["Act"] for o in runs for s in o.struck if s["Point"] == point]
    ends = [o.seconds_to_end for o in runs if o.seconds_to_end is not None]
    return {
        "engine": engine,
        "point": point,
        "runs": len(runs),
        "acts": {act: acts.count(act) for act in plans.ACTS},
        **{name: sum(len(o.faults.get(name, ())) for o in runs) for name in (*FAULTS, *OTHER)},
        "end_median_s": round(statistics.median(ends), 1) if ends else None,
        "end_max_s": round(max(ends), 1) if ends else None,
    }


def _judged(engine: str, outcomes: Sequence[worlds.Outcome]) -> dict[str, float]:
    """How many speakers' files were compared with the frames that were sent, and the largest fault of each kind."""
    covers = [each for o in outcomes if o.plan.engine == engine for each in o.covers]
    if not covers:
        return {}
    most = {name: max(getattr(each, f"{name}_s") for each in covers) for name in ("head", "tail", "unreported", "unpulled")}
    return {"count": len(covers)} | {name: round(each, 3) for name, each in most.items()}


def _distribution(lost: Sequence[float]) -> dict[str, float]:
    if not lost:
        return {}
    ordered = sorted(lost)
    named = {f"p{each}": _percentile(ordered, each) for each in (50, 90, 99)}
    return {"count": len(ordered), "min": ordered[0], **named, "max": ordered[-1]}


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that at least this percentage of the values does not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _values(lost: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in lost.items()) or "nothing measured"
