"""Message bombs: messages built to cost their reader more than their sender, read by a process with limited memory and CPU time.

Rule: the operating system enforces the limits, which are many times the usual need, so a busy machine causes no failure.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting

ROOT = Path(__file__).parents[2]
CPU_S = math.ceil(waiting.limit_s(10))
MORE_BYTES = 96 << 20
LARGEST_BYTES = 256 * 1024
READ = """
import resource, sys
from bus import redaction
from events import codec, errors
raw = open(sys.argv[1], "rb").read()
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    codec.check(sys.argv[4], codec.parse(raw))
except errors.InvalidEvent as error:
    print("refused:", error)
redaction.body(raw)
"""


def filled(beginning: str, piece: str, end: str) -> bytes:
    """A body of the largest size, made of one repeated piece."""
    return (beginning + piece * ((LARGEST_BYTES - len(beginning) - len(end)) // len(piece)) + end).encode()


def names() -> bytes:
    """An object with many names, the last of them twice."""
    pairs = [f'"{number:x}":0' for number in range(LARGEST_BYTES // 10)]
    return ("{" + ",".join([*pairs, pairs[-1]]) + "}").encode()


BOMBS = {
    "a list of what is wrong": filled('{"SubscribeUserIds":[', "0,", "0]}"),
    "a list of lists": filled('{"SubscribeUserIds":[', "[],", "0]}"),
    "lists in lists": filled('{"CosConfig":[', "[[[[0,0],0],0],0],", "0]}"),
    "unknown fields": json.dumps({f"{n:x}": 0 for n in range(LARGEST_BYTES // 12)}).encode(),
    "a name that is given twice": names(),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_its_reader_little(bomb: str, tmp_path: Path) -> None:
    """A body of the largest accepted size with as many errors as possible is refused within the limits."""
    raw = BOMBS[bomb]
    assert LARGEST_BYTES * 0.6 < len(raw) <= LARGEST_BYTES
    body = tmp_path / "body"
    body.write_bytes(raw)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(body), str(CPU_S), str(MORE_BYTES), "start"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("refused: ")
