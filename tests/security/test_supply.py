"""Supply chain: deploy/bootstrap.sh, with the real pip and uv, refuses a package whose bytes differ from the lock.

Rule: no network; a folder with one small package replaces the registry.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
INSTALLING = re.compile(r"(?:pip|uv)\S*\s+(?:pip\s+)?(?:install|sync|wheel)\b[^\n&|;]*")


class Copy:
    """A copy of the script with locks of its own, and tools that install into a folder instead of an environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installed = folder / "installed"
        self.registry = folder / "registry"
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "deploy").mkdir()
        shutil.copy(ROOT / "deploy" / "bootstrap.sh", folder / "deploy")
        self.registry.mkdir()
        wheel = self.registry / "small-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("small.py", "VALUE = 'as locked'\n")
            archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
            archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr("small-1.0.dist-info/RECORD", "")
        self.hash = hashlib.sha256(wheel.read_bytes()).hexdigest()
        into = f'case "$*" in *" install "*) set -- "$@" --target {self.installed / "pip"};; esac'
        self._tool("python", f'{into}\nexec {sys.executable} "$@"')
        uv = Path(sys.executable).with_name("uv")
        self._tool("uv", f'case "$*" in *--editable*) exit 0 ;; esac\nexec {uv} "$@" --target {self.installed / "uv"}')
        # A production install makes its environments itself: each gets these tools.
        self._tool("hatchling", "exit 0")
        made = f'for last; do :; done; mkdir -p "$last/bin"; cp {folder / "venv" / "bin"}/* "$last/bin/"; exit'
        self._tool("python3", f'case "$2" in venv) {made};; esac\nexec {sys.executable} "$@"')
        for lock in ("bootstrap.lock", "requirements.lock", "runtime.lock"):
            self.lock(lock, f"small==1.0 --hash=sha256:{self.hash}")

    def _tool(self, name: str, script: str) -> None:
        tool = self.folder / "venv" / "bin" / name
        tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        tool.chmod(0o755)

    def lock(self, name: str, text: str) -> None:
        """Write one of the locks."""
        (self.folder / name).write_text(f"{text}\n", encoding="utf-8")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the script as `make` does, or for `production`, with the folder as the only source of packages."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.registry), "PIP_CONFIG_FILE": "/dev/null"}
        offline |= {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(self.registry), "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"}
        offline |= {"UV_CACHE_DIR": str(self.folder / "cache"), "PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
        if words:
            offline["PYTHON"] = str(self.folder / "venv" / "bin" / "python3")
        return subprocess.run(
            ["/bin/sh", "deploy/bootstrap.sh", "other" if words else "venv", *words],
            cwd=self.folder, env=offline, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def has(self, tool: str) -> bool:
        """Whether this tool has installed the package."""
        return (self.installed / tool / "small.py").exists()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_a_locked_package_is_installed(copy: Copy) -> None:
    """As a control, both tools install the package when the hashes are right."""
    done = copy.run()
    assert done.returncode == 0, done.stderr
    assert copy.has("pip")
    assert copy.has("uv")


@pytest.mark.parametrize(("lock", "tool"), [("bootstrap.lock", "pip"), ("requirements.lock", "uv")])
def test_a_changed_hash_is_refused(copy: Copy, lock: str, tool: str) -> None:
    """A package of the right name and version with other bytes, or without a hash, stops the installation."""
    for text in (f"small==1.0 --hash=sha256:{'0' * 64}", "small==1.0"):
        copy.lock(lock, text)
        done = copy.run()
        assert done.returncode != 0
        assert "hash" in done.stderr.lower()
        assert not copy.has(tool)


def test_a_production_install(copy: Copy) -> None:
    """It has the packages of runtime.lock, byte-compiled, and refuses one with other bytes."""
    copy.lock("requirements.lock", "none==1.0")
    done = copy.run("production")
    assert done.returncode == 0, done.stderr
    assert copy.has("uv")
    assert list((copy.installed / "uv" / "__pycache__").glob("small.*.pyc"))
    shutil.rmtree(copy.installed)
    copy.lock("runtime.lock", f"small==1.0 --hash=sha256:{'0' * 64}")
    done = copy.run("production")
    assert done.returncode != 0
    assert "hash" in done.stderr.lower()
    assert not copy.has("uv")


def test_nothing_is_installed_without_hashes() -> None:
    """Every command that installs, in the script and in the image, requires hashes or takes nothing from outside."""
    found = []
    for name in ("deploy/bootstrap.sh", "Dockerfile", ".ci/run", "Makefile"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        found += [command for line in lines for command in INSTALLING.findall(line)]
    assert len(found) >= 5
    for command in found:
        local = "--no-deps" in command and ("--editable ." in command or "--no-index" in command)
        assert "--require-hashes" in command or local, command
