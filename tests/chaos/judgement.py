"""Judgement of a speaker's files: whether they play, what they show, and what kills have cost. Runs in the decoder's process.

Rule: a recording on a bounded spool may have several files, `{speaker}_{n}`, `{speaker}_{n}-2` …, each with an entry. They
follow each other, and a kill costs the recording, not one of its files.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from tests.chaos import cover, media

_NAME = re.compile(r"(?P<recording>.+_(?P<n>\d+))(?:-(?P<number>\d+))?\.mp4")
_PLAY = (imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-xerror", "-v", "error", "-i")
# In the file's own units: in those of the usual distance, pictures of a stream that jitters are at the same time.
_NOWHERE = ("-fps_mode", "passthrough", "-enc_time_base:v", "demux", "-f", "null", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run: the folder of its objects, the entries of its newest result, the kills by recording (monotonic s), and what
    else happened."""

    objects: Path
    entries: Sequence[Mapping[str, Any]]
    kills: Mapping[str, Sequence[float]]
    events: cover.Events


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Faults as text, the media that each kill cost in s, the coverage, and the number of files."""

    faults: list[str]
    lost_s: list[float] = field(default_factory=list)
    cover: cover.Cover | None = None
    files: int = 0


def speaker(run: Run, name: str, live: media.Live) -> Found:
    """Judge the files of one speaker. Decodes them (blocking)."""
    if not live.pulls:
        return Found(faults=["was never pulled"])
    faults, files, kills, lost = list[str](), list[cover.File](), list[float](), list[float]()
    for recording, paths in recordings(run.objects, name):
        shown: list[media.Picture] = []
        for path in paths:
            faults += broken(path)
            pictures = media.sent(media.pictures(path), live, shown[-1].frame if shown else None)
            gaps = [(gap["At"], gap["Duration"]) for entry in _entries(run, path) for gap in entry["Gaps"]]
            files.append(cover.File(shown=pictures, gaps=gaps))
            shown += pictures
        moments = run.kills.get(recording, ())
        costs = [media.lost_s([picture.frame for picture in shown], live, moment_s) for moment_s in moments]
        lost += [round(each, 3) for each in costs if each is not None]
        kills += moments
    found = cover.judge(files, live, replace(run.events, kills=kills))
    return Found(faults=faults + found.faults, lost_s=lost, cover=found, files=len(files))


def recordings(objects: Path, name: str) -> Iterator[tuple[str, list[Path]]]:
    """The recordings of a speaker, and the files of each, in their order."""
    named = [(path, found) for path in objects.glob(f"{name}_*.mp4") if (found := _NAME.fullmatch(path.name))]
    named.sort(key=lambda each: (int(each[1]["n"]), int(each[1]["number"] or 1)))
    for recording in dict.fromkeys(found["recording"] for _, found in named):
        yield recording, [path for path, found in named if found["recording"] == recording]


def broken(path: Path) -> list[str]:
    """What ffmpeg says while it plays a file from its beginning to its end."""
    played = subprocess.run([*_PLAY, str(path), *_NOWHERE], capture_output=True, text=True, check=False)
    return [f"{path.name} does not play: {played.stderr[:200]}"] if played.returncode or played.stderr else []


def _entries(run: Run, path: Path) -> list[Mapping[str, Any]]:
    return [entry for entry in run.entries if entry["RecordFile"].endswith(f"/{path.name}")]
