"""Messages made to cost the reader more than their sender: read by a process that may use little memory and time.

Imports nothing of ours; the process imports `events` and `bus`. Rule: the limits are the system's, and many times what is
needed, so that no busy machine is taken for a fault.
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
    """A body as large as may be, of one piece again and again."""
    return (beginning + piece * ((LARGEST_BYTES - len(beginning) - len(end)) // len(piece)) + end).encode()


def names() -> bytes:
    """An object of many names, the last of which is given twice."""
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
    """The largest body that is read at all, made to be wrong as often as can be, is refused within the limits."""
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
