"""Tolerant reader: what the sender of a message means, before its schema decides.

Rules: reads a body by its schema. A string of digits in place of an integer is that integer. `null` or `""` in an optional field
means that it was not given. White space around a secret is dropped. An alias is read as the field's name. Everything else stays
as it came, so that the schema's error names the field. Reading a second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

BOM = b"\xef\xbb\xbf"
# Digits of the largest number that any field allows, and some more: Python needs quadratic time for long ones.
MAX_DIGITS = 20


class Shape(NamedTuple):
    """What the reader needs of an object's schema."""

    optional: frozenset[str]
    integers: frozenset[str]
    secrets: frozenset[str]
    objects: Mapping[str, Shape]
    aliases: Mapping[str, str]


def shape(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Shape:
    """The shape of a schema of type object; `definitions` are the targets of its references."""
    fields = {name: _resolved(about, definitions) for name, about in schema.get("properties", {}).items()}
    return Shape(
        optional=frozenset(fields) - frozenset(schema.get("required", ())),
        integers=frozenset(name for name, about in fields.items() if _is_integer(about)),
        secrets=frozenset(name for name, about in fields.items() if about.get("x-secret")),
        objects={name: shape(about, definitions) for name, about in fields.items() if about.get("type") == "object"},
        aliases=schema.get("x-aliases", {}),
    )


def read(data: Any, known: Shape) -> Any:
    """The body as its sender means it; a copy. Anything but an object stays as it came."""
    if not isinstance(data, dict):
        return data
    # An alias next to its field stays, and is refused as unknown.
    aliased = {name for name in data if name in known.aliases and known.aliases[name] not in data}
    named = {known.aliases[name] if name in aliased else name: value for name, value in data.items()}
    meant = {name: _meant(name, value, known) for name, value in named.items()}
    return {name: value for name, value in meant.items() if not (name in known.optional and is_absent(value))}


def _meant(name: str, value: Any, known: Shape) -> Any:
    if name in known.integers:
        return number(value)
    if name in known.secrets:
        return trimmed(value)
    return read(value, known.objects[name]) if name in known.objects else value


def is_absent(value: object) -> bool:
    """Whether the value of an optional field means that it was not given."""
    return value is None or value == ""


def number(value: object) -> Any:
    """The integer that a string of digits stands for; any other value as it came."""
    if isinstance(value, str) and 0 < len(value) <= MAX_DIGITS and value.isascii() and value.isdigit():
        return int(value)
    return value


def trimmed(value: Any) -> Any:
    """A secret without the white space, and without the byte-order mark, that files and consoles add."""
    return value.strip().removeprefix("\ufeff").strip() if isinstance(value, str) else value


def _resolved(about: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = about.get("$ref", "")
    return {**definitions[reference.rpartition("/")[2]], **about} if reference else about


def _is_integer(about: Mapping[str, Any]) -> bool:
    return about.get("type") == "integer" or any(branch.get("type") == "integer" for branch in about.get("anyOf", ()))
