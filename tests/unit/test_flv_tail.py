"""The reader of a growing segment: wall times on the clock of the database, whatever this machine's clock says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from media import flv, flv_tail
from tests import flv_source

NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize("ahead_ms", [0, 3_600_000, -3_600_000, 1_500])
def test_times_do_not_depend_on_this_machines_clock(tmp_path: Path, ahead_ms: int) -> None:
    """The file was written 400 ms before the poll, on a machine whose clock is ahead or behind."""
    tags = [flv_source.configuration(flv.AUDIO, flv_source.AAC_HEADER), *(flv_source.sound(ms) for ms in range(0, 1_000, 20))]
    path = flv_source.write(tmp_path / "1.flv", tags)
    written_ns = (NOW_MS + ahead_ms - 400) * 1_000_000
    os.utime(path, ns=(written_ns, written_ns))
    tail = flv_tail.Tail(path, "00", spawned_ms=NOW_MS - 5_000)
    tail.poll(NOW_MS, ahead_ms)
    tail.close()
    assert (tail.progress.last_packet_ms, tail.progress.first_packet_ms) == (NOW_MS - 400, NOW_MS - 400 - 980)
    at_ms, time_ms = tail.progress.anchors.points[-1]
    assert (at_ms, time_ms) == (980, pytest.approx(NOW_MS - 400, abs=100))  # reading takes a moment
