"""Pages that can be followed word for word: the blocks of a page, and the shells in which they run in their order.

Only ports differ from the page. `sh` blocks run in one shell, in a folder in its state after `make demo`; one that ends in a
server gets a terminal of its own. A block under a line that ends in a file's name is that file. A `text` block shows the output
of the block before it; `…` matches anything. Any other kind of block must be declared to `Follower`, or it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import imageio_ffmpeg

from tests import ports, waiting

ROOT = Path(__file__).parent.parent
CURL = 'curl() { command curl --fail-with-body --silent --show-error "$@"; }'
"""On the page a reader would see a refusal; here it must end the script."""
SERVERS = ("recorder simulator", "recorder serve", "recorder results --follow", "python3 receiver.py", "node receiver.mjs")
BY_HAND = ("apt-get", "make")
TYPING_LIMIT_S = 90.0
MARK = "\x1ewas typed"

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_BELOW = re.compile(r"`([\w./-]+\.(?:py|mjs|conf|service|env|json)|[\w/]*recorder-shell)`\s*[:：]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of a page: `file` is the name in the line above, `shows` its expected output."""

    language: str
    text: str
    file: str = ""
    shows: str = ""

    @property
    def lines(self) -> list[str]:
        """Its commands, where each is on a line of its own."""
        return [line for line in self.text.splitlines() if line.strip()]

    @property
    def server(self) -> str:
        """The server that it ends in; "" for none."""
        last = self.lines[-1] if self.lines else ""
        return next((name for name in SERVERS if last == name or last.startswith(f"{name} ")), "") if self.shell else ""

    @property
    def shell(self) -> bool:
        """Whether it runs in a shell."""
        return self.language == "sh"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order; a `text` block becomes the `shows` of the one before."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for fence in _FENCE.finditer(text):
        language, inside = fence.groups()
        above = text[: fence.start()].rstrip().rsplit("\n", 1)[-1]
        named = _FILE_BELOW.search(above)
        if language == "text" and found and found[-1].shell:
            found[-1] = replace(found[-1], shows=inside)
        else:
            found.append(Block(language=language, text=inside, file=named[1] if named else ""))
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether the pieces between the `…` of a page were printed, in order."""
    pieces = [re.escape(piece.strip()) for piece in shown.strip().split("…")]
    return re.search(".*?".join(pieces), printed, re.DOTALL) is not None


class Terminals:
    """A folder in its state after `make demo`, free ports in place of the page's, and the open shells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.simulator_port, self.service_port = ports.free(), ports.free()
        self.others = {number: ports.free() for number in (9911, 9912)}
        self.terminals: dict[Path, asyncio.subprocess.Process] = {}
        self._shell: asyncio.subprocess.Process | None = None
        self._typed = 0
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        (folder / "var").mkdir()
        python = f"PYTHONPATH={ROOT} exec {sys.executable}"
        words = {"recorder": f'{python} -c "import service; service.main()"', "python": python, "python3": python}
        for name, line in words.items():
            (programs / name).write_text(f'#!/bin/sh\n{line} "$@"\n')
            (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)

    @property
    def environment(self) -> dict[str, str]:
        """A newcomer's environment, and the ports."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "FFMPEG_BINARY": imageio_ffmpeg.get_ffmpeg_exe(),
            "PORT": str(self.service_port),
            "RECORDER_URL": f"http://127.0.0.1:{self.service_port}",
        }

    def here(self, text: str) -> str:
        """The text with the replaced ports."""
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{self.simulator_port}")
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{self.service_port}")
        for number, own in self.others.items():
            text = text.replace(str(number), str(own))
        return text

    def write(self, name: str, text: str) -> None:
        """Save a block as the file that the page names."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(self.here(text), encoding="utf-8")

    async def open_terminal(self, block: Block) -> Path:
        """Run a server in a terminal of its own, and wait until it is up; returns the path of its output."""
        words = f" --port {self.simulator_port} --callback-url http://127.0.0.1:{self.service_port}/trtc/callbacks"
        text = self.here(block.text).replace("recorder simulator\n", f"recorder simulator{words}\n")
        printed = self.folder / f"terminal-{len(self.terminals) + 1}.txt"
        with printed.open("wb") as out:
            process = await self._spawn("bash", "-c", f"set -eu\n{CURL}\n{text}", out=out)
        self.terminals[printed] = process

        async def up() -> Any:
            assert process.returncode is None, f"{block.text}\nended with {process.returncode}:\n{printed.read_text()[-3000:]}"
            match block.server:
                case "recorder serve":
                    return await self._ready()
                case "recorder simulator":
                    return "Ctrl-C" in printed.read_text()
                case "recorder results --follow":
                    return True
                case _:
                    return "listening" in printed.read_text().lower()

        await waiting.until(up, 30, f"{block.server}; see {printed}", every_s=0.1)
        return printed

    async def type(self, text: str) -> str:
        """Run a block in the page's shell; returns its output. Fails if a command did."""
        if self._shell is None:
            self._shell = await self._spawn("bash", "-eu", "-o", "pipefail", "-s", out=asyncio.subprocess.PIPE)
            await self._say(f"{CURL}\n")
        self._typed += 1
        script = self.folder / f".typed-{self._typed}.sh"
        script.write_text(self.here(text), encoding="utf-8")
        await self._say(f". {shlex.quote(str(script))} </dev/null\nprintf '%s' '{MARK}'\n")
        assert self._shell.stdout is not None
        try:
            async with waiting.at_most(TYPING_LIMIT_S):
                printed = await self._shell.stdout.readuntil(MARK.encode())
        except asyncio.IncompleteReadError as error:
            code = await self._shell.wait()
            raise AssertionError(f"{text}\nended with {code} after:\n{error.partial.decode(errors='replace')[-4000:]}") from None
        except TimeoutError:
            raise AssertionError(f"{text}\ndid not end within {TYPING_LIMIT_S:g} s") from None
        return printed.decode(errors="replace").removesuffix(MARK)

    async def leave(self) -> dict[str, int]:
        """End all shells, the last opened first; the exit codes of the terminals by their output's name."""
        if self._shell is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._shell.pid, signal.SIGKILL)
            await self._shell.wait()
        codes = {}
        for printed, process in reversed(self.terminals.items()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            codes[printed.name] = await asyncio.wait_for(process.wait(), waiting.limit_s(30))
        return codes

    async def _spawn(self, *words: str, out: object) -> asyncio.subprocess.Process:
        stdin = asyncio.subprocess.PIPE if out is asyncio.subprocess.PIPE else asyncio.subprocess.DEVNULL
        return await asyncio.create_subprocess_exec(
            *words,
            cwd=self.folder, env=self.environment, start_new_session=True, limit=2**22,
            stdin=stdin, stdout=out, stderr=asyncio.subprocess.STDOUT,  # type: ignore[arg-type]
        )  # fmt: skip

    async def _say(self, text: str) -> None:
        assert self._shell is not None
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        await self._shell.stdin.drain()

    async def _ready(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{self.service_port}/readyz") as answer:
                return answer.status == 200
        return False


class Follower:
    """Runs pages. `aside` are languages of blocks that are only read; `by_hand` checks a line that is not run here and raises
    AssertionError if it cannot be right; `skip` are servers that this machine cannot run."""

    def __init__(
        self,
        terminals: Terminals,
        *,
        aside: Collection[str] = ("ini", "json", "mermaid", "yaml"),
        by_hand: Mapping[str, Callable[[list[str]], None]] | None = None,
        skip: Collection[str] = (),
    ) -> None:
        self.terminals = terminals
        self._aside, self._by_hand, self._skip = aside, by_hand or {}, skip
        self._shown: list[tuple[Block, Path]] = []

    async def follow(self, page: Path, only: Callable[[Block], bool] = lambda _: True) -> None:
        """Run the blocks of a page in order; a terminal's output may come until the page's end."""
        for block in filter(only, blocks(page)):
            await self.do(block)
        for block, printed in self._shown:
            await self._printed(block, printed)
        self._shown.clear()

    async def _printed(self, block: Block, printed: Path) -> None:
        shown = self.terminals.here(block.shows)
        what = f"{block.text}\nto print\n{shown}\nsee {printed}"
        await waiting.until(lambda: matches(shown, printed.read_text(errors="replace")), 20, what, every_s=0.1)

    async def do(self, block: Block) -> None:
        """Run one block."""
        if block.file:
            self.terminals.write(block.file, block.text)
        elif block.server in self._skip and block.server:
            return
        elif block.server:
            printed = await self.terminals.open_terminal(block)
            self._shown += [(block, printed)] if block.shows else []
        elif block.shell and block.lines and _word(block.lines[0]) in self._by_hand:
            for line in block.lines:
                self._by_hand[_word(line)](shlex.split(line, comments=True))
        elif block.shell:
            said, shown = await self.terminals.type(block.text), self.terminals.here(block.shows)
            assert matches(shown, said), f"{block.text}\nprinted\n{said}\nand the page shows\n{shown}"
        else:
            assert block.language in self._aside, f"what is a block of {block.language} for?\n{block.text}"


def _word(line: str) -> str:
    return line.split()[0]


def inline_commands(page: Path, words: Collection[str]) -> Iterator[str]:
    """Code spans in a page's sentences that begin with one of `words`."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`\n]+)`", text):
        if _word(code) in words if code.strip() else False:
            yield code
