"""Release 0.1.0, the version before this one, checked out from the history into a folder of its own.

Rule: where the history is missing (a shallow clone, an export), this version takes its place and `reason` says so: the test then
replaces nodes of one version, and still fails if a restart loses something.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import run_folders

ROOT = Path(__file__).parent.parent
# The first migration after the release. The release is the commit before the one that added it.
NEXT_MIGRATION = "store/migrations/versions/0007_counts_on_rows.py"
LOCKS = ("requirements.lock", "bootstrap.lock")
BUILD_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Release:
    """A version's folder and its Python. `reason`: why it is this version instead of 0.1.0, otherwise ""."""

    root: Path
    python: str
    reason: str = ""


@functools.cache
def commit_of_v010() -> str:
    """The commit of release 0.1.0; "" if the history is missing."""
    added = _git("log", "--diff-filter=A", "--format=%H", "--", NEXT_MIGRATION).split()
    return _git("rev-parse", "--verify", "--quiet", f"{added[-1]}^") if added else ""


def text(path: str) -> str:
    """A file of release 0.1.0, or of this version if the history is missing. Its environment is not built for that."""
    if commit := commit_of_v010():
        return _git("show", f"{commit}:{path}")
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def v010() -> Release:
    """Release 0.1.0. It runs in this environment if its locks are the same, otherwise in one that its own locks build."""
    if not (commit := commit_of_v010()):
        return Release(ROOT, sys.executable, f"the history does not reach back to 0.1.0, the commit before {NEXT_MIGRATION}")
    root = run_folders.make("0.1.0")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "x"], cwd=root, stdin=archive.stdout, check=True)
    if all((root / lock).read_bytes() == (ROOT / lock).read_bytes() for lock in LOCKS):
        return Release(root, sys.executable)
    subprocess.run(["sh", "deploy/bootstrap.sh", ".venv"], cwd=root, check=True, timeout=BUILD_LIMIT_S)
    return Release(root, str(root / ".venv" / "bin" / "python"))


def current() -> Release:
    """This version."""
    return Release(ROOT, sys.executable)


def _git(*arguments: str) -> str:
    """The output of a git command; "" if it fails, also where git or the repository is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
