"""Messages as release 0.1.0 understands them: without the fields that came after it, which are marked `x-after` in schemas.json.

Rule: 0.1.0 parks a message with an unknown field, so nodes that share a broker with it leave these fields out. Later versions
ignore unknown fields.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from events import codec

# Field → None for one that came later, otherwise what came later inside it. The items of a list have the field "".
Later = dict[str, "Later | None"]


def without_later_fields(event: codec.Event) -> codec.Event:
    """The event as 0.1.0 would have sent it."""
    later = _later(event.type)
    return dataclasses.replace(event, data=_without(event.data, later)) if later else event


@functools.cache
def _later(type_: str) -> Later:
    definitions = codec.schemas()["$defs"]
    return _marked(definitions[type_], definitions)


def _marked(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Later:
    if "$ref" in schema:
        return _marked(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    made: Later = {}
    for name, part in {**schema.get("properties", {}), **({"": schema["items"]} if "items" in schema else {})}.items():
        inside = None if "x-after" in part else _marked(part, definitions)
        if inside is None or inside:
            made[name] = inside
    return made


def _without(value: Any, later: Later) -> Any:
    if isinstance(value, list):
        return [_without(part, later.get("") or {}) for part in value]
    if not isinstance(value, Mapping) or not later:
        return value
    kept = {name: part for name, part in value.items() if later.get(name, {}) is not None}
    return {name: _without(part, later.get(name) or {}) for name, part in kept.items()}
