"""deploy/bootstrap.sh on machines that lack something: it names the missing part and the command to type, and changes nothing.

Rule: every case ends before the first download, so these tests need no network.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MISSING = 2


class Machine:
    """A machine whose PATH contains only the commands that a test adds."""

    def __init__(self, folder: Path) -> None:
        self.commands = folder / "bin"
        self.commands.mkdir()
        self.environment = folder / "venv"

    def has(self, name: str, script: str) -> None:
        """Add a command: a shell script, which gets its arguments."""
        command = self.commands / name
        command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        command.chmod(0o755)

    def has_python(self, case: str = "") -> None:
        """Add a python3: this one, except for the responses in `case` (branches of a shell `case` over the arguments)."""
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
    """Without python3 the script names the packages of python3 and of its venv module."""
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "python3 was not found" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
    assert not machine.environment.exists()


def test_the_python_of_the_variable_is_required(machine: Machine) -> None:
    """If PYTHON names a missing interpreter, an existing python3 does not replace it."""
    machine.has_python()
    done = machine.bootstrap(PYTHON="python3.99")
    assert done.returncode == MISSING
    assert "apt-get install" in done.stderr


def test_python_is_too_old(machine: Machine) -> None:
    """An older Python is reported with its version and the package to install."""
    machine.has_python('*version_info*) exit 1 ;; -V) echo "Python 3.9.2"; exit 0 ;;')
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "Python 3.11 or later is needed; python3 is Python 3.9.2" in done.stderr
    assert "apt-get install python3.11 python3.11-venv" in done.stderr
    assert not machine.environment.exists()


def test_no_venv_module(machine: Machine) -> None:
    """For Debian's python3 without python3-venv the script names the package and leaves no partial environment."""
    machine.has_python("*ensurepip*) exit 1 ;;")
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "venv module is not complete" in done.stderr
    assert "apt-get install python3-venv" in done.stderr
    assert not machine.environment.exists()


def test_no_setpriv(machine: Machine) -> None:
    """Without setpriv the script asks for it with the reason: ffmpeg would outlive a killed service."""
    machine.has_python()
    done = machine.bootstrap()
    assert done.returncode == MISSING
    assert "setpriv was not found" in done.stderr
    assert "apt-get install util-linux" in done.stderr
    assert not machine.environment.exists()
