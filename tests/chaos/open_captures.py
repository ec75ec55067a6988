"""The segments that processes capture now, read from `/proc`: for the harness inside a node, and for the audit outside.

Rule: a native capture is a `.flv` file that a process has open for writing; a capture by ffmpeg is a child process that names the
file in its arguments. Only the standard library is used, because the audit imports nothing of the recorder.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SUFFIX = ".flv"


def written(process: Path) -> set[str]:
    """The segments that a process (its folder in `/proc`) has open for writing; none if it ended or may not be looked at."""
    found = set[str]()
    with contextlib.suppress(OSError):
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                name = os.readlink(entry)
                if name.endswith(SUFFIX) and _is_for_writing(process / "fdinfo" / entry.name):
                    found.add(name)
    return found


def named(process: Path) -> set[str]:
    """The segments that a process names in its arguments. Raises OSError if it ended."""
    words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
    return {word for word in words if word.endswith(SUFFIX)}


def of(pid: int) -> list[str]:
    """The segments that a process captures, itself or by its ffmpegs."""
    found = written(Path(f"/proc/{pid}"))
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in listed.read_text().split():
                with contextlib.suppress(OSError):
                    found |= named(Path(f"/proc/{child}"))
    return sorted(found)


def _is_for_writing(about: Path) -> bool:
    """`about`: the descriptor's file in `fdinfo`; the flags in it are octal."""
    flags = next(line.split()[1] for line in about.read_text("ascii").splitlines() if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
