"""deploy/bootstrap.sh on machines that lack something: it says what, with the line to type, and touches nothing.

Imports nothing of ours. Rule: every case ends before the first download, so no network is needed to run these.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MISSING = 2


class Machine:
    """A machine with nothing on its PATH but what is put there."""

    def __init__(self, folder: Path) -> None:
        self.commands = folder / "bin"
        self.commands.mkdir()
        self.environment = folder / "venv"

    def has(self, name: str, script: str) -> None:
        """Put a command there: a shell script, which gets its arguments."""
        command = self.commands / name
        command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        command.chmod(0o755)

    def has_python(self, case: str = "") -> None:
        """Put a python3 there: this one, but for what `case` (branches of a shell `case` over the arguments) answers."""
        self.has("python3", f'case "$*" in {case} esac\nexec {sys.executable} "$@"')

    def bootstrap(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script as `make` does."""
        return subprocess.run(
            ["/bin/sh", "deploy/bootstrap.sh", str(self.environment)],
            cwd=ROOT, env={"PATH": str(self.commands)} | environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_python(machine: Machine) -> None:
    """Without python3 it names the packages that bring it, and its venv module."""
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "python3 was not found" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
    assert not machine.environment.exists()


def test_the_python_that_was_asked_for_is_looked_for(machine: Machine) -> None:
    """PYTHON names another one: that python3 is there is no help then."""
    machine.has_python()
    done = machine.bootstrap(PYTHON="python3.99")
    assert done.returncode == MISSING
    assert "apt-get install" in done.stderr


def test_python_is_too_old(machine: Machine) -> None:
    """An older Python is named with its version, and what to install beside it."""
    machine.has_python('*version_info*) exit 1 ;; -V) echo "Python 3.9.2"; exit 0 ;;')
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "Python 3.11 or later is needed; python3 is Python 3.9.2" in done.stderr
    assert "apt-get install python3.11 python3.11-venv" in done.stderr
    assert not machine.environment.exists()


def test_no_venv_module(machine: Machine) -> None:
    """Debian's python3 without python3-venv: the package is named, and no half environment is left behind."""
    machine.has_python("*ensurepip*) exit 1 ;;")
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "venv module is not complete" in done.stderr
    assert "apt-get install python3-venv" in done.stderr
    assert not machine.environment.exists()


def test_no_setpriv(machine: Machine) -> None:
    """Without setpriv, ffmpeg would outlive a killed service: it is asked for, with the reason."""
    machine.has_python()
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "setpriv was not found" in done.stderr
    assert "apt-get install util-linux" in done.stderr
    assert not machine.environment.exists()
