"""Resource limits of an ffmpeg process.

Rules: util-linux's `prlimit` sets the limits before ffmpeg starts, because a later limit would not cover earlier work. No limit
exceeds the service's own.

Measured with 9.0.2 on two cores, the largest address space of one run: a capture 0.5 GB (4K, copied), an encoding of 1080p 1.3
GB, of 4K 2.1 GB; each further core adds threads with their own stacks and arenas. Processor time is not limited: a capture may
last a day, and a transcode takes as long as its recording needs. The first ends with its session, the second when it stalls, and
the output of both is limited.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_GIB = 1 << 30
_NAMES = {
    "as": resource.RLIMIT_AS,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Address space in bytes, the largest file in bytes, and the number of open files. Core dumps are always disabled, because
    memory holds the pull address."""

    memory_bytes: int
    file_bytes: int
    files: int = 64

    def argv(self) -> list[str]:
        """The words to put before a command. Raises FileNotFoundError if `prlimit` is not on PATH."""
        wanted = {"as": self.memory_bytes, "fsize": self.file_bytes, "nofile": self.files, "core": 0}
        return [tool("prlimit"), *(f"--{name}={_allowed(name, most)}" for name, most in wanted.items()), "--"]


def tool(name: str) -> str:
    """The path of a util-linux program. Raises FileNotFoundError: no ffmpeg runs without them."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "util-linux has it, and it is not on PATH", name)
    return found


def polite(argv: Sequence[str], niceness: int) -> list[str]:
    """The command with a lower priority than its parent has. Raises FileNotFoundError if `nice` is not on PATH."""
    return [tool("nice"), "-n", str(niceness), *argv]


# A larger segment ends there, whole, and the capture continues in the next one: 64 GiB are half a day of 12 Mbit/s.
CAPTURE = Limits(memory_bytes=2 * _GIB, file_bytes=64 * _GIB)


def transcode(input_bytes: int) -> Limits:
    """Limits of a transcode with this much input: a copy is as large as the input, an encoding of a small input may be some times
    larger."""
    return Limits(memory_bytes=_encoding_bytes(), file_bytes=4 * _GIB + 8 * input_bytes)


def verify() -> Limits:
    """Limits for decoding a finished file, which writes nothing."""
    return Limits(memory_bytes=_encoding_bytes(), file_bytes=0)


def node_memory_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory that this machine has, or the limit of its container if that is lower, in bytes (blocking)."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # versions 2 and 1 of Linux's control groups
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            found = min(found, int((groups / name).read_text()))
    return found


def _encoding_bytes() -> int:
    return 4 * _GIB + (_GIB // 4) * (os.cpu_count() or 1)


def _allowed(name: str, most: int) -> int:
    """`most`, or the service's own limit if that is lower: a limit cannot be raised."""
    _, hard = resource.getrlimit(_NAMES[name])
    return most if hard == resource.RLIM_INFINITY else min(most, hard)
