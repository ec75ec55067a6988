"""Files of one session on one timeline: the command's computation, and the page's recipe that shows two side by side."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest

from cli import align
from tests.flv_source import FFMPEG

DOCS = Path(__file__).parents[2] / "docs"


def file(name: str, *anchors: tuple[float, str], duration: float = 60.0, gaps: tuple[float, ...] = ()) -> dict[str, Any]:
    return {
        "RecordFile": f"https://b.cos.ap-x.myqcloud.com/p/T/{name}",
        "UserId": name.split("_")[0],
        "Duration": duration,
        "ErrorMs": 40,
        "Anchors": [{"At": at, "Time": f"2026-11-22T08:{time}Z"} for at, time in anchors],
        "Gaps": [{"At": at, "Duration": 5.0} for at in gaps],
    }


def test_offsets() -> None:
    """The files in their order, the first one at 0, with the end by the last anchor. A file without anchors is left out."""
    found = align.offsets(
        [
            file("bob_1.mp4", (0.0, "00:12.500"), duration=10),
            file("al_1.mp4", (0.0, "00:10.000"), (20.0, "00:30.000"), (20.0, "00:35.000"), (60.0, "01:15.000"), gaps=(20.0,)),
            file("cy_1.mp4"),
        ]
    )
    assert [(each["File"], each["Offset"], each["Begins"], each["Ends"]) for each in found] == [
        ("al_1.mp4", 0.0, "2026-11-22T08:00:10.000Z", "2026-11-22T08:01:15.000Z"),
        ("bob_1.mp4", 2.5, "2026-11-22T08:00:12.500Z", "2026-11-22T08:00:22.500Z"),
    ]


@pytest.mark.parametrize(
    ("at_s", "since_s"),
    [(0.0, 0.0), (10.0, 10.0), (19.9, 19.9), (20.0, 25.0), (50.0, 55.1), (80.0, 85.2), (90.0, 95.2)],
)
def test_the_time_of_a_position(at_s: float, since_s: float) -> None:
    """Before and behind a gap at 20 s, between two anchors of a clock that drifts, and behind the last one."""
    found = file(
        "al_1.mp4", (0.0, "00:10.000"), (20.0, "00:30.000"), (20.0, "00:35.000"), (80.0, "01:35.200"), duration=90, gaps=(20.0,)
    )
    assert align.live_s(found, at_s) - align.live_s(found, 0.0) == pytest.approx(since_s, abs=0.001)


def test_a_gap_between_two_anchors_is_not_spread() -> None:
    """Up to the gap a second of media is a second of time."""
    found = file("al_1.mp4", (0.0, "00:10.000"), (30.0, "00:50.000"), gaps=(12.0,))
    assert align.live_s(found, 11.0) - align.live_s(found, 0.0) == pytest.approx(11.0)


def _flash(path: Path, at_s: float, size: str) -> None:
    """Six seconds of black with a white flash, and sound."""
    picture = f"color=black:s={size}:r=25:d=6,drawbox=color=white:t=fill:enable='between(t,{at_s},{at_s}+0.19)'"
    sources = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", "sine=d=6"]
    subprocess.run([FFMPEG, "-loglevel", "error", *sources, "-pix_fmt", "yuv420p", str(path)], check=True)


@pytest.mark.parametrize("page", ["subscribe.md", "subscribe.zh-CN.md"])
def test_the_recipe_of_the_page(tmp_path: Path, page: str) -> None:
    """What was live at the same moment is seen at the same moment: both flash 4 s after the first file begins."""
    command = re.search(r"^`(ffmpeg -i A\.mp4 .*)`$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert command is not None
    _flash(tmp_path / "A.mp4", 4.0, "320x240")
    _flash(tmp_path / "B.mp4", 1.5, "240x320")
    typed = command[1].replace("OFFSET", "2.5").replace("ffmpeg", f"{FFMPEG} -loglevel error", 1)
    subprocess.run(typed, shell=True, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    seen = []
    with av.open(str(tmp_path / "both.mp4")) as container:
        for picture in container.decode(video=0):
            plane = picture.reformat(format="gray").planes[0]
            row = bytes(plane)[240 * plane.line_size :][: picture.width]
            seen.append((float(picture.time or 0), row[100] > 128, row[-50] > 128))
    left, right = ([time for time, *sides in seen if sides[side]] for side in (0, 1))
    assert left[0] == pytest.approx(4.0, abs=0.09)
    assert right[0] == pytest.approx(left[0], abs=0.09)
    assert seen[-1][0] == pytest.approx(8.5, abs=0.3)
