"""The rows that one life of a recording writes, taken from the real engine by triggers, to be written again without any logic.

Rule: a replay writes the same rows into the same tables, with the ids of another life in them. It reads and decides nothing.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy

from bench import lives
from bus import publisher
from events import codec
from store import tables

# The room of the recorded life: a number that is in nothing else.
ROOM = 3_999_999_999
_ID = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b")
# In a recorded text, what a replay replaces: the first 24 characters of an id, and the room.
_LIFE, _ROOM = "@life@", "@room@"
LIFE_DIGITS = 24


@dataclass(frozen=True, slots=True)
class Life:
    """The ids of one replayed life."""

    prefix: str
    room: str

    @classmethod
    def numbered(cls, number: int) -> Life:
        """Each number is another life."""
        return cls(f"{number:0{LIFE_DIGITS}d}", str(ROOM - 1 - number))

    def fill(self, text: str) -> str:
        """The text with the ids of this life."""
        return text.replace(_LIFE, self.prefix).replace(_ROOM, self.room)


@dataclass(frozen=True, slots=True)
class Write:
    """One row written: an SQL statement with a parameter per value. `filled` are the values that hold ids."""

    sql: str
    values: tuple[Any, ...]
    filled: tuple[int, ...]

    def parameters(self, life: Life) -> list[Any]:
        """The values of this life."""
        found = list(self.values)
        for at in self.filled:
            found[at] = life.fill(found[at])
        return found


@dataclass(frozen=True, slots=True)
class Message:
    """A message that a step sends."""

    type: str
    key: str
    body: str


@dataclass(slots=True)
class Step:
    """One event: its type and body, the rows that are written up to its commit, the messages that it sends."""

    type: str
    body: str
    rows: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    task_id: str = ""

    def writes(self, mark: str) -> list[Write]:
        """Its statements, each for one row; `mark` is how the driver writes the parameter of a number."""
        return [_write(*row, mark) for row in self.rows]


async def record(folder: Path) -> list[Step]:
    """The steps of one life, taken from the real engine on SQLite."""
    path = folder / "recorded.db"
    engine = _Recorded(path)
    await engine.start()
    connection = sqlite3.connect(path)
    _add_triggers(connection)
    connection.close()
    # The first life is the first of everything.
    await engine.recording()
    await engine.recording()
    await engine.stop()
    steps = engine.steps[len(engine.steps) // 2 :]
    numbers: dict[str, int] = {}
    for step in steps:
        step.body = _template(step.body, numbers)
        step.rows = [_templates(row, numbers) for row in step.rows]
        step.task_id = next(new["task_id"] for name, kind, _, new in step.rows if (name, kind) == ("journal", "insert"))
        step.messages = [_message(new) for name, kind, _, new in step.rows if (name, kind) == ("outbox", "insert")]
    return steps


def rows_per_event(steps: list[Step]) -> dict[str, float]:
    """How many rows an event of the life inserts, updates and deletes, by table."""
    counted: dict[str, float] = {}
    for step in steps:
        for name, kind, _, _ in step.rows:
            counted[f"{name} {kind}"] = counted.get(f"{name} {kind}", 0) + 1 / len(steps)
    return {name: round(count, 2) for name, count in sorted(counted.items())}


class _Recorded(lives.Decisions):
    """The real engine, one event after the other, with the rows of each."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite+aiosqlite:///{path}", lives.six_steps, lanes=1)
        self._path = path
        self.rooms = iter((ROOM - 1, ROOM))
        self.steps: list[Step] = []

    async def decide(self, event: codec.Event) -> dict[str, Any]:
        """Decide it and take the rows since the event before."""
        answer = await super().decide(event)
        step = Step(event.type, codec.encode(event).decode())
        with sqlite3.connect(self._path) as connection:
            found = connection.execute("DELETE FROM bench_writes RETURNING seq, name, kind, old, new").fetchall()
        for _, name, kind, old, new in sorted(found):
            step.rows.append((name, kind, json.loads(old), json.loads(new)))
        connection.close()
        self.steps.append(step)
        return answer


def _add_triggers(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE bench_writes (seq INTEGER PRIMARY KEY, name TEXT, kind TEXT, old TEXT, new TEXT)")
    for table in tables.metadata.sorted_tables:
        old, new = (_as_json(table, row) for row in ("old", "new"))
        for kind, before, after in (("insert", "'{}'", new), ("update", old, new), ("delete", old, "'{}'")):
            connection.execute(
                f"CREATE TRIGGER bench_{table.name}_{kind} AFTER {kind} ON {table.name} BEGIN "  # noqa: S608 - our own names
                f"INSERT INTO bench_writes (name, kind, old, new) VALUES ('{table.name}', '{kind}', {before}, {after}); END"
            )
    connection.commit()


def _as_json(table: sqlalchemy.Table, row: str) -> str:
    columns = ", ".join(f"'{column.name}', {row}.{column.name}" for column in table.columns)
    return f"json_object({columns})"


def _templates(row: tuple[str, str, dict[str, Any], dict[str, Any]], numbers: dict[str, int]) -> Any:
    name, kind, old, new = row
    table = tables.metadata.tables[name]
    old, new = ({c: _value(table.c[c], value, numbers) for c, value in values.items()} for values in (old, new))
    return name, kind, old, new


def _value(column: sqlalchemy.Column[Any], value: Any, numbers: dict[str, int]) -> Any:
    if value is not None and isinstance(column.type, sqlalchemy.Boolean):
        return bool(value)
    return _template(value, numbers) if isinstance(value, str) else value


def _template(text: str, numbers: dict[str, int]) -> str:
    """The text with each id as the life's prefix and the number of the id, and the room marked."""
    text = text.replace(str(ROOM), _ROOM)
    return _ID.sub(lambda id_: f"{_LIFE}{numbers.setdefault(id_.group(), len(numbers)):02}", text)


def _message(row: dict[str, Any]) -> Message:
    sent = publisher.outgoing(row["channel"], row["type"], row["node"], row["body"].encode())
    return Message(row["type"], sent.key, row["body"])


def _write(name: str, kind: str, old: dict[str, Any], new: dict[str, Any], mark: str) -> Write:
    set_, where = _changed(name, kind, old, new)
    values, marks = [*set_.values(), *where.values()], (mark.format(n) for n in itertools.count(1))
    if kind == "insert":
        sql = f"INSERT INTO {name} ({', '.join(set_)}) VALUES ({', '.join(next(marks) for _ in set_)})"  # noqa: S608 - our own names
    else:
        setting = f"UPDATE {name} SET {_equal(set_, marks, ', ')}" if kind == "update" else f"DELETE FROM {name}"  # noqa: S608 - as above
        sql = f"{setting} WHERE {_equal(where, marks, ' AND ')}"
    filled = tuple(at for at, value in enumerate(values) if isinstance(value, str) and (_LIFE in value or _ROOM in value))
    return Write(sql, tuple(values), filled)


def _changed(name: str, kind: str, old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns to set, and those that find the row."""
    keys = [c.name for c in tables.metadata.tables[name].primary_key]
    if kind == "insert":
        # The database numbers its lines itself.
        return {c: value for c, value in new.items() if c != "seq"}, {}
    where = {c: old[c] for c in keys}
    if kind == "delete":
        return {}, where
    return {c: v for c, v in new.items() if v != old[c]} or {c: new[c] for c in new if c not in keys}, where


def _equal(names: Iterable[str], marks: Iterator[str], between: str) -> str:
    return between.join(f"{name} = {next(marks)}" for name in names)
