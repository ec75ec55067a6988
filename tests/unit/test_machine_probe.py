"""The figures of the machine that the tests judge time by, and the choice of the tests of `make quick`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import machine_probe, selection

ROOT = Path(__file__).parents[2]


def machine(slowness: float = 1.0, contention: float = 1.0, cores: int = 2) -> machine_probe.Machine:
    """A machine of these figures."""
    return machine_probe.Machine(slowness=slowness, contention=contention, cores=cores)


@pytest.mark.parametrize(
    ("made", "processes"),
    [
        (machine(), 4),
        (machine(slowness=2), 3),
        (machine(slowness=3), 3),
        (machine(slowness=4), 3),
        (machine(contention=2), 2),
        (machine(contention=9), 2),
        (machine(slowness=4, contention=4), 2),
        (machine(cores=4), 8),
        (machine(cores=64), machine_probe.MOST_PROCESSES),
    ],
)
def test_the_number_of_parallel_tests_follows_from_the_machine(made: machine_probe.Machine, processes: int) -> None:
    """Four on the reference, three on a machine that is up to four times slower, two where other work takes half of it."""
    assert made.processes == processes


def test_a_measurement_is_never_better_than_the_reference() -> None:
    """A machine faster than the reference counts as the reference: no limit is shorter than its promise."""
    found = machine_probe.measure()
    assert found.slowness >= 1
    assert found.contention >= 1
    assert found.cores >= 1


def test_children_judge_by_the_figures_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that the run starts measures nothing: it reads the figures of the first process."""
    monkeypatch.setenv(machine_probe.VARIABLE, "3.500 1.000 2")
    monkeypatch.setattr(machine_probe.os, "getloadavg", lambda: (6.0, 0.0, 0.0))
    assert machine_probe.machine() == machine(slowness=3.5)
    assert machine_probe.pace() == pytest.approx(3.5)
    assert machine_probe.patience() == pytest.approx(3.5 * 3)
    program = "from tests import machine_probe; print(machine_probe.machine())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(machine(slowness=3.5))


@pytest.mark.parametrize(
    ("test", "quick"),
    [
        ("tests/unit/test_flv.py::test_a", True),
        ("tests/contract/test_store.py::test_a[sqlite]", True),
        ("tests/contract/test_bus.py::test_a[rabbitmq-postgresql]", False),
        ("tests/contract/test_bus.py::test_a[local-sqlite]", True),
        ("tests/integration/test_capture.py::test_a", False),
        ("tests/e2e/test_rooms_and_modes.py::test_a[embedded]", False),
    ],
)
def test_quick_tests_need_no_server(test: str, quick: bool) -> None:
    """Pure tests and the embedded engine are quick; distributed, live and end-to-end tests are not."""
    assert selection.quick(test) is quick


def test_the_quick_modules_are_there() -> None:
    """Every module and folder that is called quick exists."""
    assert [name for name in (*selection.MODULES, *selection.FOLDERS) if not (ROOT / name).exists()] == []
