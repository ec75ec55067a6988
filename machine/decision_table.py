"""Decision table: its rows, its loading into a `transitions` machine, and the firing of one event.

Rules: rows are read from top to bottom, and the first row whose guards hold decides. A row moves the machine, stays with actions,
or ignores the event with a reason. A table that has no row for some state and event does not load. Guards are properties and
actions are methods of a rules object that lives for one decision. Firing does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transitions import Machine


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


class _Compiled(NamedTuple):
    """A row as firing needs it: its destination comes from the machine."""

    row: DecisionRow
    to: str | None
    when: tuple[Callable[[Any], bool], ...]
    unless: tuple[Callable[[Any], bool], ...]
    do: tuple[Callable[[Any], None], ...]


class Table:
    """A table: the `transitions` machine that holds it, and its rows by event and state.

    Firing walks the rows. An event of the machine takes ten times as long, most of it for callbacks that no table has."""

    def __init__(self, machine: Machine, compiled: Mapping[tuple[str, str], Sequence[_Compiled]]) -> None:
        self.states = machine.states
        self._compiled = compiled

    def fire(self, rules: Any, event: str) -> DecisionRow:
        """Fire `event` on a rules object (with an attribute `state`). Returns the row that decided. Raises KeyError for an
        unknown event."""
        for row, to, when, unless, do in self._compiled[event, rules.state]:
            if all(guard(rules) for guard in when) and not any(guard(rules) for guard in unless):
                rules.state = to or rules.state
                for action in do:
                    action(rules)
                return row
        raise AssertionError("build refuses a table without an unconditional last row")


def build(rows: Sequence[DecisionRow], states: Sequence[str], events: Sequence[str], rules: type) -> Table:
    """Load a table. Raises ValueError for a table that is not total, or that names a guard or action which `rules` lacks."""
    machine = Machine(model=None, states=list(states), initial=None, auto_transitions=False)
    for row in rows:
        for name in (*row.when, *row.unless):
            if not isinstance(getattr(rules, name, None), property):
                raise ValueError(f"the rules have no guard {name!r} (row on {row.on})")
        for name in row.do:
            if not callable(getattr(rules, name, None)):
                raise ValueError(f"the rules have no action {name!r} (row on {row.on})")
        for source in row.at:
            machine.add_transition(row.on, source, row.to)
    compiled = {}
    for event in events:
        for state in states:
            of_state = [row for row in rows if row.on == event and state in row.at]
            if not of_state or not of_state[-1].unconditional:
                raise ValueError(f"the table has no unconditional last row for {event} in {state}")
            held = machine.get_transitions(event, state)
            compiled[event, state] = [_compile(row, each.dest, rules) for row, each in zip(of_state, held, strict=True)]
    return Table(machine, compiled)


def _compile(row: DecisionRow, to: str | None, rules: type) -> _Compiled:
    when, unless = (tuple(getattr(rules, name).fget for name in names) for names in (row.when, row.unless))
    return _Compiled(row, to, when, unless, tuple(getattr(rules, name) for name in row.do))
