"""A runner of the command `recorder`: inside the test's process, because a new process costs a second of CPU, or in a process of
its own if the test is about the process.

Rule: a command sees only the given environment, and does not change the test's logging.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from typer import testing

from assembly import logs
from cli import app
from tests import waiting

ROOT = Path(__file__).parents[1]
PROGRAM = "import service; service.main()"
LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The end of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The command's output."""
        return json.loads(self.out)


async def inside(environment: Mapping[str, str], *words: str) -> Answer:
    """Run the command in a thread of this process, its output piped. Raises its unexpected errors."""
    return await asyncio.to_thread(_invoke, environment, words)


async def process(environment: Mapping[str, str], *words: str) -> Answer:
    """Run the command in a process of its own, its output piped."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *words,
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with waiting.at_most(LIMIT_S):
        out, err = await started.communicate()
    return Answer(code=started.returncode or 0, out=out.decode(), err=err.decode())


def _invoke(environment: Mapping[str, str], words: tuple[str, ...]) -> Answer:
    with mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(logs, "configure"):
        result = testing.CliRunner().invoke(app.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(code=result.exit_code, out=result.stdout, err=result.stderr)
