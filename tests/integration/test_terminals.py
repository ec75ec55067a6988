"""Twelve commands with every character set and every kind of standard output: no traceback, and input and output are right. The
database is SQLite's; no engine knows a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich import cells

from cli import exits
from events import codec
from store import store as stores
from tests import cli_forks, decider_harness, engines, waiting
from tests.cli_forks import BROKEN, CLOSED, FULL, PIPE, TERMINAL
from tests.integration import api_service

ROOT = Path(__file__).parents[2]
CHINESE, ACCENTED = "小明→课堂", "élève"
# A text that a user of each character set can type.
TYPED = {"utf-8": CHINESE, "ascii": "pupil", "gb18030": CHINESE, "latin-1": ACCENTED}
ENCODINGS = tuple(TYPED)
KINDS = (TERMINAL, PIPE, CLOSED, FULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A service and a database whose texts are Chinese, and a runner of commands."""

    forks: cli_forks.Forks
    environment: dict[str, str]
    folder: Path
    task_id: str

    async def run(self, words: list[str], encoding: str, stdout: str, **more: object) -> cli_forks.Answer:
        """Run a command whose arguments are typed in this encoding."""
        typed = [word.encode(encoding, "surrogateescape") for word in words]
        answer = await asyncio.to_thread(
            self.forks.run, self.environment, typed, encoding=encoding, stdout=stdout, **more  # type: ignore[arg-type]
        )  # fmt: skip
        assert b"Traceback" not in answer.out + answer.err, (words, answer)
        assert b"Exception ignored" not in answer.err, (words, answer)
        return answer


@pytest.fixture(scope="module")
def forks() -> Iterator[cli_forks.Forks]:
    with cli_forks.Forks() as made:
        yield made


@pytest.fixture
async def world(tmp_path: Path, forks: cli_forks.Forks) -> AsyncIterator[World]:
    database = engines.fresh("sqlite", tmp_path)
    async with api_service.running(database, ("token",)) as service:
        task_id = await service.open_session(UserId=CHINESE)
        await service.failed_recording(task_id)
        await park(service.store, f"invalid: {CHINESE}")
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DATABASE_URL": database.url, "DATA_DIR": str(tmp_path)}
        environment |= {
            "SECRET_KEYS": engines.SECRET_KEYS,
            "RECORDER_URL": service.url,
            "RECORDER_TOKEN": "token",
            "TERM": "xterm",
        }
        yield World(forks=forks, environment=environment, folder=tmp_path, task_id=task_id)


async def park(store: stores.Store, reason: str) -> None:
    """Park a message for this reason."""
    await store.outbox.send("event", codec.make("start", id="parked", time_ms=engines.START_MS, data=decider_harness.START))
    (message,) = [each for each in await store.outbox.unsent() if each.type == "start"]
    await store.outbox.mark_sent(message.seq, parked=reason)


def commands(world: World, encoding: str) -> dict[str, tuple[list[str], str]]:
    """The twelve commands, by a name; each with a text that its output has."""
    typed = TYPED[encoding]
    body = api_service.start_body(RoomId=None, StrRoomId=f"{encoding}-{typed}"[:12], UserId=typed)
    file = world.folder / f"start-{encoding}.json"
    file.write_bytes(json.dumps(body, ensure_ascii=False).encode(encoding))
    return {
        "help": (["--help"], "Exit codes:"),
        "start": (["start", "--file", str(file), "--user", typed, "--json"], "TaskId"),
        "sessions": (["sessions", "--room", "8489"], CHINESE),
        "stuck": (["sessions", "--stuck"], "alice/1"),
        "show": (["show", world.task_id], CHINESE),
        "json": (["show", world.task_id, "--json"], CHINESE),
        "results": (["results"], "写cos失败"),
        "replay": (["replay", world.task_id, "--dry-run"], "alice"),
        "create": (["keys", "create", "--name", typed], "rec_"),
        "list": (["keys", "list"], typed),
        "audit": (["audit"], "keys-create"),
        "parked": (["parked", "list"], CHINESE),
    }


def shown(text: str, encoding: str) -> str:
    """A text as this character set shows it."""
    return "".join(c if c.encode(encoding, "ignore") else "->" if c == "→" else f"\\u{ord(c):04x}" for c in text)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_every_character_set(world: World, encoding: str) -> None:
    """On a terminal and in a pipe each command prints its texts, escaped where the set lacks them; JSON is JSON."""
    for name, (words, text) in commands(world, encoding).items():
        for kind in (TERMINAL, PIPE):
            answer = await world.run(words, encoding, kind)
            assert answer.code == 0, (name, kind, answer)
            out = answer.out.decode(encoding)
            if name == "json":
                assert json.loads(out)["UserId"] == CHINESE
                assert kind == TERMINAL or json.loads(answer.out)["UserId"] == CHINESE
                continue
            if name == "start":
                session = await world.run(["show", json.loads(out)["TaskId"], "--json"], "utf-8", PIPE)
                assert json.loads(session.out)["UserId"] == TYPED[encoding]
            assert shown(text, encoding) in out.replace("\r", ""), (name, kind, out)
            assert kind == TERMINAL or b"\x1b" not in answer.out


