"""Messages between this version and release 0.1.0, whose schemas come from the history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from events import codec, earlier
from tests import earlier_release

OUTCOMES = codec.types("inside")
Document = Mapping[str, Any]


def released() -> Document:
    """The schemas of release 0.1.0; today's where the history is missing."""
    document: Document = json.loads((earlier_release.v010().root / "events" / "schemas.json").read_text(encoding="utf-8"))
    return document["$defs"]


def fields(schema: Any, definitions: Document, where: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every field of a message at any depth: its path, its schema, and whether it is required."""
    if "$ref" in schema:
        yield from fields(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions, where)
    for name, part in schema.get("properties", {}).items():
        yield f"{where}/{name}", part, name in schema.get("required", ())
        yield from fields(part, definitions, f"{where}/{name}")
    if "items" in schema:
        yield from fields(schema["items"], definitions, f"{where}/*")


@pytest.mark.parametrize("type_", [*OUTCOMES, *codec.types("command")])
def test_new_fields_of_internal_messages_are_optional_and_marked(type_: str) -> None:
    """A field that 0.1.0 does not know is marked `x-after` in schemas.json, so that it is left out beside nodes of 0.1.0, and is
    not required, because they do not send it. Only outcomes of workers have such fields: nothing is left out of commands."""
    before, today = released(), codec.schemas()["$defs"]
    assert type_ in before, "0.1.0 parks messages of this type: nodes may send it only after `recorder migrate --contract`"
    known = {path for path, _, _ in fields(before[type_], before)}
    new: list[str] = []
    for path, schema, required in fields(today[type_], today):
        if path in known or any(path.startswith(f"{parent}/") for parent in new):
            continue
        new.append(path)
        assert schema.get("x-after") == "0.1.0", f'{type_}{path} came after 0.1.0: mark it "x-after": "0.1.0"'
        assert not required, f"{type_}{path} came after 0.1.0, which does not send it"
        assert type_ in OUTCOMES, f"{type_}{path}: a decision leaves nothing out of a command"


def test_later_fields_are_left_out_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields marked as later are left out of objects, of lists and of parts of the document; all others stay."""
    pair = {"type": "object", "properties": {"Old": {"type": "integer"}, "New": {"type": "integer", "x-after": "0.1.0"}}}
    message = {
        "type": "object",
        "properties": {
            "Whole": {"$ref": "#/$defs/pair", "x-after": "0.1.0"},
            "One": {"$ref": "#/$defs/pair"},
            "Many": {"type": "array", "items": {"$ref": "#/$defs/pair"}},
            "Plain": {"type": "array", "items": {"type": "integer"}},
        },
    }
    monkeypatch.setattr(codec, "schemas", lambda: {"$defs": {"pair": pair, "message": message}})
    both = {"Old": 1, "New": 2}
    data = {"Whole": both, "One": both, "Many": [both, {"Old": 3}], "Plain": [1, 2], "Else": {"New": 4}}
    made = earlier.without_later_fields(codec.Event(id="e", type="message", time_ms=0, data=data))
    assert made.data == {"One": {"Old": 1}, "Many": [{"Old": 1}, {"Old": 3}], "Plain": [1, 2], "Else": {"New": 4}}
    assert data["Whole"] == both
