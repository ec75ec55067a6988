"""Folders of test runs: those that a killed run left are removed at the start of the next one, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import engines, run_folders, run_guard

ROOT = Path(__file__).parent.parent.parent
PROGRAM = (
    "import pathlib, sys; from tests import run_folders;"
    " print(run_folders.make('x', pathlib.Path(sys.argv[1])), flush=True); input()"
)


def _made_by_another(where: Path) -> tuple[Path, subprocess.Popen[str]]:
    """A folder of another process, which lives on."""
    command = [sys.executable, "-c", PROGRAM, str(where)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Path(process.stdout.readline().strip()), process


def test_only_folders_of_the_dead_are_removed(tmp_path: Path) -> None:
    """The folder of a killed process goes, with all in it. Those of living processes stay, and so do folders without a mark, with
    a mark that cannot be read, and of another namespace of processes."""
    folder, process = _made_by_another(tmp_path)
    (folder / "data").mkdir()
    (folder / "data" / "file").write_bytes(b"x")
    mine = run_folders.make("x", tmp_path)
    unmarked = tmp_path / "recorder-postgres-old"
    broken = tmp_path / "recorder-postgres-broken"
    foreign = run_folders.make("x", tmp_path)
    for each in (unmarked, broken):
        each.mkdir()
    (broken / run_folders.MARK).write_text("{")
    _change(foreign, Namespace="pid:[1]", Pid=process.pid)
    assert run_folders.remove_orphans(tmp_path) == []
    process.kill()
    process.communicate()
    assert run_folders.remove_orphans(tmp_path) == [folder]
    assert sorted(tmp_path.iterdir()) == sorted([mine, unmarked, broken, foreign])


def test_another_process_with_the_same_id_owns_nothing(tmp_path: Path) -> None:
    """The owner is gone, and a later process has got its id."""
    folder = run_folders.make("x", tmp_path)
    _change(folder, Started="1")
    assert run_folders.remove_orphans(tmp_path) == [folder]


def test_a_run_begins_with_the_removal(tmp_path: Path) -> None:
    """A run that its guard protects, as pytest's, chaos and soak are, removes the folders of the dead first."""
    folder = run_folders.make("x", tmp_path)
    _change(folder, Started="1")
    program = "from tests import run_guard; run_guard.protect(); import os, sys; print(os.listdir(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if name != run_guard.VARIABLE} | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_folder_of_a_run_has_its_mark() -> None:
    """Servers, databases and releases make their folders here, and no module of the tests makes one by other means."""
    with engines.fast_folder() as name:
        assert (Path(name) / run_folders.MARK).exists()
        assert Path(name).parent in run_folders.places()
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__) and ("mkdtemp" in (text := path.read_text()) or 'prefix="recorder' in text)
    ]
    assert found == ["tests/run_folders.py"]


def _change(folder: Path, **fields: object) -> None:
    mark = folder / run_folders.MARK
    mark.write_text(json.dumps(json.loads(mark.read_text()) | fields))
    assert os.access(mark, os.R_OK)
