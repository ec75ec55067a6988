"""What an ffmpeg may take of the machine. May import only the standard library.

Rule: the limits are set before ffmpeg begins, by util-linux's `prlimit` in front of it, because a limit that is set on a running
process comes too late for what it has done by then. None is above what the service itself is allowed.

Measured with 9.0.2 on two cores, the most address space that one run took: a capture 0.5 GB (4K, copied), an encoding of 1080p
1.3 GB, of 4K 2.1 GB; each further core adds threads with stacks and arenas of their own. There is no limit on processor time: a
capture may last a day, and a transcode as long as its recording asks for; the first ends with its session, the second when
it stands still, and what either may write is limited.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from dataclasses import dataclass

_GIB = 1 << 30
_NAMES = {
    "as": resource.RLIMIT_AS,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Address space in bytes, the largest file in bytes, and how many files may be open. Never a core dump: memory
    holds the pull address."""

    memory_bytes: int
    file_bytes: int
    files: int = 64

    def argv(self) -> list[str]:
        """The words to put in front of a command. Raises FileNotFoundError where `prlimit` is not on PATH."""
        wanted = {"as": self.memory_bytes, "fsize": self.file_bytes, "nofile": self.files, "core": 0}
        return [tool("prlimit"), *(f"--{name}={_allowed(name, most)}" for name, most in wanted.items()), "--"]


def tool(name: str) -> str:
    """The path of one of util-linux's programs. Raises FileNotFoundError: nothing is run without them."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "util-linux has it, and it is not on PATH", name)
    return found


# A segment that grows beyond it ends there, whole, and the capture goes on in the next one: 64 GiB are half a day of 12 Mbit/s.
CAPTURE = Limits(memory_bytes=2 * _GIB, file_bytes=64 * _GIB)


def transcode(input_bytes: int) -> Limits:
    """For a transcode of this much input: a copy is as large as it, an encoding of a small one may be some times larger."""
    return Limits(memory_bytes=_encoding_bytes(), file_bytes=4 * _GIB + 8 * input_bytes)


def verify() -> Limits:
    """For decoding a finished file: it writes nothing."""
    return Limits(memory_bytes=_encoding_bytes(), file_bytes=0)


def _encoding_bytes() -> int:
    return 4 * _GIB + (_GIB // 4) * (os.cpu_count() or 1)


def _allowed(name: str, most: int) -> int:
    """`most`, or less where the service itself is held to less: a limit cannot be raised."""
    _, hard = resource.getrlimit(_NAMES[name])
    return most if hard == resource.RLIM_INFINITY else min(most, hard)
