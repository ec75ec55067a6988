"""The wheel, built from this tree and installed into a clean environment: everything it needs at run time is in it.

Imports nothing of ours: what is looked at is the installed copy, in a process of its own. Rule: no network; the environment sees
the locked packages of the one the tests run in, and not the source tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit import test_cli

ROOT = Path(__file__).parent.parent.parent
ROOMS = (
    "machine",
    "handlers",
    "worker",
    "events",
    "store",
    "bus",
    "media",
    "tencent",
    "webhook",
    "web",
    "config",
    "cli",
    "simulator",
    "assembly",
)
LIMIT_S = 100

LOOK = f"""
import asyncio, importlib, pathlib, pkgutil, sys
prefix = pathlib.Path(sys.prefix)
import service
modules = [service]
for room in {ROOMS!r}:
    package = importlib.import_module(room)
    modules.append(package)
    for found in pkgutil.walk_packages(package.__path__, room + "."):
        if found.name != "store.migrations.env":  # alembic runs it, with a connection
            modules.append(importlib.import_module(found.name))
strangers = [m.__file__ for m in modules if prefix not in pathlib.Path(m.__file__).parents]
assert not strangers, strangers

from events import codec
from store import connections, schema
assert "start" in codec.types("in")
database = connections.open_database("sqlite+aiosqlite:///" + sys.argv[1])
asyncio.run(schema.migrate(database))
print(len(modules))
"""


def run(arguments: Sequence[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` with an environment that names no place of the source tree."""
    return subprocess.run(
        arguments,
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "COLUMNS": "120", "UV_CACHE_DIR": str(folder / "cache")} | environment,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT, HOME=str(folder))
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel in it. Returns its folder of commands."""
    folder = tmp_path_factory.mktemp("clean")
    done = run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    assert done.returncode == 0, done.stderr
    commands = folder / "venv" / "bin"
    uv = Path(sys.executable).with_name("uv")
    done = run([uv, "pip", "install", "--offline", "--no-deps", "--python", commands / "python", wheel], folder)
    assert done.returncode == 0, done.stderr
    # A folder named in a .pth file is put on the path, but its own .pth files are not read: the locked packages are seen,
    # the editable installation of the source tree among them is not.
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return commands


def test_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    """Rooms, root module, data files and licence are in it; tests, documents and benches are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [n for n in names if n.endswith("/entry_points.txt")]
        assert "recorder = service:main" in archive.read(entry_points).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"service.py", *ROOMS}
    for needed in ("events/schemas.json", "store/migrations/env.py", "store/migrations/versions/0001_the_first_schema.py"):
        assert needed in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert [name for name in names if name.endswith((".pyc", ".md", ".db")) or "__pycache__" in name] == []


def test_every_room_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Each module imports from the installed copy, the schemas are found, and the migrations make a database of SQLite."""
    done = run([installed / "python", "-I", "-c", LOOK, tmp_path / "new.db"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > len(ROOMS)
    assert (tmp_path / "new.db").stat().st_size > 0


def test_the_command_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`recorder --help` lists the commands, and a wrong setting is told with exit code 2."""
    done = run([installed / "recorder", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    for command in {words.split()[0] for words, _ in test_cli.commands()}:
        assert f" {command} " in done.stdout
    done = run([installed / "recorder", "serve"], tmp_path, PORT="none")
    assert done.returncode == 2
    assert "PORT" in done.stderr
