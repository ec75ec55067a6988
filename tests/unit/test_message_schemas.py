"""The schemas: accepted and refused data, the text of a refusal, and that no refusal repeats a secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import codec, errors
from tests import message_examples as messages


def _changed(type_: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The first valid example with some fields changed; None takes a field away."""
    return {k: v for k, v in (messages.VALID[type_][0] | changes).items() if v is not None}


def test_every_type_has_examples() -> None:
    """Every type of the document is tested here, and no other; each has a valid and an invalid example."""
    assert set(messages.VALID) == set(codec.types())
    assert {type_ for type_, *_ in messages.WRONG} == set(codec.types())


@pytest.mark.parametrize("type_", messages.VALID)
def test_what_is_right_is_taken(type_: str) -> None:
    """Every valid example is accepted."""
    for data in messages.VALID[type_]:
        assert codec.check(type_, data) == data


@pytest.mark.parametrize(("type_", "changes", "field", "reason"), messages.WRONG)
def test_what_is_wrong_is_refused_by_name(type_: str, changes: dict[str, Any], field: str, reason: str) -> None:
    """A refusal names the field and the reason, and never repeats a secret's value."""
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.check(type_, _changed(type_, changes))
    assert refused.value.field == field
    assert reason in refused.value.reason
    assert refused.value.reason
    assert messages.MARK not in str(refused.value)


def test_missing_comes_before_unknown_and_wrong() -> None:
    """Of several faults the most helpful one is named: a missing field, then an unknown one, then a wrong one."""
    body = {"SdkAppId": "x", "RoomId": 1, "CosConfig": messages.COS, "Usr": 1}
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.check("start", body)
    assert refused.value.field == "UserId"
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.check("start", body | {"UserId": "rec"})
    assert refused.value.field == "Usr"


def test_every_schema_is_of_2020_12() -> None:
    """The document and each of its entries are valid JSON Schema 2020-12, described field by field, closed to unknown fields."""
    document = codec.schemas()
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(document)
    for name, schema in document["$defs"].items():
        jsonschema_rs.meta.validate({"$schema": document["$schema"], **schema})
        assert schema["description"], name
    for where, schema in _objects(document["$defs"], ""):
        assert schema.get("additionalProperties") is False, where
        assert set(schema.get("required", ())) <= set(schema["properties"]), where


def _objects(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield where, node
        for name, child in node.items():
            yield from _objects(child, f"{where}/{name}")
    elif isinstance(node, list):
        for child in node:
            yield from _objects(child, where)


def test_secrets_are_marked_and_only_users_send_them() -> None:
    """UserSig, SecretId, SecretKey and Token are marked secret everywhere, and appear only in start and replay."""
    found = set()
    for name, schema in codec.schemas()["$defs"].items():
        for _, part in _objects(schema, ""):
            for field, about in part["properties"].items():
                if field in ("UserSig", "SecretId", "SecretKey", "Token"):
                    assert about.get("x-secret") is True
                    found.add(name)
    assert found == {"start", "replay"}


@given(st.sampled_from(sorted(messages.VALID)), st.data())
def test_nothing_but_invalid_event_is_raised(type_: str, data: st.DataObject) -> None:
    """For any value in any field, the check accepts or raises InvalidEvent; a marked secret is never repeated."""
    body = dict(data.draw(st.sampled_from(messages.VALID[type_])))
    for name in data.draw(st.lists(st.sampled_from(sorted(body)), max_size=3)):
        body[name] = data.draw(messages.JSON)
    body |= data.draw(
        st.dictionaries(st.sampled_from(["UserSig", "CosConfig", "x"]), messages.JSON | st.just({"SecretKey": messages.MARK}))
    )
    said = ""
    try:
        codec.check(type_, body)
    except errors.InvalidEvent as error:
        said = str(error)
    assert messages.MARK not in said


def test_an_unknown_type_is_refused() -> None:
    """An unknown type, or the name of a part of the document, is no message."""
    for name in ("nothing", "File", "", "x" * 500):
        with pytest.raises(errors.InvalidEvent) as refused:
            codec.check(name, {})
        assert refused.value.field == "type"
        assert len(str(refused.value)) < 200
