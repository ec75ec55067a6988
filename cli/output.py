"""Output of the commands: tables with color on a terminal, tab-separated lines in a pipe, JSON with --json.

Rule: text from outside (ids, notes, details) never reaches a terminal as control characters or markup. rich is loaded only to
draw.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from cli import layout, times

if TYPE_CHECKING:
    from rich import console

Json = dict[str, Any]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

RESULT_HEADINGS = ("Cursor", "Time", "Type", "Subject", "What")


def out() -> console.Console:
    """The present standard output, to draw on."""
    from rich import console

    return console.Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)


def line(words: str, *, whole: bool = False) -> None:
    """One line on standard output. A terminal gets it wrapped between words, unless it is to stay `whole`."""
    sys.stdout.write(safe(words) + "\n" if whole else _wrapped(words, sys.stdout))
    sys.stdout.flush()


def failure(words: str) -> None:
    """One line on standard error, wrapped on a terminal."""
    sys.stderr.write(_wrapped(words, sys.stderr))


def _wrapped(words: str, stream: TextIO) -> str:
    lines = layout.wrapped(safe(words), layout.columns()) if stream.isatty() else [safe(words)]
    return "\n".join(lines) + "\n"


def as_json(body: Any) -> None:
    """The value as indented JSON."""
    sys.stdout.write(_json(body, indent=2) + "\n")


def as_json_line(body: Any) -> None:
    """The value as JSON on one line, flushed."""
    sys.stdout.write(_json(body, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _json(body: Any, **form: Any) -> str:
    """JSON that a program can read: outside a terminal it is UTF-8, or ASCII where the locale has another character set. A
    terminal gets the characters that it can show."""
    text = json.dumps(body, ensure_ascii=False, **form)
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    if encoding == "utf-8" or (on_terminal() and text.encode(encoding, "replace").decode(encoding) == text):
        return text
    return json.dumps(body, **form)


def on_terminal() -> bool:
    """Whether standard output is a terminal. rich is not asked, because environment variables override its answer."""
    return sys.stdout.isatty()


def plain(cells: Iterable[str]) -> None:
    """One tab-separated row for a pipe, flushed."""
    sys.stdout.write("\t".join(safe(cell) for cell in cells) + "\n")
    sys.stdout.flush()


def rows(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table or cards on a terminal; tab-separated lines in a pipe, the headings first."""
    if on_terminal():
        out().print(drawn(headings, lines))
        return
    for cells in (headings, *lines):
        plain(cells)


