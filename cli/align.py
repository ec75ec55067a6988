"""`recorder align`: the files of a session on one timeline, computed from the anchors of its newest result.

Rule: a live time follows from the last anchor at or before a position. Up to the next anchor time runs evenly, unless a gap lies
between the two; behind a gap's place without an anchor, and behind the last anchor, a second of media is a second of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cli import output, sessions, times
from cli.exits import handled

Json = dict[str, Any]
HEADINGS = ("File", "Offset", "Begins", "Ends", "ErrorMs")


def align(task_id: sessions.TaskId, utc: times.Utc = False, as_json: output.AsJson = False) -> None:
    """Print when the files of a session begin on one timeline.

    Offset is the time in seconds after the beginning of the first file.
    """
    with handled(as_json=as_json):
        found = offsets(sessions.newest_files(task_id))
        if as_json:
            output.as_json({"TaskId": task_id, "Files": found})
            return
        if not found:
            output.failure("The session has no file with anchors yet.")
            return
        output.rows(HEADINGS, (_cells(each) for each in found))


def _cells(found: Json) -> list[str]:
    between = (times.shown(found[name], precise=True) for name in ("Begins", "Ends"))
    return [found["File"], f"{found['Offset']:.3f}", *between, str(found["ErrorMs"])]


def offsets(files: Sequence[Json]) -> list[Json]:
    """The files in the order in which they begin; `Begins` and `Ends` in ISO 8601 UTC, `Offset` in seconds."""
    times = [(file, live_s(file, 0.0), live_s(file, file["Duration"])) for file in files if file["Anchors"]]
    first_s = min((begin_s for _, begin_s, _ in times), default=0.0)
    return [
        {
            "File": file["RecordFile"].rsplit("/", 1)[-1],
            "UserId": file["UserId"],
            "Offset": round(begin_s - first_s, 3),
            "Begins": _iso(begin_s),
            "Ends": _iso(end_s),
            "ErrorMs": file["ErrorMs"],
        }
        for file, begin_s, end_s in sorted(times, key=lambda each: each[1])
    ]


def live_s(file: Json, at_s: float) -> float:
    """When the media at a position of a file was live, in Unix seconds."""
    anchors: list[tuple[float, float]] = [
        (each["At"], datetime.fromisoformat(each["Time"]).timestamp()) for each in file["Anchors"]
    ]
    before = max((number for number, (at, _) in enumerate(anchors) if at <= at_s), default=0)
    from_s, time_s = anchors[before]
    if before + 1 < len(anchors):
        to_s, next_s = anchors[before + 1]
        if to_s > from_s and not any(from_s < gap["At"] < to_s for gap in file["Gaps"]):
            return time_s + (at_s - from_s) * (next_s - time_s) / (to_s - from_s)
    return time_s + at_s - from_s


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
