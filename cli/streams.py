"""Standard streams of the command line, for any locale: also closed, on a full disk, or a pipe whose reader ends early.

Rules: characters that the character set lacks are escaped. A command whose output is lost ends with REFUSED and one sentence, or
silently with BROKEN_PIPE if the reader of its output has gone. A message that standard error cannot take is dropped, without a
change of the exit code.
"""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import sys
from collections.abc import Callable
from typing import TextIO

from cli import exits, output

# Signs of our own texts that many character sets lack.
_ASCII = {"→": "->", "…": "...", "·": "-"}
_ESCAPE = "recorder-escape"
FULL = (errno.ENOSPC, errno.EDQUOT)


_leaves_threads = False


class OutputLost(Exception):
    """Standard output took no more. It is no OSError, because typer would end the program without a word."""

    def __init__(self, error: OSError) -> None:
        self.exit_code = exits.BROKEN_PIPE if error.errno == errno.EPIPE else exits.REFUSED
        self.reason = "standard output is closed" if error.errno == errno.EBADF else str(error.strerror)
        super().__init__(self.reason)


def run(program: Callable[[], object]) -> None:
    """Run the command line and exit. Errors of files, disk and output end it with one sentence, without a traceback."""
    prepare()
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        if _leaves_threads:
            os._exit(end.code if isinstance(end.code, int) else 0)
        raise
    except OutputLost as error:
        # Python writes the rest of the buffer once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.exit_code != exits.BROKEN_PIPE:
            output.failure(f"recorder: The output could not be written: {error.reason}.")
        sys.exit(error.exit_code)
    except OSError as error:
        # Others are defects, whose traceback is needed.
        if not error.filename and error.errno not in FULL:
            raise
        about = f" ({error.filename})" if error.filename else ""
        output.failure(f"recorder: {error.strerror or type(error).__name__}{about}.")
        sys.exit(exits.REFUSED)


def leave_threads() -> None:
    """Have the program end without waiting for threads: a name server that does not answer keeps some for a minute."""
    global _leaves_threads
    _leaves_threads = True


def prepare() -> None:
    """Replace the standard streams of this process by ones that follow the rules above."""
    codecs.register_error(_ESCAPE, _escaped)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is taken, so that no file and no connection becomes a standard stream by accident.
            # A write fails as it does on a closed descriptor.
            os.open(os.devnull, os.O_RDONLY)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), _encoding(sys.stdin), "replace")
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


class _Output(io.FileIO):
    """Standard output; raises OutputLost."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            raise OutputLost(error) from error


class _Messages(io.FileIO):
    """Standard error; drops text that cannot be written."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return len(memoryview(data))  # type: ignore[arg-type]


def _text(raw: io.FileIO, given: TextIO | None) -> TextIO:
    lines = raw.isatty() or isinstance(raw, _Messages)
    return io.TextIOWrapper(io.BufferedWriter(raw), _encoding(given), _ESCAPE, line_buffering=lines)


def _encoding(given: TextIO | None) -> str:
    """What Python chose for this stream; for a closed one, the locale's."""
    return (given.encoding if given else "") or locale.getpreferredencoding(do_setlocale=False)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - registered for encoding only; tells the type checker
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text), error.end
