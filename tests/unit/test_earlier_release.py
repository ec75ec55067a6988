"""Messages between this version and release 0.1.0, whose schemas come from the history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from events import codec, earlier
from tests import earlier_release, message_examples

Document = Mapping[str, Any]


def released() -> Document:
    """The schemas of release 0.1.0; today's where the history is missing."""
    document: Document = json.loads(earlier_release.text("events/schemas.json"))
    return document["$defs"]


def fields(schema: Any, definitions: Document, where: str = "") -> Iterator[tuple[str, bool]]:
    """Every field of a message at any depth: its path, and whether it is required."""
    if "$ref" in schema:
        yield from fields(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions, where)
    for name, part in schema.get("properties", {}).items():
        yield f"{where}/{name}", name in schema.get("required", ())
        yield from fields(part, definitions, f"{where}/{name}")
    if "items" in schema:
        yield from fields(schema["items"], definitions, where)


def listed(known: earlier.Fields, where: str = "") -> Iterator[str]:
    """The paths of the fields that 0.1.0 knows, as events/earlier.py lists them."""
    for name, inside in known.items():
        yield f"{where}/{name}"
        yield from listed(inside or {}, f"{where}/{name}")


@pytest.mark.parametrize("type_", earlier.FIELDS)
def test_the_known_fields_of_an_outcome(type_: str) -> None:
    """The list of fields equals the schema of 0.1.0, and 0.1.0 sends every field that is required today."""
    before, today = released(), codec.schemas()["$defs"]
    known = {path for path, _ in fields(before[type_], before)}
    if earlier_release.commit_of_v010():
        assert set(listed(earlier.FIELDS[type_])) == known
    sent = {path for path, required in fields(before[type_], before) if required}
    parents = {path.rpartition("/")[0] for path in known} | {""}
    needed = {path for path, required in fields(today[type_], today) if required and path.rpartition("/")[0] in parents}
    assert needed <= sent


@pytest.mark.parametrize("type_", [*codec.types("command"), "deadline-passed"])
def test_a_command_has_no_later_field(type_: str) -> None:
    """Decisions write commands, and nothing is left out of them: they stay as 0.1.0 knows them."""
    before, today = released(), codec.schemas()["$defs"]
    assert set(fields(today[type_], today)) == set(fields(before[type_], before))


def test_0_1_0_knows_all_internal_messages() -> None:
    """It would park messages of another type."""
    assert {*codec.types("inside"), *codec.types("command")} <= released().keys()


@pytest.mark.parametrize("type_", earlier.FIELDS)
def test_later_fields_are_left_out_at_any_depth(type_: str) -> None:
    """Fields that came later are left out of objects and of the items of lists; all others stay."""
    for valid in message_examples.VALID[type_]:
        event = codec.make(type_, id="e", time_ms=0, data=valid)
        known = earlier.without_later_fields(event)
        again = earlier.without_later_fields(codec.Event(id="e", type=type_, time_ms=0, data=message_examples.with_more(valid)))
        assert again == known
        assert codec.make(type_, id="e", time_ms=0, data=known.data) == known


def test_other_messages_stay() -> None:
    """Nothing is left out of a message that is no outcome."""
    event = codec.Event(id="e", type="session-finished", time_ms=0, data={"Later": 1})
    assert earlier.without_later_fields(event) is event
