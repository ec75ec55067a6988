"""Layout for a terminal: a table where it fits, else a card for each row; sentences wrapped between words.

Rules: nothing is cut, and nothing but a long last cell is folded. A command in backquotes stays whole, so that it can be copied.
rich is loaded only to draw.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich import console, text

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
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}
# A last column that is narrower than this is not folded.
NARROWEST = 30
_GAP = "   "
_WORDS = re.compile(r"`[^`]*`\S*|\S+")


def columns() -> int:
    """The width of the terminal."""
    return shutil.get_terminal_size().columns


def drawn(headings: Sequence[str], lines: Iterable[Sequence[str]], width: int) -> console.RenderableType:
    """Rows of escaped cells as a table, if it fits into `width` columns, else as cards."""
    from rich import cells, console, table, text

    rows = [list(line) for line in lines]
    widths = [max(map(cells.cell_len, column)) for column in zip(headings, *rows, strict=True)]
    last = width - sum(widths[:-1]) - 2 * len(widths[:-1])
    if last < min(widths[-1], NARROWEST):
        return console.Group(*(card(headings, row, width) for row in rows))
    made = table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings[:-1]:
        made.add_column(heading, no_wrap=True)
    made.add_column(headings[-1], overflow="fold")
    for row in rows:
        made.add_row(*(text.Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return made


def card(headings: Sequence[str], row: Sequence[str], width: int) -> text.Text:
    """One row: its first cell, then the others that are not empty, each with its heading, in as few lines as they need."""
    from rich import cells, text

    made, used = text.Text(), 0
    for heading, cell in zip(headings, row, strict=True):
        if not cell:
            continue
        title = not used
        label = "" if not heading or (title and not cell.isdigit()) else f"{heading}: "
        piece, *more = wrapped(label + cell, width if title else width - 2)
        if not title:
            fits = not more and used + len(_GAP) + cells.cell_len(piece) <= width
            made.append(_GAP if fits else "\n  ")
            used = used + len(_GAP) if fits else 2
        made.append(piece[: len(label)], style="dim")
        made.append(piece[len(label) :], style="bold" if title and cell not in STYLES else STYLES.get(cell, ""))
        used += cells.cell_len(piece)
        for line in more:
            made.append(f"\n    {line}")
            used = width
    return made


def wrapped(words: str, width: int) -> list[str]:
    """The lines of a sentence, each below the first one indented like it. Of the words that are longer than a line, commands in
    backquotes and addresses stay whole."""
    from rich import cells

    if cells.cell_len(words) <= width:
        return [words]
    indent = words[: len(words) - len(words.lstrip())]
    lines = [""]
    for word in _WORDS.findall(words):
        longer = f"{lines[-1]} {word}" if lines[-1] else indent + word
        if cells.cell_len(longer) <= width:
            lines[-1] = longer
        elif cells.cell_len(indent + word) <= width or "`" in word or "://" in word:
            lines[-1:] = [line for line in (lines[-1], indent + word) if line]
        else:
            lines[-1:] = [indent + part if number else part for number, part in enumerate(_folded(longer, indent, width))]
    return lines


def _folded(text: str, indent: str, width: int) -> list[str]:
    """The text in parts, each with the indentation as wide as a line: Chinese has no spaces."""
    from rich import cells

    parts = cells.chop_cells(text, width)
    return [parts[0], *cells.chop_cells("".join(parts[1:]), width - len(indent))]
