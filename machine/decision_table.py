"""How a decision table is written, turned into a `transitions` machine, and asked. Imports nothing of ours.

Rule: pure. A table is a tuple of rows, read from top to bottom; the first row whose conditions hold decides. `transitions` holds
it with `model=None` and without automatic transitions; it is fired on a cursor that lives for one decision. A row may move, stay
with effects, or ignore with a reason; a table in which some key finds no row does not load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transitions import EventData, Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """On event `on` in one of the states `at`, when all of `when` hold and none of `unless`: go to `to` (None: stay) and `do`.

    `when`, `unless` and `do` name methods of the cursor. `ignore` is the reason why nothing happens, instead of `to` and `do`."""

    on: str
    at: tuple[str, ...]
    when: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    to: str | None = None
    do: tuple[str, ...] = ()
    ignore: str = ""

    @property
    def unconditional(self) -> bool:
        """Whether it decides whatever the facts are."""
        return not self.when and not self.unless


@dataclass(slots=True)
class Fired:
    """What the cursor of one decision has seen: the row that decided."""

    row: Row | None = None


def build(rows: Sequence[Row], states: Sequence[str], events: Sequence[str], cursor: type) -> Machine:
    """Load a table. Raises ValueError when it is not total or names what is not there: a fault of ours, found at import."""
    machine = Machine(model=None, states=list(states), initial=None, auto_transitions=False, send_event=True)
    for row in rows:
        for name in (*row.when, *row.unless, *row.do):
            if not callable(getattr(cursor, name, None)):
                raise ValueError(f"the cursor has no {name!r} (row on {row.on})")
        for source in row.at:
            machine.add_transition(
                row.on,
                source,
                row.to,
                conditions=list(row.when),
                unless=list(row.unless),
                before=_Taken(row),
                after=list(row.do),
            )
    for event in events:
        for state in states:
            last = [r for r in rows if r.on == event and state in r.at][-1:]
            if not last or not last[0].unconditional:
                raise ValueError(f"the table does not say what {event} does in {state}")
    return machine


class _Taken:
    """Notes on the cursor which row decided."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def __call__(self, event: EventData) -> None:
        cursor: Any = event.model
        cursor.fired.row = self.row


def fire(machine: Machine, cursor: Any, event: str) -> Row:
    """Fire `event` on a cursor (with attributes `state` and `fired`) and return the row that decided."""
    machine.events[event].trigger(cursor)
    row: Row = cursor.fired.row
    return row
