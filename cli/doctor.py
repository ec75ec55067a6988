"""`recorder doctor`: runs every check and prints the findings, each with its meaning and the command to type."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer

from cli import exits, output, streams


def doctor(
    within_s: Annotated[float, typer.Option("--within", min=0.1, max=600, help="Seconds for all checks together.")] = 2.0,
    as_json: output.AsJson = False,
) -> None:
    """Check the settings, this machine and the service.

    For each problem it prints the meaning and the command to type. Ends with 1 if a check fails.
    """
    from assembly import logs
    from cli import doctor_case, doctor_checks

    logs.configure(level="error")
    findings = doctor_checks.examine(os.environ, limit_s=within_s)
    streams.leave_threads()
    verdict = doctor_checks.verdict(findings)
    printed = [{name.capitalize(): text for name, text in dataclasses.asdict(finding).items()} for finding in findings]
    if as_json:
        output.as_json({"Status": verdict, "Checks": printed})
    else:
        output.findings(printed, verdict=verdict)
    raise typer.Exit(exits.REFUSED if verdict == doctor_case.FAIL else exits.OK)
