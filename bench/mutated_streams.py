"""Mutated streams through the native readers: RTMP chunks, HTTP-FLV bodies, and segments with their arrival index.

    python -m bench.mutated_streams --cases 1000000

Rule: a stream gives packets or a fault of its protocol. Anything else that a reader raises is a crash, and its seed is printed.
Growth is the resident memory of the process after the last stream, less that after the first tenth; the peak of one stream is
bounded by its size. The streams and their mutations are those of `tests/security/test_native_streams.py`.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bench import noise
from media import arrival_index, flv, http_flv, joiner, rtmp_chunks, survey
from tests import flv_source
from tests.security import test_native_streams as streams

_SEGMENT_EVERY = 100  # a survey reads files: one segment for so many other streams


def rtmp(seed: int) -> bool:
    """Read one mutated stream of RTMP; returns whether it was refused."""
    chance, reader = _chance(seed), rtmp_chunks.ChunkReader()
    data = streams.mutated(streams.STREAM * 3, chance)
    try:
        for piece in streams.pieces_of(data, chance):
            for found in reader.feed(piece):
                streams.read_values(found.payload)
    except rtmp_chunks.ProtocolError:
        return True
    return False


def http(seed: int) -> bool:
    """Read one mutated body of HTTP-FLV; returns whether it was refused."""
    chance, splitter = _chance(seed), http_flv.TagSplitter()
    data = streams.mutated(flv.header(audio=True, video=True) + streams.TAGS * 9, chance)
    try:
        for piece in streams.pieces_of(data, chance):
            for kind, _, payload in splitter.feed(piece):
                flv.is_media(kind, flv.usual_payload(kind, payload))
    except http_flv.NotFlv:
        return True
    return False


def segment(folder: Path) -> Callable[[int], bool]:
    """Surveys of mutated segments, each with an index that is mutated as well."""
    tags = flv_source.content(duration_s=2)
    whole = b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags)
    index = b"".join(arrival_index.record(tag.timestamp_ms, tag.kind, len(tag.payload)) for tag in tags)
    path = folder / "1.flv"

    def read(seed: int) -> bool:
        chance = _chance(seed)
        path.write_bytes(flv.header(audio=True, video=True) + streams.mutated(whole, chance))
        arrival_index.path_of(path).write_bytes(arrival_index.header(1_790_000_000_000) + streams.mutated(index, chance))
        found = survey.survey([joiner.SegmentFile(path=path)], "02")
        reading = joiner.Joiner([joiner.SegmentFile(path=path)], found.kinds, placed=found.placed, silences=found.silences)
        return not sum(len(chunk) for chunk in reading.chunks())

    return read


def run(name: str, read: Callable[[int], bool], cases: int, until_s: float) -> list[str]:
    """One row of the table; crashes are printed with their seeds."""
    refused = crashed = done = 0
    longest_s, settled_kib = 0.0, _resident_kib()
    for seed in range(cases):
        began_s = time.monotonic()
        if began_s > until_s:
            break
        try:
            refused += read(seed)
        except Exception:  # noqa: BLE001 - a crash is what this measures
            crashed += 1
            print(f"{name}, seed {seed}:\n{traceback.format_exc()}")
        longest_s = max(longest_s, time.monotonic() - began_s)
        done += 1
        if done == max(1, cases // 10):
            settled_kib = _resident_kib()
    growth_kib = _resident_kib() - settled_kib
    return [name, f"{done:,}", f"{refused:,}", f"{crashed:,}", f"{growth_kib / 1024:.1f}", f"{longest_s * 1000:.0f}"]


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same seed gives the same stream


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3_600.0, help="the most that each kind of stream may take")
    given = parser.parse_args()
    quiet = noise.Noise()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kinds = (
            ("RTMP", rtmp, given.cases // 2),
            ("HTTP-FLV", http, given.cases // 2),
            ("segments", segment(Path(folder)), max(1, given.cases // _SEGMENT_EVERY)),
        )
        for name, read, cases in kinds:
            rows.append(run(name, read, cases, time.monotonic() + given.seconds))
    print(noise.table(["mutated streams", "read", "refused", "crashed", "growth MiB", "longest ms"], rows))
    print(quiet)


if __name__ == "__main__":
    main()
