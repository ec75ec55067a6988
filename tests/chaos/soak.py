"""Soak test: rooms begin and end for half an hour, and the resources of the service stay flat.

    make soak SOAK_MINUTES=30 SOAK_CAPTURES=50 SOAK_ENGINE=embedded SOAK_MODE=00

Rows are kept for a tenth of the run (KEEP_MESSAGES, KEEP_SESSIONS), so the run covers retention too. `soak_samples.py` holds the
bounds. They need at least ten minutes; a shorter run only warns. Sound of mode 00 is encoded, and of mode 02 copied: more streams
than a machine encodes at once fill the queue of transcodes. The run writes `var/soak/report.json` and prints a table. It ends
with 1 if a bound is broken, anything is left at the end, a session is stuck, or a recording or result is lost or doubled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import noise
from simulator import server
from simulator.cos import signature
from tests import backends, run_guard, service_process, waiting
from tests.chaos import soak_rooms, soak_samples
from tests.e2e import session_audit
from tests.e2e.conftest import BUCKET, SECRET_ID, SECRET_KEY, World

ROOT = Path(__file__).parents[2]
SPEAKERS = 2
# How long a room lasts. With more than so many captures it is longer, so that the same number ends in a minute.
LIVE_S, ENDING_CAPTURES = (40.0, 90.0), 50
FORGOTTEN_S = 90.0
# In a shorter run, the ends of single sessions decide whether a figure rises or falls.
JUDGED_MINUTES = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parameters of a run, from the environment."""

    minutes: float
    captures: int
    engine: str
    seed: int
    folder: Path
    mode: str = "00"

    @property
    def keep_s(self) -> float:
        """Retention of rows."""
        return max(20.0, self.minutes * 60 / 10)

    @property
    def every_s(self) -> float:
        """The time between two samples."""
        return min(10.0, max(2.0, self.minutes * 60 / 150))

    @staticmethod
    def of(environ: Mapping[str, str]) -> Plan:
        """The plan that an environment describes."""
        return Plan(
            minutes=float(environ.get("SOAK_MINUTES") or 30),
            captures=int(environ.get("SOAK_CAPTURES") or 50),
            engine=environ.get("SOAK_ENGINE") or backends.EMBEDDED,
            seed=int(environ.get("SOAK_SEED") or 1),
            folder=ROOT / (environ.get("SOAK_FOLDER") or "var/soak"),
            mode=environ.get("SOAK_MODE") or "00",
        )


