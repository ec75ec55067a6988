"""A runner of the command `recorder`: inside the test's process, or in a process of its own, a fork of `tests/fork_server.py`, if
the test is about the process.

Rule: a command sees only the given environment, and does not change the test's logging.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from typer import testing

from assembly import logs
from cli import app
from tests import fork_server, waiting

LIMIT_S = 60.0


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
    """Run the command in a process of its own, its output piped to files."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        started = await fork_server.shared().fork(words, environment, out, errors=err)
        async with waiting.at_most(LIMIT_S):
            code = await started.wait()
        printed, said = [await asyncio.to_thread(path.read_text, "utf-8") for path in (out, err)]
        return Answer(code=code, out=printed, err=said)


def _invoke(environment: Mapping[str, str], words: tuple[str, ...]) -> Answer:
    with mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(logs, "configure"):
        result = testing.CliRunner().invoke(app.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(code=result.exit_code, out=result.stdout, err=result.stderr)
