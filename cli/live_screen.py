"""Live progress of a session: redrawn in place on a terminal, a line for each change in a pipe, or JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cli import output

if TYPE_CHECKING:
    from rich import console

Json = dict[str, Any]

HEADINGS = ("Speaker", "N", "State", "Media s", "Segments", "Missing s", "Detail")


@contextmanager
def screen(*, as_json: bool) -> Iterator[Callable[[Json], None]]:
    """A function that shows an answer of GET /sessions/{TaskId}."""
    if as_json:
        yield output.as_json_line
    elif output.on_terminal():
        from rich import live

        with live.Live(console=output.out(), auto_refresh=False, vertical_overflow="visible") as drawn:
            yield lambda body: drawn.update(_picture(body), refresh=True)
    else:
        yield _Lines()


class _Lines:
    """Prints a line for the session and for each recording when it changes."""

    def __init__(self) -> None:
        self._last: dict[str, list[str]] = {}

    def __call__(self, body: Json) -> None:
        now = {body["TaskId"]: ["", "", body["State"], body["EndReason"]]}
        now |= {f"{r['Speaker']}/{r['N']}": _cells(r) for r in body["Recordings"]}
        for of, cells in now.items():
            if self._last.get(of) != cells:
                output.plain([body["TaskId"], *cells])
        self._last = now


def _picture(body: Json) -> console.Group:
    from rich import console, text

    ended = f", {body['EndReason']}" if body["EndReason"] else ""
    head = text.Text(output.safe(f"Session {body['TaskId']}: {body['State']}{ended}"), style="bold")
    return console.Group(head, output.drawn(HEADINGS, [_cells(r) for r in body["Recordings"]]))


def _cells(body: Json) -> list[str]:
    missing_s = sum(gap["Duration"] for gap in body["Gaps"])
    figures = [
        f"{body['MediaSeconds']:.1f}",
        str(len(body["Segments"]) + body.get("SegmentsOmitted", 0)),
        f"{missing_s:.1f}" if missing_s else "",
    ]
    return [body["Speaker"], str(body["N"]), body["State"], *figures, body["Detail"]]