def drawn(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> console.RenderableType:
    """Rows for a terminal."""
    return layout.drawn(headings, [[safe(cell) for cell in cells] for cells in lines], layout.columns())


def safe(words: str) -> str:
    """The text with unprintable characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)


def sessions(body: Json) -> None:
    """The answer of GET /sessions."""
    found = body["Sessions"]
    if not found and not body["Next"]:
        failure("There is no such session. See `recorder start --help` to start one.")
    if found:
        headings = ("TaskId", "State", "Room", "User", "Mode", "Opened", "Recordings", "End")
        rows(headings, (_session_cells(s) for s in found))


def stuck(body: Json) -> None:
    """The answer of GET /sessions?stuck=true: a row for each reason."""
    needed = body.get("Attention", [])  # a service of an earlier version has none
    if not body["Sessions"] and not needed:
        failure("Nothing is stuck." if not body["Next"] else "None so far.")
    for one in needed:
        failure(f"{one['Cause']}{' ' + one['Subject'] if one['Subject'] else ''}: {one['Why']} {one['Next']}".rstrip())
    found = [(session, finding) for session in body["Sessions"] for finding in session["Stuck"]]
    if on_terminal():
        for one in body["Sessions"]:
            _section(f"{one['TaskId']}  {one['State']}, {_room(one)}")
            _findings(one["Stuck"])
    elif found:
        rows(("TaskId", "Of", "Why", "Next"), ([s["TaskId"], f["Of"], f["Why"], f["Next"]] for s, f in found))


def session(body: Json) -> None:
    """The answer of GET /sessions/{TaskId}."""
    ended = f", {body['EndReason']}" if body["EndReason"] else ""
    line(f"Session {body['TaskId']}: {body['State']}{ended}")
    line(f"  application {body['SdkAppId']}, {_room(body)}, recording user {body['UserId']}, mode {body['Mode']}")
    passed = (("opened", "OpenedTime"), ("closing", "ClosingTime"), ("finished", "FinishedTime"))
    line("  " + ", ".join(f"{word} {times.shown(body[name])}" for word, name in passed if body[name]))
    if body.get("UserData") is not None:  # a service of an earlier version has none
        line(f"  user data {json.dumps(body['UserData'], ensure_ascii=False)}")
    for warning in body["Warnings"]:
        line(f"  warning: {warning}")
    if body["Stuck"]:
        _section("Stuck")
        _findings(body["Stuck"])
    _section("Recordings")
    headings = ("Speaker", "N", "State", "Capture", "Attempt", "Media s", "Code", "Detail")
    rows(headings, (_recording_cells(r) for r in body["Recordings"]))
    for entry in (r["File"] for r in body["Recordings"] if r["File"]):
        _file(entry)
    _segments(body["Recordings"])
    _gaps(body["Recordings"])
    if body["Callbacks"]:
        _section("Callbacks")
        _deliveries(body["Callbacks"])
    if manifest := body.get("Manifest"):  # a service of an earlier version has none
        _section("Manifest")
        rows(("Revision", "State", "Attempts", "Last try", "Next try", "Detail"), [_manifest_cells(manifest)])
    _section("Timeline")
    rows(("Time", "Of", "Event", "Move", "Note"), (_timeline_cells(entry) for entry in body["Timeline"]))
    steps = [s for s in (body["Next"], *(_next(r) for r in body["Recordings"])) if s]
    if steps:
        _section("Next")
        for step in steps:
            line(f"  {step}")


def result(body: Json, *, as_json: bool, first: bool) -> None:
    """One of the results of GET /results, below the headings if it is the first."""
    if as_json:
        as_json_line(body)
        return
    cells = [body["Cursor"], times.shown(body["Time"]), body["Type"], body["Subject"], _summary(body["Data"])]
    if on_terminal():
        out().print(layout.card(("", "", "", "What"), [safe(cell) for cell in cells[1:]], layout.columns()))
        return
    if first:
        plain(RESULT_HEADINGS)
    plain(cells)


def replay(body: Json, *, dry_run: bool) -> None:
    """The answer of POST …/replay."""
    names = ("Speaker", "N", "State", "To", "Attempt", "Action", "Object")
    headings = ("Speaker", "N", "From", "To", "Attempt", "Action", "Object")
    rows(headings, ([str(r[name]) for name in names] for r in body["Recordings"]))
    for each in body["Skipped"]:
        failure(f"{_of(each)} is left as it is: {each['Why']}")
    if dry_run:
        if body["Result"] is not None:
            _section("The next result, if everything succeeds")
            as_json(body["Result"])
        line("Nothing was done: this was a dry run.")


def resent(answers: Sequence[Json], refused: Sequence[Json]) -> None:
    """The answers of POST …/resend."""
    for answer in answers:
        line(f"{answer['TaskId']} revision {answer['Revision']} is posted again")
    for each in refused:
        failure(f"{each['TaskId']}: {each['Message']}")
    if not answers and not refused:
        failure("No result was given up: there is nothing to post again.")


def findings(found: Sequence[Json], *, verdict: str) -> None:
    """The findings of `doctor`: a row each; a terminal also shows the remedies below."""
    if not on_terminal():
        names = ("Status", "Check", "Found", "Meaning", "Type")
        rows(names, ([f[n] for n in names] for f in found))
        return
    rows(("Status", "Check", "Found"), ([f["Status"], f["Check"], f["Found"]] for f in found))
    for one in (f for f in found if f["Status"] != "ok"):
        _section(f"{one['Check']}: {one['Status']}")
        line(f"  {one['Meaning']}")
        line(f"  {one['Type']}", whole=True)  # to be copied
    line({"ok": "Everything works.", "warn": "It works, with limits.", "fail": "Something does not work."}[verdict])


def _section(title: str) -> None:
    if not on_terminal():
        line("")
        line(title)
        return
    from rich import text

    out().print(text.Text(f"\n{safe(title)}", style="bold"))


def _session_cells(body: Json) -> list[str]:
    counted = ", ".join(f"{n} {state}" for state, n in body["Recordings"].items()) or "none"
    cells = [body["TaskId"], body["State"], _room(body), body["UserId"], body["Mode"], times.shown(body["OpenedTime"])]
    return [*cells, counted, body["EndReason"]]


def _recording_cells(body: Json) -> list[str]:
    numbers = (str(body["Attempt"]), f"{body['MediaSeconds']:.1f}")
    return [body["Speaker"], str(body["N"]), body["State"], body["Capture"], *numbers, body["Code"], body["Detail"]]


def _timeline_cells(entry: Json) -> list[str]:
    moved = entry["From"] != entry["To"]
    move = f"{entry['From'] or '·'} → {entry['To']}" if moved and entry["To"] else entry["To"]
    repeats = f"({entry['Count']} times since {times.shown(entry['FirstTime'])})" if entry.get("Count", 1) > 1 else ""
    return [times.shown(entry["Time"]), entry["Of"], entry["Event"], move, f"{entry['Note']} {repeats}".strip()]


def _file(entry: Json) -> None:
    if not entry["RecordFile"]:
        return
    line(f"  {entry['UserId']}: {entry['RecordFile']} ({entry['Duration']:g} s, {entry['Size']} bytes)")


def _deliveries(found: Sequence[Json]) -> None:
    headings = ("Revision", "Host", "State", "Attempts", "Last try", "Next try", "Answer")
    rows(headings, (_delivery_cells(one) for one in found))


def _delivery_cells(body: Json) -> list[str]:
    tries = (times.shown(body["LastTime"]), times.shown(body["NextTime"]))
    return [str(body["Revision"]), body["Host"], body["State"], str(body["Attempts"]), *tries, body["Answer"]]


def _manifest_cells(body: Json) -> list[str]:
    tries = (times.shown(body["LastTime"]), times.shown(body["NextTime"]))
    return [str(body["Revision"]), body["State"], str(body["Attempts"]), *tries, body["Detail"]]


def _segments(recordings: Sequence[Json]) -> None:
    found = [(r, segment) for r in recordings for segment in r["Segments"]]
    if not found:
        return
    _section("Segments")
    rows(("Of", "Epoch", "Begin", "End", "Media s", "Bytes", "Ended by", "Node"), (_segment_cells(r, s) for r, s in found))
    for recording in (r for r in recordings if r.get("SegmentsOmitted")):
        failure(f"{_of(recording)}: {recording['SegmentsOmitted']} older segments are not listed; the gaps between them are.")


def _segment_cells(recording: Json, segment: Json) -> list[str]:
    ended = "(live)" if segment["Live"] else segment["EndedBy"]
    figures = [f"{segment['MediaSeconds']:.1f}", str(segment["Size"]), ended, segment["Node"]]
    between = [times.shown(segment[name], precise=True) for name in ("StartTime", "EndTime")]
    return [_of(recording), str(segment["Epoch"]), *between, *figures]


def _gaps(recordings: Sequence[Json]) -> None:
    found = [(r, gap) for r in recordings for gap in r["Gaps"]]
    if not found:
        return
    _section("Gaps")
    rows(("Of", "At s", "Missing s"), ([_of(r), f"{gap['At']:g}", f"{gap['Duration']:g}"] for r, gap in found))


def _findings(found: Sequence[Json]) -> None:
    for finding in found:
        line(f"  {finding['Of'] or 'session'}: {finding['Why']}")
        line(f"    {finding['Next']}")


def _summary(data: Json) -> str:
    """A summary of a result, on one line."""
    if "Files" in data:
        good = sum(entry["Status"] for entry in data["Files"])
        return f"{data['EndReason']}, revision {data['Revision']}, {good} of {len(data['Files'])} files written"
    if "File" in data:
        return data["File"]["RecordFile"] or f"{data['File']['Message']} {data['File']['Detail']}"
    if "Code" in data:
        return f"{data['Code']}: {data['Message']}"
    if "MediaSeconds" in data:
        return f"{data['MediaSeconds']:g} s of media. {data.get('Detail', '')}".rstrip()
    return "; ".join(data.get("Warnings", ()))


def _next(body: Json) -> str:
    return f"{_of(body)}: {body['Next']}" if body["Next"] else ""


def _of(recording: Json) -> str:
    return f"{recording['Speaker']}/{recording['N']}"


def _room(body: Json) -> str:
    return f"room {body['RoomId']}" if body["RoomId"] else f'room "{body["StrRoomId"]}"'
