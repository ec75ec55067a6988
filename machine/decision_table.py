"""Decision table: its rows, its loading into a `transitions` machine, and the firing of one event.

Rules: rows are read from top to bottom, and the first row whose guards hold decides. A row moves the machine, stays with actions,
or ignores the event with a reason. A table that has no row for some state and event does not load. Guards are properties and
actions are methods of a rules object that lives for one decision. Firing does no I/O.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transitions import EventData, Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """On event `on` in one of the states `at`: if all guards of `when` and none of `unless` hold, run the actions of `do` and go
    to `to` (None: stay). `ignore` is the reason to do nothing, in place of `to` and `do`."""

    on: str
    at: tuple[str, ...]
    when: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    to: str | None = None
    do: tuple[str, ...] = ()
    ignore: str = ""

    @property
    def unconditional(self) -> bool:
        """Whether the row decides whatever the facts are."""
        return not self.when and not self.unless


class _Decided:
    """Callback of `transitions` for the row that decided. It notes the row and runs its actions, so that rules need no event."""

    def __init__(self, row: DecisionRow, rules: type) -> None:
        self.row = row
        self.actions = tuple(getattr(rules, name) for name in row.do)

    def __call__(self, event: EventData) -> None:
        rules: Any = event.model
        rules.row = self.row
        for action in self.actions:
            action(rules)


def build(rows: Sequence[DecisionRow], states: Sequence[str], events: Sequence[str], rules: type) -> Machine:
    """Load a table. Raises ValueError for a table that is not total, or that names a guard or action which `rules` lacks."""
    machine = Machine(model=None, states=list(states), initial=None, auto_transitions=False, send_event=True)
    for row in rows:
        for name in (*row.when, *row.unless):
            if not isinstance(getattr(rules, name, None), property):
                raise ValueError(f"the rules have no guard {name!r} (row on {row.on})")
        for name in row.do:
            if not callable(getattr(rules, name, None)):
                raise ValueError(f"the rules have no action {name!r} (row on {row.on})")
        for source in row.at:
            machine.add_transition(
                row.on,
                source,
                row.to,
                conditions=[_guard(name) for name in row.when],
                unless=[_guard(name) for name in row.unless],
                after=_Decided(row, rules),
            )
    for event in events:
        for state in states:
            last = [r for r in rows if r.on == event and state in r.at][-1:]
            if not last or not last[0].unconditional:
                raise ValueError(f"the table has no unconditional last row for {event} in {state}")
    return machine


def _guard(name: str) -> Any:
    return operator.attrgetter(f"model.{name}")


def fire(machine: Machine, rules: Any, event: str) -> DecisionRow:
    """Fire `event` on a rules object (with an attribute `state`). Returns the row that decided."""
    machine.events[event].trigger(rules)
    row: DecisionRow = rules.row
    return row
