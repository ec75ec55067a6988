"""The files of three speakers on one timeline: bursts, jitter, drifting clocks, a kill, a hand-over, and a stall of 10 s."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import room_of_three as room

SPEAKERS = (
    room.Speaker(drift=1e-4, begins_ms=0, stall="late"),
    room.Speaker(drift=-1e-4, begins_ms=2_345, stall="lost"),
    room.Speaker(drift=0.0, begins_ms=700),
)


@pytest.mark.parametrize("gop_s", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_two_files_are_in_step(tmp_path: Path, gop_s: int, seed: int) -> None:
    """By their anchors, any two files are apart by 40 ms at most (p99), and by 100 ms nowhere."""
    errors = []
    for number, speaker in enumerate(SPEAKERS):
        (folder := tmp_path / str(number)).mkdir()
        errors.append(room.errors_ms(speaker, folder, lasts_ms=120_000, gop_s=gop_s, seed=10 * seed + number))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        apart = room.between(errors[one], errors[other])
        assert len(apart) > 90  # s, of 120
        assert apart[len(apart) * 99 // 100] <= 40, apart[-5:]
        assert apart[-1] <= 100
