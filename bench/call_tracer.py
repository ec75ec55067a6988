"""Call tracer: runs a command of `recorder` under a profiler and counts the project's calls on marked paths.

    PYTHON bench/call_tracer.py TREE OUTPUT COMMAND [ARGUMENT ...]

Rule: it runs inside the tree under test, with that tree's Python. So it uses the standard library, uvicorn and the few names that
no reorganization changes: `service.main`, the folder `handlers`, and an event's `type` and `subject`.

A path begins in one of two places. An HTTP path begins when the application receives a request with the header
`X-Measured-Path`; it ends with the response. An `ffmpeg-exit` path begins when a coroutine of `handlers` first receives an event
of that type; it ends when that coroutine returns, after the commit. A context variable marks the path, so tasks and threads that
the path starts belong to it, and the service's background tasks do not.

A call is the first entry into a function of the tree. Not counted: a coroutine that resumes, a comprehension, the body of a
module or class, and code without a source file (`__init__` of a dataclass). Each finished path is one line of JSON in OUTPUT.
"""

from __future__ import annotations

import contextvars
import dis
import functools
import importlib
import inspect
import itertools
import json
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import uvicorn

HEADER = b"x-measured-path"
EXIT_EVENT = "ffmpeg-exit"
NOT_COUNTED = {".venv", "tests", "bench"}
YIELD_VALUE = dis.opmap["YIELD_VALUE"]
SUSPENDS = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Span:
    """One pass through a path: counts from its begin to its end."""

    def __init__(self, path: str, subject: str = "", frame: FrameType | None = None) -> None:
        self.path = path
        self.subject = subject
        self.frame = frame
        self.running = True
        self.calls: list[CodeType] = []

    def end(self, tracer: Tracer) -> None:
        """Stop counting and write the figures."""
        self.running = False
        self.frame = None
        folders = [tracer.folder(code.co_filename) for code in self.calls]
        figures = {
            "path": self.path,
            "subject": self.subject,
            "calls": len(self.calls),
            "functions": len({(code.co_filename, code.co_firstlineno, code.co_qualname) for code in self.calls}),
            "files": len({code.co_filename for code in self.calls}),
            "package changes": sum(one != next_one for one, next_one in itertools.pairwise(folders)),
            "sequence": [f"{tracer.name(code.co_filename)} {code.co_qualname}" for code in self.calls],
        }
        with tracer.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


class Tracer:
    """The profiler of one process."""

    def __init__(self, tree: Path, output: Path) -> None:
        self.output = output
        self._prefix = f"{tree}/"
        self._folders: dict[str, str] = {}
        self._span: contextvars.ContextVar[Span | None] = contextvars.ContextVar("span", default=None)
        self._exits: list[Span] = []

    def install(self) -> None:
        """Profile this thread, every later thread, and the requests that carry the header."""
        load = uvicorn.Config.load

        def load_traced(config: uvicorn.Config) -> None:
            load(config)
            config.loaded_app = functools.partial(self._serve, config.loaded_app)

        uvicorn.Config.load = load_traced  # type: ignore[method-assign]
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    async def _serve(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        path = dict(scope.get("headers", ())).get(HEADER, b"").decode()
        span = Span(path) if path else None
        token = self._span.set(span)
        try:
            await app(scope, receive, send)
        finally:
            self._span.reset(token)
            if span is not None:
                span.end(self)

    def folder(self, file: str) -> str:
        """The top-level folder of a file of the tree, "" for any other file."""
        if file not in self._folders:
            top = file.removeprefix(self._prefix).partition("/")[0] if file.startswith(self._prefix) else ""
            self._folders[file] = "" if top in NOT_COUNTED else top
        return self._folders[file]

    def name(self, file: str) -> str:
        """A file as it is written in the tree."""
        return file.removeprefix(self._prefix)

    def _profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            folder = self.folder(frame.f_code.co_filename)
            if folder and is_entry(frame):
                span = self._span.get() or self._begin_exit(frame, folder)
                if span is not None and span.running:
                    span.calls.append(frame.f_code)
        elif event == "return" and self._exits:
            for span in [one for one in self._exits if one.frame is frame and not is_suspended(frame)]:
                self._exits.remove(span)
                self._span.set(None)
                span.end(self)

    def _begin_exit(self, frame: FrameType, folder: str) -> Span | None:
        """A new span if this coroutine decides an `ffmpeg-exit`."""
        code = frame.f_code
        if folder != "handlers" or not code.co_flags & inspect.CO_COROUTINE:
            return None
        for name in code.co_varnames[: code.co_argcount]:
            argument = frame.f_locals.get(name)
            if type(argument).__name__ == "Event" and getattr(argument, "type", "") == EXIT_EVENT:
                span = Span(EXIT_EVENT, str(getattr(argument, "subject", "")), frame)
                self._exits.append(span)
                self._span.set(span)
                return span
        return None


def is_entry(frame: FrameType) -> bool:
    """Whether a function is entered by a call: not resumed, and a named function or a lambda."""
    code = frame.f_code
    if not code.co_flags & inspect.CO_OPTIMIZED or (code.co_name.startswith("<") and code.co_name != "<lambda>"):
        return False
    # The argument of RESUME tells a call (0) from a resumption after yield or await; Python 3.13 adds a flag in the third bit.
    return not code.co_flags & SUSPENDS or code.co_code[frame.f_lasti + 1] & 3 == 0


def is_suspended(frame: FrameType) -> bool:
    """Whether a coroutine pauses at an await: the profiler reports that as a return, too."""
    return frame.f_code.co_code[frame.f_lasti] == YIELD_VALUE


def main() -> None:
    """The command."""
    tree, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    # In place of this file's folder, which holds modules of another tree.
    sys.path[0] = str(tree)
    sys.argv = ["recorder", *sys.argv[3:]]
    Tracer(tree, output).install()
    importlib.import_module("service").main()


if __name__ == "__main__":
    main()
