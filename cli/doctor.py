"""`recorder doctor`: runs every check and prints the findings, each with its meaning and the command to type."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import typer

from cli import exits, output

if TYPE_CHECKING:
    from cli.doctor_checks import Finding


def doctor(as_json: output.AsJson = False) -> None:
    """Check the settings, this machine and the service.

    For each problem it prints the meaning and the command to type. Ends with 1 if a check fails.
    """
    from assembly import logs
    from cli import doctor_checks

    logs.configure(level="error")
    raise typer.Exit(report(doctor_checks.examine(os.environ), as_json=as_json))


def report(findings: list[Finding], *, as_json: bool) -> int:
    """Print the findings. Returns the exit code."""
    from cli import doctor_checks

    verdict = doctor_checks.verdict(findings)
    printed = [{name.capitalize(): text for name, text in dataclasses.asdict(finding).items()} for finding in findings]
    if as_json:
        output.as_json({"Status": verdict, "Checks": printed})
    else:
        output.findings(printed, verdict=verdict)
    return exits.REFUSED if verdict == doctor_checks.FAIL else exits.OK
