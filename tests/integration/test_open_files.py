"""The limit of open files (embedded engine): the service raises it for its captures, and doctor warns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli import doctor_case, doctor_checks, doctor_probes
from tests import service_process


class LowLimit(service_process.ServiceProcess):
    """A service that a shell with a low soft limit starts."""

    program = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 3000)); import service; service.main()"


def open_files(pid: int) -> tuple[str, ...]:
    """The soft and the hard limit of a process."""
    found = re.search(r"Max open files +(\d+) +(\d+)", Path(f"/proc/{pid}/limits").read_text())
    return found.groups() if found else ()


async def test_the_soft_limit_becomes_the_hard_one(tmp_path: Path) -> None:
    """The service may open as many files as the hard limit allows, and its log says so."""
    service = LowLimit(tmp_path, {})
    await service.start()
    try:
        assert open_files(service.pid) == ("3000", "3000")
    finally:
        await service.stop()
    assert '"service.file_limit_raised"' in service.log.read_text()


def test_doctor_warns_of_a_hard_limit_that_is_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is enough follows from MAX_CAPTURES; the remedy names the number."""
    monkeypatch.setattr(doctor_probes, "most_files", lambda: 1_024)

    def examine(**environment: str) -> doctor_case.Finding:
        case = doctor_case.Case({"HOME": "/home/op"} | environment, Path("/proc/mounts"))
        assert case.faults == ()
        return doctor_checks.check_open_files(case)

    assert examine(MAX_CAPTURES="50").status == "ok"
    found = examine(MAX_CAPTURES="200")
    assert (found.status, "1712" in found.type) == ("warn", True)
    assert examine().status == "warn"