class Soak:
    """One run: the world, its rooms and the samples."""

    def __init__(self, plan: Plan, world: World) -> None:
        self._plan = plan
        self.world = world
        self._tasks_file = plan.folder / "tasks.json"
        self._from_s = time.monotonic()
        self.samples: list[soak_samples.Sample] = []
        self.faults: list[str] = []
        longer = max(1.0, plan.captures / ENDING_CAPTURES)
        live = min(longer * LIVE_S[1], plan.minutes * 60 / 4)
        until_s = self._from_s + plan.minutes * 60
        count = max(1, plan.captures // SPEAKERS)
        self.rooms = soak_rooms.Rooms(
            world,
            count=count,
            until_s=until_s,
            live_s=(min(longer * LIVE_S[0], live / 3), live),
            seed=plan.seed,
            mode=plan.mode,
        )

    async def serve(self) -> None:
        """Start the service under the sampler, and wait for the first count of its tasks."""
        folder, keep = self._plan.folder / "service", f"{self._plan.keep_s:g}s"
        folder.mkdir(parents=True, exist_ok=True)
        backend = self.world.backend = backends.make(self._plan.engine, folder / "data")
        settings = self.world.settings() | backend.settings | {"KEEP_MESSAGES": keep, "KEEP_SESSIONS": keep, "KEEP_FAILED": "1h"}
        settings |= {"LINGER": f"{soak_rooms.LINGER_S:g}s", "IDLE_TIMEOUT": "30s", "SOAK_TASKS": str(self._tasks_file)}
        # The usual reserve of 300 captures is 75 GB; sound of minutes needs less than a megabyte.
        settings |= {"CAPTURE_RESERVE": "4MB"}
        self.world.service = service_process.ServiceProcess(folder, settings)
        self.world.service.program = "from tests.chaos import soak_sampler; soak_sampler.main()"
        await self.world.service.start()
        self.world.point_callbacks()
        await waiting.until(self._tasks_file.exists, 20, "the first count of tasks")

    async def run(self) -> tuple[soak_samples.Sample, soak_samples.Sample]:
        """Run the rooms; returns the sample before the first session and the sample after everything has ended."""
        before = await self.sample()
        watching = asyncio.create_task(self._watch())
        try:
            await self.rooms.run()
        finally:
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(ended, Exception):
                self.faults.append(f"after {len(self.samples)} samples no more were taken: {ended!r}")
        self.faults += await asyncio.to_thread(self._audit)
        self.faults += [f"{s['TaskId']} is stuck" for s in (await self.world.service.get("/sessions?stuck=true"))["Sessions"]]
        return before, await self._afterwards(before)

    async def sample(self) -> soak_samples.Sample:
        """Take one sample."""
        return await asyncio.to_thread(self._sample)

    def _sample(self) -> soak_samples.Sample:
        service = self.world.service
        assert self.world.backend is not None
        embedded = self._plan.engine == backends.EMBEDDED
        database = service.folder / "data" / "recorder.db" if embedded else Path()
        rows = session_audit.read(self.world.backend.database, soak_samples.COUNTS)
        figures = soak_samples.of_process(service.pid) | soak_samples.of_tasks(self._tasks_file)
        figures |= soak_samples.of_files(database, service.folder / "spool")
        figures |= {f"rows.{table}": float(found[0]["n"]) for table, found in rows.items()}
        return soak_samples.Sample(at_s=time.monotonic() - self._from_s, figures=figures)

    async def _watch(self) -> None:
        next_s = time.monotonic()
        while True:
            next_s += self._plan.every_s
            await soak_rooms.until(next_s)
            # The rooms stop one by one at the end, so samples of that time would not show a steady load.
            if time.monotonic() < self._from_s + self._plan.minutes * 60:
                self.samples.append(await self.sample())
            self._forget_objects()

    def _forget_objects(self) -> None:
        """Delete objects of sessions whose rows are long deleted: the disk of this machine is no part of the run."""
        judged = self.rooms.judged
        cos = self.world.simulator.folder / "cos"
        while judged and judged[0][0] < time.monotonic() - 3 * self._plan.keep_s:
            _, task_id = judged.pop(0)
            for folder in cos.glob(f"*/lessons/{task_id}"):
                # The bucket removes its empty folders too.
                shutil.rmtree(folder, ignore_errors=True)

    def _audit(self) -> list[str]:
        """The faults that the audit finds in the sessions that the database still has."""
        received: dict[str, list[tuple[str, bytes]]] = {}
        for posts in list(self.world.simulator.receiver.received.values()):
            for post in list(posts):
                headers = {name.lower(): value for name, value in post.headers.items()}
                received.setdefault(post.json()["TaskId"], []).append((headers["webhook-id"], post.body))
        assert self.world.backend is not None
        return session_audit.audit(self.world.backend.database, self.world.simulator.folder / "cos", received).faults

    async def _afterwards(self, before: soak_samples.Sample) -> soak_samples.Sample:
        """Wait until all rows are deleted and all resources released, at most until the deadline for both."""
        last = await self.sample()
        limit_s = time.monotonic() + self._plan.keep_s * 1.5 + FORGOTTEN_S
        while soak_samples.left(before, last, self._plan.captures) and time.monotonic() < limit_s:
            await soak_rooms.until(time.monotonic() + 2)
            last = await self.sample()
        self.faults += soak_samples.left(before, last, self._plan.captures)
        return last


def rows(
    samples: Sequence[soak_samples.Sample], before: soak_samples.Sample, after: soak_samples.Sample, captures: int
) -> list[list[str]]:
    """The table: before, mean and maximum, rise in the second half, allowed rise, and after everything has ended."""
    half = soak_samples.second_half(samples)
    lines = []
    for name, bound in soak_samples.BOUNDS.items():
        mean, rises = soak_samples.rise(half, name)
        most = max(s.figures[name] for s in samples)
        allowed = bound.allowed(mean, captures)
        figures = (before.figures[name], mean, most, rises, allowed, after.figures[name])
        lines.append([name, *(f"{figure:,.1f}" for figure in figures)])
    for name in soak_samples.UNBOUNDED:
        mean, rises = soak_samples.rise(half, name)
        most = max(s.figures[name] for s in samples)
        figures = [f"{figure:,.1f}" for figure in (before.figures[name], mean, most, rises)]
        lines.append([name, *figures, "-", f"{after.figures[name]:,.1f}"])
    return lines


async def soak(plan: Plan) -> int:
    """Run the plan; returns the exit code."""
    shutil.rmtree(plan.folder, ignore_errors=True)
    plan.folder.mkdir(parents=True)
    quiet = noise.Noise()
    account = signature.Account(secret_id=SECRET_ID, secret_key=SECRET_KEY)
    simulator = server.Simulator(folder=plan.folder / "tencent", accounts=[account], buckets=[BUCKET], announce_pulls=True)
    await simulator.start()
    run = Soak(plan, World(plan.folder, simulator, plan.engine))
    try:
        await run.serve()
        before, after = await run.run()
    finally:
        await run.world.service.stop()
        if run.world.backend is not None:
            await run.world.backend.remove(run.world.service.log)
        await simulator.stop()
    tally, faults = run.rooms.tally, [*run.rooms.tally.faults, *run.faults]
    risen = soak_samples.broken(run.samples, plan.captures)
    faults += risen if plan.minutes >= JUDGED_MINUTES else []
    captures = [s.figures["captures"] for s in soak_samples.second_half(run.samples)]
    summary = _summary(plan, tally, captures, str(quiet))
    table = noise.table(
        ["figure", "before", "mean", "most", "rise", "allowed", "after"], rows(run.samples, before, after, plan.captures)
    )
    sys.stdout.write("\n".join((table, summary, *faults, *(f"warning: {each}" for each in risen if each not in faults), "")))
    report: dict[str, Any] = {
        "plan": dataclasses.asdict(plan) | {"folder": str(plan.folder.relative_to(ROOT))},
        "summary": summary,
        "faults": faults,
        "tally": dataclasses.asdict(tally),
        "before": dict(before.figures),
        "after": dict(after.figures),
        "samples": [{"at_s": round(s.at_s, 1)} | {k: round(v, 2) for k, v in s.figures.items()} for s in run.samples],
    }
    (plan.folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return 1 if faults else 0


def _summary(plan: Plan, tally: soak_rooms.Tally, captures: Sequence[float], quiet: str) -> str:
    return (
        f"{plan.engine}, mode {plan.mode}, {plan.minutes:g} minutes, seed {plan.seed}: "
        f"{tally.finished} of {tally.started} sessions finished, "
        f"{tally.files} files with {tally.media_s / 3600:.1f} h of media, {tally.repeats} repeated posts; "
        f"{statistics.fmean(captures):.0f} captures at once ({min(captures):.0f} … {max(captures):.0f})\n{quiet}"
    )


def main() -> None:
    """The command."""
    run_guard.protect()
    sys.exit(asyncio.run(soak(Plan.of(os.environ))))


if __name__ == "__main__":
    main()