@pytest.mark.parametrize("columns", [80, 100])
async def test_every_command_fits(world: World, columns: int) -> None:
    """No line is wider than the terminal, but for texts to copy whole, and none of a table is torn. Nothing is cut."""
    more = {"parked show": ["parked", "show", "row-1"], "several": ["show", world.task_id[:6]], "refused": ["start"]}
    named = {name: words for name, (words, _) in commands(world, "utf-8").items()} | more
    for name, words in named.items():
        answer = await world.run(words, "utf-8", TERMINAL, stderr=TERMINAL, columns=columns)
        text = re.sub(r"\x1b\[[\d;]*m", "", (answer.out + answer.err).decode()).replace("\r", "")
        whole = [line for line in text.splitlines() if not re.search('`|://|^ *["{}\\[\\]]', line)]
        assert [line for line in whole if cells.cell_len(line.rstrip()) > columns] == [], name
        assert "\x1b" not in text
        assert name == "help" or "…" not in text


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_output_that_is_lost(world: World, encoding: str) -> None:
    """A closed and a full standard output end each command with 1 and a sentence; a reader that has gone, silently with 141."""
    for name, (words, _) in commands(world, encoding).items():
        for kind, reason in ((CLOSED, b"standard output is closed"), (FULL, b"No space left on device")):
            answer = await world.run(words, encoding, kind)
            assert (answer.code, reason in answer.err) == (exits.REFUSED, True), (name, kind, answer)
        broken = await world.run(words, encoding, BROKEN)
        assert (broken.code, b"could not be written" in broken.err) == (exits.BROKEN_PIPE, False), (name, broken)


async def test_messages_that_are_lost(world: World) -> None:
    """A closed or full standard error changes neither output nor exit code, and no file takes its descriptor."""
    for kind in (CLOSED, FULL, BROKEN):
        answer = await world.run(["keys", "create", "--name", "a"], "utf-8", PIPE, stderr=kind)
        assert (answer.code, answer.out[:4]) == (0, b"rec_")
        assert (await world.run(["show", "no-such-session"], "utf-8", PIPE, stderr=kind)).code == exits.NOT_FOUND
        assert (await world.run(["sessions"], "utf-8", CLOSED, stderr=kind)).code == exits.REFUSED
    assert (await world.run(["keys", "list"], "utf-8", PIPE)).code == 0


async def test_arguments_that_are_no_text(world: World) -> None:
    """Bytes that the character set lacks are an error in words, in every place that takes a text."""
    damaged = b"\xff\xfe".decode("utf-8", "surrogateescape")
    for words in (["show", damaged], ["sessions", "--room", damaged], ["start", "--user", damaged], ["keys", "revoke", damaged]):
        answer = await world.run(words, "utf-8", PIPE)
        assert (answer.code, b"character set" in answer.err) == (exits.USAGE, True), answer


async def test_a_file_that_cannot_be_written(world: World) -> None:
    """One sentence with its name, from any command."""
    answer = await world.run(["demo", "--folder", "/dev/full/demo"], "utf-8", PIPE)
    assert (answer.code, answer.err) == (exits.REFUSED, b"recorder: Not a directory (/dev/full/demo).\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
async def test_a_request_on_standard_input(world: World, encoding: str) -> None:
    """JSON is read in the encodings of JSON and in that of the locale."""
    body = api_service.start_body(RoomId=None, StrRoomId=encoding, UserId=CHINESE)
    given = json.dumps(body, ensure_ascii=False).encode(encoding)
    locale = "gb18030" if encoding == "gb18030" else "utf-8"
    started = await world.run(["start", "--file", "-"], locale, PIPE, stdin=given)
    assert started.code == 0, started
    found = await world.run(["show", started.out.decode().strip(), "--json"], "utf-8", PIPE)
    assert json.loads(found.out)["UserId"] == CHINESE


@pytest.mark.parametrize("name", ["C", "zh_CN.GB2312", "en_US.ISO-8859-1"])
async def test_real_locales(world: World, tmp_path: Path, name: str) -> None:
    """A new process in a real locale behaves as the forks do."""
    chosen = {"LC_ALL": name, "LOCPATH": str(tmp_path)}
    if name == "C":
        chosen |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    else:
        language, charset = name.split(".")
        words = ["localedef", "-i", language, "-f", charset, str(tmp_path / name)]
        made = await asyncio.to_thread(subprocess.run, words, capture_output=True, check=False)
        if not (tmp_path / name).is_dir():
            pytest.skip(f"no locale can be made here: {made.stderr.decode()[:200]}")
    encoding = {"C": "ascii", "zh_CN.GB2312": "gb2312", "en_US.ISO-8859-1": "latin-1"}[name]
    # Only one of these sets has the name of the user to look for.
    words = ["--user", CHINESE] if encoding == "gb2312" else ["--room", "8489"]
    program = [sys.executable, "-c", "import service; service.main()", "sessions", *(word.encode(encoding) for word in words)]
    environment = world.environment | chosen
    process = await asyncio.create_subprocess_exec(*program, cwd=ROOT, env=environment, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(), waiting.limit_s(30))
    assert (process.returncode, shown(CHINESE, encoding) in out.decode(encoding)) == (0, True), (out, err)
