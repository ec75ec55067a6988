"""What the commands print: tables and colour for people, plain lines with tabs for pipes, JSON where asked.

Imports nothing of ours. Rule: text from outside (ids, notes, details) never reaches a terminal as control characters or markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box, console, table, text

Json = dict[str, Any]

STYLES = {
    "Done": "green",
    "Finished": "green",
    "Failed": "red",
    "Open": "cyan",
    "Recording": "cyan",
    "Joining": "yellow",
    "Transcoding": "yellow",
    "Uploading": "yellow",
    "Closing": "yellow",
}


def out() -> console.Console:
    """Standard output, as it is now."""
    return console.Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)


def line(words: str) -> None:
    """One line on standard output."""
    out().print(safe(words))


def failure(words: str) -> None:
    """One line on standard error."""
    console.Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True).print(safe(words))


def as_json(body: Any) -> None:
    """The value as indented JSON."""
    sys.stdout.write(json.dumps(body, ensure_ascii=False, indent=2) + "\n")


def rows(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table: drawn on a terminal; else one line a row, with tabs, the headings first."""
    target = out()
    if not target.is_terminal:
        for cells in (headings, *lines):
            sys.stdout.write("\t".join(safe(cell) for cell in cells) + "\n")
        return
    drawn = table.Table(box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for cells in lines:
        drawn.add_row(*(text.Text(safe(cell), style=STYLES.get(cell, "")) for cell in cells))
    target.print(drawn)


def safe(words: str) -> str:
    """The text with everything that does not print written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)


def sessions(body: Json) -> None:
    """The answer of GET /sessions."""
    found = body["Sessions"]
    if not found:
        failure("There is no such session. `recorder start --help` says how to begin one.")
        return
    headings = ("TaskId", "State", "Room", "User", "Mode", "Opened", "Recordings", "End")
    rows(headings, (_session_cells(s) for s in found))
    if body["Next"] and out().is_terminal:
        line(f"Older ones: recorder sessions --before {body['Next']}")


def session(body: Json) -> None:
    """The answer of GET /sessions/{TaskId}."""
    ended = f", {body['EndReason']}" if body["EndReason"] else ""
    line(f"Session {body['TaskId']}: {body['State']}{ended}")
    line(f"  application {body['SdkAppId']}, {_room(body)}, recording user {body['UserId']}, mode {body['Mode']}")
    times = (("opened", "OpenedTime"), ("closing", "ClosingTime"), ("finished", "FinishedTime"))
    line("  " + ", ".join(f"{word} {body[name]}" for word, name in times if body[name]))
    for warning in body["Warnings"]:
        line(f"  warning: {warning}")
    _section("Recordings")
    headings = ("Speaker", "N", "State", "Capture", "Attempt", "Media s", "Code", "Detail")
    rows(headings, (_recording_cells(r) for r in body["Recordings"]))
    for entry in (r["File"] for r in body["Recordings"] if r["File"]):
        _file(entry)
    if body["Callbacks"]:
        _section("Callbacks")
        names = ("Revision", "State", "Tries", "Detail")
        rows(names, ([str(c[n]) for n in names] for c in body["Callbacks"]))
    _section("Timeline")
    rows(("Time", "Of", "Event", "Move", "Note"), (_timeline_cells(entry) for entry in body["Timeline"]))
    steps = [s for s in (body["Next"], *(_next(r) for r in body["Recordings"])) if s]
    if steps:
        _section("Next")
        for step in steps:
            line(f"  {step}")


def replay(body: Json, *, dry_run: bool) -> None:
    """The answer of POST …/replay."""
    rows(
        ("Speaker", "N", "From", "To", "Attempt"),
        ([r["Speaker"], str(r["N"]), r["State"], r["To"], str(r["Attempt"])] for r in body["Recordings"]),
    )
    if dry_run:
        line("Nothing was done: this was a dry run.")


def _section(title: str) -> None:
    out().print(text.Text(f"\n{title}", style="bold"))


def _session_cells(body: Json) -> list[str]:
    counted = ", ".join(f"{n} {state}" for state, n in body["Recordings"].items()) or "none"
    opened = body["OpenedTime"][:19].replace("T", " ")
    return [body["TaskId"], body["State"], _room(body), body["UserId"], body["Mode"], opened, counted, body["EndReason"]]


def _recording_cells(body: Json) -> list[str]:
    numbers = (str(body["Attempt"]), f"{body['MediaSeconds']:.1f}")
    return [body["Speaker"], str(body["N"]), body["State"], body["Capture"], *numbers, body["Code"], body["Detail"]]


def _timeline_cells(entry: Json) -> list[str]:
    moved = entry["From"] != entry["To"]
    move = f"{entry['From'] or '·'} → {entry['To']}" if moved and entry["To"] else entry["To"]
    return [entry["Time"], entry["Of"], entry["Event"], move, entry["Note"]]


def _file(entry: Json) -> None:
    if not entry["RecordFile"]:
        return
    gaps = "".join(f", {gap['Duration']:g} s missing at {gap['At']:g} s" for gap in entry["Gaps"])
    line(f"  {entry['UserId']}: {entry['RecordFile']} ({entry['Duration']:g} s, {entry['Size']} bytes{gaps})")


def _next(body: Json) -> str:
    return f"{body['Speaker']}/{body['N']}: {body['Next']}" if body["Next"] else ""


def _room(body: Json) -> str:
    return f"room {body['RoomId']}" if body["RoomId"] else f'room "{body["StrRoomId"]}"'
