"""How far apart the files of three speakers are by their anchors, over hours of simulated live time.

    .venv/bin/python -m bench.alignment
    .venv/bin/python -m bench.alignment --hours 0.05

`tests/room_of_three.py` explains the room: clocks that drift by 100 ppm, 50 ms of jitter, GOP caches, a kill, a hand-over, 10 s
that arrive late or never. The survey and the joiner are those of the service; the time is simulated, so a busy machine changes
nothing but the duration.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench import noise
from tests import room_of_three as room
from tests.integration.test_three_speakers import SPEAKERS

GOPS_S = (0, 1, 2, 5)
RESULTS = Path(__file__).parent / "results" / "alignment.json"


def measure(hours: float, gop_s: int, folder: Path) -> list[dict[str, Any]]:
    """One room: the distances of each two files, in ms."""
    errors = []
    for number, speaker in enumerate(SPEAKERS):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as made:
            errors.append(room.errors_ms(speaker, Path(made), lasts_ms=hours * 3_600_000, gop_s=gop_s, seed=10 * gop_s + number))
    found = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        apart = room.between(errors[one], errors[other])
        at = {"P50": apart[len(apart) // 2], "P99": apart[len(apart) * 99 // 100], "Most": apart[-1]}
        rounded = {name: round(value, 1) for name, value in at.items()}
        found.append({"GopS": gop_s, "Speakers": [one + 1, other + 1], "Seconds": len(apart), **rounded})
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How far apart the files of three speakers are by their anchors.")
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    asked = parser.parse_args()
    quiet, rows, lines = noise.Noise(), [], []
    for gop_s in GOPS_S:
        rows += (made := measure(asked.hours, gop_s, asked.folder))
        for row in made:
            one, other = row["Speakers"]
            figures = [str(row[name]) for name in ("Seconds", "P50", "P99", "Most")]
            lines.append([f"GOP cache of {gop_s} s, speakers {one} and {other}", *figures])
    print(noise.table(["files apart, ms", "seconds", "p50", "p99", "most"], lines))
    print(quiet)
    if asked.write:
        RESULTS.write_text(json.dumps({"Hours": asked.hours, "Rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
