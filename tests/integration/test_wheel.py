"""The wheel, built from this tree and installed into a clean environment, contains everything it needs at run time.

Rules: a separate process examines the installed copy; the tests import no package of the project. No network: the environment
has links to the packages of runtime.lock in the one that runs the tests, to no others, and not to the source tree.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

from tests.unit import test_cli

ROOT = Path(__file__).parent.parent.parent
PACKAGES = (
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
for name in {PACKAGES!r}:
    package = importlib.import_module(name)
    modules.append(package)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
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
    """Run a command in `folder`; its environment names no path of the source tree."""
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
    """A clean environment with the wheel installed. Returns its folder of commands."""
    folder = tmp_path_factory.mktemp("clean")
    done = run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    assert done.returncode == 0, done.stderr
    commands = folder / "venv" / "bin"
    uv = Path(sys.executable).with_name("uv")
    done = run([uv, "pip", "install", "--offline", "--no-deps", "--python", commands / "python", wheel], folder)
    assert done.returncode == 0, done.stderr
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # The packages of runtime.lock, as a production install has them; the environment of the tests has more.
    for name in re.findall(r"^([a-z0-9._-]+)==", (ROOT / "runtime.lock").read_text(), re.MULTILINE):
        files = metadata.distribution(name).files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(sysconfig.get_path("purelib")) / top)
    return commands


def test_the_wheel_contains_the_program_and_nothing_else(wheel: Path) -> None:
    """It has packages, root module, data files and license, but no tests, documents or benchmarks."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [n for n in names if n.endswith("/entry_points.txt")]
        assert "recorder = service:main" in archive.read(entry_points).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"service.py", *PACKAGES}
    for needed in ("events/schemas.json", "store/migrations/env.py", "store/migrations/versions/0001_the_first_schema.py"):
        assert needed in names
    assert {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert [name for name in names if name.endswith((".pyc", ".md", ".db")) or "__pycache__" in name] == []


def test_every_package_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Every module imports from the installed copy, the schemas load, and the migrations create a SQLite database."""
    done = run([installed / "python", "-I", "-c", LOOK, tmp_path / "new.db"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > len(PACKAGES)
    assert (tmp_path / "new.db").stat().st_size > 0


def test_the_command_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`recorder --help` lists the commands, and a wrong setting ends with exit code 2."""
    done = run([installed / "recorder", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    for command in {words.split()[0] for words, _ in test_cli.commands()}:
        assert f" {command} " in done.stdout
    done = run([installed / "recorder", "serve"], tmp_path, PORT="none")
    assert done.returncode == 2
    assert "PORT" in done.stderr


def test_the_demo_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`uvx recorder demo` needs nothing but the wheel and its packages: simulator, ffmpeg and messages are in them."""
    done = run([installed / "recorder", "demo", "--seconds", "3", "--folder", tmp_path / "demo"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one result delivered" in done.stdout


def test_the_notice_names_every_package() -> None:
    """NOTICE has each package of runtime.lock once, and no other."""
    listed = (ROOT / "NOTICE").read_text("utf-8").split("By license")[1].split(":", 1)[1]
    named = re.findall(r"[a-z0-9][a-z0-9._-]+(?=[,\n])", re.sub(r"^[\w.-]+( (AND|OR) [\w.-]+)*:", "", listed, flags=re.MULTILINE))
    locked = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "runtime.lock").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(locked)
