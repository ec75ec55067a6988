"""A session's progress while one watches: drawn in place on a terminal, a line for each change in a pipe, or as JSON.

Imports nothing of ours but this room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import console, live, text

from cli import output

Json = dict[str, Any]

HEADINGS = ("Speaker", "N", "State", "Media s", "Segments", "Missing s", "Detail")


@contextmanager
def screen(*, as_json: bool) -> Iterator[Callable[[Json], None]]:
    """What to call with each answer of GET /sessions/{TaskId}."""
    if as_json:
        yield output.as_json_line
    elif output.on_terminal():
        with live.Live(console=output.out(), auto_refresh=False, vertical_overflow="visible") as drawn:
            yield lambda body: drawn.update(_picture(body), refresh=True)
    else:
        yield _Lines()


class _Lines:
    """One line for the session and each recording, whenever it has changed."""

    def __init__(self) -> None:
        self._said: dict[str, list[str]] = {}

    def __call__(self, body: Json) -> None:
        now = {body["TaskId"]: ["", "", body["State"], body["EndReason"]]}
        now |= {f"{r['Speaker']}/{r['N']}": _cells(r) for r in body["Recordings"]}
        for of, cells in now.items():
            if self._said.get(of) != cells:
                output.plain([body["TaskId"], *cells])
        self._said = now


def _picture(body: Json) -> console.Group:
    ended = f", {body['EndReason']}" if body["EndReason"] else ""
    head = text.Text(output.safe(f"Session {body['TaskId']}: {body['State']}{ended}"), style="bold")
    return console.Group(head, output.drawn(HEADINGS, [_cells(r) for r in body["Recordings"]]))


def _cells(body: Json) -> list[str]:
    missing_s = sum(gap["Duration"] for gap in body["Gaps"])
    figures = [f"{body['MediaSeconds']:.1f}", str(len(body["Segments"])), f"{missing_s:.1f}" if missing_s else ""]
    return [body["Speaker"], str(body["N"]), body["State"], *figures, body["Detail"]]
