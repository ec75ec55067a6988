"""docs/simulator.md, followed word for word: its commands run in order and print the text on the page. Its service is one
process, on the embedded engine.

Only the two ports differ from the page. A `text` block after a `sh` block is its output; `…` matches anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests import ports, waiting

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "simulator.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "\x1eblock"
TYPING_LIMIT_S = 180.0
CURL = 'curl() { command curl --fail-with-body --silent --show-error "$@"; }'
"""A reader would notice a refusal; here it has to end the script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One command block of the page, and its output on the page ("" if the page shows none)."""

    language: str
    text: str
    expected: str = ""


def blocks() -> list[Block]:
    """The command blocks of the page in order."""
    found: list[Block] = []
    for language, text in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        if language == "text":
            found[-1] = Block(language=found[-1].language, text=found[-1].text, expected=text)
        else:
            found.append(Block(language=language, text=text))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminals:
    """A folder with `recorder` on the PATH, and two free ports in place of the page's."""

    folder: Path
    simulator_port: int
    service_port: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a newcomer's shell."""
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "FFMPEG_BINARY": imageio_ffmpeg.get_ffmpeg_exe(),
        }

    def with_ports(self, text: str) -> str:
        """The text with the ports of this run."""
        return text.replace("127.0.0.1:9000", f"127.0.0.1:{self.simulator_port}").replace(
            "127.0.0.1:8080", f"127.0.0.1:{self.service_port}"
        )

    async def simulate(self) -> asyncio.subprocess.Process:
        """Run a block in terminal 1, with the ports."""
        words = ["--port", str(self.simulator_port), "--callback-url", f"http://127.0.0.1:{self.service_port}/trtc/callbacks"]
        out = (self.folder / "terminal-1.txt").open("wb")
        with out, (self.folder / "simulator.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                str(self.folder / "bin" / "recorder"), "simulator", *words,
                cwd=self.folder, env=self.environment, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=log,
            )  # fmt: skip

    async def type(self, script: str, **environment: str) -> str:
        """Type into terminal 2, a shell that stops at the first failing command. Returns its output; fails if a command did."""
        whole = f"set -euo pipefail\n{CURL}\n{script}"
        printed = self.folder / "terminal-2.txt"
        with printed.open("wb") as out:
            shell = await asyncio.create_subprocess_exec(
                "bash", "-c", whole,
                cwd=self.folder, env=self.environment | environment, start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(shell.wait(), waiting.limit_s(TYPING_LIMIT_S))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        text = printed.read_text(errors="replace")
        assert await shell.wait() == 0, f"it ended with {shell.returncode} after:\n{text[-4000:]}"
        return text


@pytest.fixture
async def terminals(tmp_path: Path) -> AsyncIterator[Terminals]:
    (tmp_path / "bin").mkdir()
    for name, words in (("recorder", '-c "import service; service.main()"'), ("python", "")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {words} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    made = Terminals(folder=tmp_path, simulator_port=ports.free(), service_port=ports.free())
    simulator = await made.simulate()
    printed = tmp_path / "terminal-1.txt"
    await waiting.until(lambda: "Ctrl-C" in printed.read_text(), 20, f"the simulator; see {tmp_path / 'simulator.log'}")
    yield made
    if simulator.returncode is None:
        simulator.terminate()
    await asyncio.wait_for(simulator.wait(), waiting.limit_s(20))
    assert simulator.returncode == 0, (tmp_path / "simulator.log").read_text()[-3000:]


def command(block: Block) -> str:
    """The text to type for a block."""
    return block.text if block.language == "sh" else f"python - <<'END_OF_PYTHON'\n{block.text}END_OF_PYTHON\n"


def matches(expected: str, output: str) -> bool:
    """Whether the output contains the text on the page."""
    pieces = [re.escape(piece.strip("\n")) for piece in expected.strip().split("…")]
    return re.search(".*?".join(pieces), output, re.DOTALL) is not None


@pytest.mark.timeout(240)
async def test_the_page_word_for_word(terminals: Terminals) -> None:
    """Every command of the page works in order and prints the text on the page."""
    first, *rest = blocks()
    assert first.text == "recorder simulator\n"
    script = "".join(f"printf '%s\\n' '{MARK}'\n{command(block)}" for block in rest)
    output = await terminals.type(
        terminals.with_ports(script), PORT=str(terminals.service_port), RECORDER_URL=f"http://127.0.0.1:{terminals.service_port}"
    )
    printed = output.split(MARK)[1:]
    assert len(printed) == len(rest)
    for block, output in zip(rest, printed, strict=True):
        expected = terminals.with_ports(block.expected)
        assert matches(expected, output), f"{block.text}\nprinted\n{output}\nand the page shows\n{expected}"


@pytest.mark.timeout(120)
async def test_the_simulators_output_can_be_pasted(terminals: Terminals) -> None:
    """The commands that the simulator prints at its start, pasted one after the other, record a room."""
    lines = (terminals.folder / "terminal-1.txt").read_text().splitlines()
    typed = [line for line in lines if line.startswith(("export ", "recorder ", "curl "))]
    dismissal = next(number for number, line in enumerate(typed) if "DELETE" in line)
    output = await terminals.type("\n".join([*typed[:dismissal], "sleep 4", *typed[dismissal:], "kill %1", "wait"]))
    assert '"Code": "Success"' in output
    assert '"EndReason": "RoomDestroyed"' in output
    assert list((terminals.folder / "var/simulator/cos").glob("lessons-1250000000/lessons/*/alice_1.mp4"))


def test_every_route_is_on_the_page() -> None:
    """The page's reference names every address of the control API."""
    source = (ROOT / "simulator" / "control.py").read_text()
    page = PAGE.read_text(encoding="utf-8")
    routes = re.findall(r'^ +\("([A-Z]+)", ([^,]+), ', source, re.MULTILINE)
    assert len(routes) > 15
    for method, path in routes:
        place = path.replace('ROOM + "', '"/control/rooms/{room}').replace(
            'SPEAKER + "', '"/control/rooms/{room}/speakers/{user}'
        )
        place = {"ROOM": "/control/rooms/{room}", "SPEAKER": "/control/rooms/{room}/speakers/{user}"}.get(place, place.strip('"'))
        place = place.replace("{app}", "{SdkAppId}").replace("{id}", "{SecretId}")
        assert re.search(
            rf"(`{method}`, )?`({method} )?([A-Z]+ )?{re.escape(place)}`|127.0.0.1:9000{re.escape(place)}\n", page
        ), (method, place)
