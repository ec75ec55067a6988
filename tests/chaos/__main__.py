"""`python -m tests.chaos`: chaos for some minutes, or one seed again. Ends with 1 if anything was lost, doubled or left over.

After ten minutes or more it also ends with 1 if a failpoint was not struck or nothing was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

import structlog

from tests import run_guard
from tests.chaos import plans, report, runner, worlds

FULL_MINUTES = 10.0


def main() -> int:
    """Run the plans, print the table, write the report and return the exit code."""
    run_guard.protect()
    given = _arguments()
    folder: Path = given.folder.absolute()
    outcomes: list[worlds.Outcome] = []
    folder.mkdir(parents=True, exist_ok=True)
    structlog.configure(logger_factory=structlog.WriteLoggerFactory((folder / "simulator.log").open("w")))
    for engine in given.engine or plans.ENGINES:
        shutil.rmtree(folder / engine, ignore_errors=True)
        if given.seed is None:
            share_s = given.minutes * 60 / len(given.engine or plans.ENGINES)
            work = runner.for_a_while(share_s, engine, given.first)
        elif given.part:
            work = iter(plans.grouped(engine, given.seed, part=given.part))
        else:
            work = iter([plans.make(engine, given.seed)])
        if given.follow or given.spool_policy:
            work = (
                plans.followed(plan, bounded=given.spool_policy == "bounded" or (not given.spool_policy and plan.seed % 2 > 0))
                for plan in work
            )
        made = runner.carry_out(work, folder / engine, folder / "content", at_once=given.at_once, done=_print_outcome)
        outcomes += asyncio.run(made)
    about = {"command": f"make chaos CHAOS_MINUTES={given.minutes:g}"}
    report.write(folder / "report.json", outcomes, about)
    _print(report.table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.failed]
    too_much = report.too_much_lost(outcomes)
    short = report.shortfalls(given.engine or plans.ENGINES, outcomes) if given.seed is None else []
    full = given.minutes >= FULL_MINUTES
    for outcome in failed:
        _print(report.failure(outcome))
    for engine in too_much:
        _print(f"FAILED too much media lost to a kill at the 99th percentile: {engine}")
    for what in short:
        _print(f"{'FAILED' if full else 'warning:'} {what}")
    _print(f"{len(outcomes)} runs, {len(failed)} failed; {folder / 'report.json'}")
    return 1 if failed or too_much or (short and full) or not outcomes else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--engine", action="append", choices=plans.ENGINES, help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="one run, as this seed has it")
    parser.add_argument("--part", type=int, default=0, help="few runs with many strikes: every point, every second one …")
    parser.add_argument("--follow", action="store_true", help="follow all recordings, whatever the seed says")
    policies = "follow all recordings, on such a spool; with --follow alone, both take turns on the embedded engine"
    parser.add_argument("--spool-policy", choices=("keep", "bounded"), help=policies)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, both engines together")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--at-once", type=int, default=0, help="runs at once; by the cores if not given")
    parser.add_argument("--folder", type=Path, default=Path("var/chaos"), help="where report and logs go")
    return parser.parse_args()


def _print_outcome(outcome: worlds.Outcome) -> None:
    struck = plans.sentence(outcome.plan.strikes)
    missed = "" if len(outcome.struck) == len(outcome.plan.strikes) else f" ({len(outcome.struck)} struck)"
    end = "–" if outcome.seconds_to_end is None else f"{outcome.seconds_to_end:.1f} s"
    way = " bounded" if outcome.plan.bounded else " followed" * outcome.plan.follow
    run = f"{outcome.plan.engine} {outcome.plan.seed} {outcome.plan.capture}{way}"
    _print(f"{'FAIL' if outcome.failed else 'ok  '} {run}: {struck}{missed}, {end}")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
