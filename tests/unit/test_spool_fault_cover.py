"""The fault shim of the spool knows each file operation of the packages that use the spool."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from tests import spool_faults

ROOT = Path(__file__).parents[2]
# The packages whose files are on the spool, and the modules of others.
SOURCES = (
    *("media", "worker", "handlers"),
    *(
        "assembly/work.py",
        "assembly/piece_work.py",
        "assembly/piece_uploads.py",
        "tencent/file_parts.py",
        "tencent/live_upload.py",
        "tencent/cos_upload.py",
        "web/segment_download.py",
    ),
)
# Functions of `os` that reach no file of the spool.
NO_FILES = frozenset(
    (
        *("cpu_count", "getloadavg", "sched_getaffinity", "sysconf", "urandom", "geteuid", "strerror"),
        *("pipe", "set_blocking", "fdopen", "killpg", "dup", "dup2", "nice", "setpriority"),  # pipes and processes
    )
)
# What methods of Path and functions of other modules call in the end.
BY_METHOD = {
    "stat": "stat", "exists": "stat", "is_dir": "stat", "is_file": "stat", "lstat": "lstat", "mkdir": "mkdir", "open": "open",
    "read_text": "open", "read_bytes": "open", "write_text": "open", "write_bytes": "open", "iterdir": "listdir",
    "glob": "scandir", "rglob": "scandir", "unlink": "unlink", "replace": "replace", "rename": "rename", "rmdir": "rmdir",
    "touch": "open", "absolute": "",
    # These are methods of other objects here.
    "resolve": "", "group": "", "owner": "",
}  # fmt: skip
BY_FUNCTION = {
    "shutil.disk_usage": "statvfs", "shutil.which": "", "fcntl.flock": "", "fcntl.LOCK_EX": "", "fcntl.LOCK_NB": "",
    "fcntl.fcntl": "", "fcntl.F_SETPIPE_SZ": "",  # of a pipe
}  # fmt: skip
MODULES = frozenset(("shutil", "fcntl", "mmap", "tempfile", "io", "fileinput", "filecmp", "glob"))


def _trees() -> Iterator[tuple[str, ast.AST]]:
    for source in SOURCES:
        place = ROOT / source
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def unknown(tree: ast.AST) -> Iterator[str]:
    """The file operations of a module that the shim does not know."""
    methods = {name for name in dir(Path) if not name.startswith("_") and not hasattr(PurePath, name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES | {"os", "os.path"}:
            yield f"from {node.module} import"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            continue  # io.open
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if owner == "os" and callable(getattr(os, node.attr, None)) and not isinstance(getattr(os, node.attr), type):
            if node.attr not in spool_faults.OPERATIONS | NO_FILES:
                yield f"os.{node.attr}"
        elif owner in MODULES:
            if BY_FUNCTION.get(f"{owner}.{node.attr}") not in spool_faults.OPERATIONS | {""}:
                yield f"{owner}.{node.attr}"
        elif node.attr in methods and BY_METHOD.get(node.attr) not in spool_faults.OPERATIONS | {""}:
            yield f".{node.attr}"


def test_each_file_operation_can_fail() -> None:
    """A new operation on files needs a fault in the shim, so that tests can have it fail."""
    found = sorted({f"{name}: {operation}" for name, tree in _trees() for operation in unknown(tree)})
    assert not found


@pytest.mark.parametrize(
    "source", ["os.mkfifo(a)", "os.sendfile(a, b, 0, 9)", "path.symlink_to(b)", "shutil.copyfile(a, b)", "from os import read"]
)
def test_an_unknown_operation_is_found(source: str) -> None:
    """The comparison names operations that the shim does not know."""
    assert list(unknown(ast.parse(source)))


def test_each_operation_is_replaced(tmp_path: Path) -> None:
    """Each operation of the table exists, is replaced, and is put back."""
    before = {name: getattr(os, name) for name in spool_faults.OPERATIONS}
    with spool_faults.SpoolFaults(tmp_path):
        assert not [name for name, function in before.items() if getattr(os, name) is function]
    assert before == {name: getattr(os, name) for name in spool_faults.OPERATIONS}
