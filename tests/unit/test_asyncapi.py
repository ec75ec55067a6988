"""docs/asyncapi.yaml: a document that AsyncAPI's own schema accepts, with every public message and no internal one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from events import codec

ROOT = Path(__file__).parent.parent.parent
TASK = "01JD0000000000000000000000"
START = {
    "SdkAppId": 1400000001,
    "RoomId": 8489,
    "UserId": "recorder",
    "CosConfig": {"Region": "ap-x", "Bucket": "b-1250", "Path": ""},
}
ACCEPTED = {"TaskId": TASK, "Repeated": False, "Warnings": []}


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))


def validator(document: Any, message: str) -> Any:
    """A validator of a message's payload."""
    payload = document["components"]["messages"][message]["payload"]
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "components": document["components"], "allOf": [payload]}
    return jsonschema_rs.validator_for(whole)


def test_it_is_asyncapi(document: Any) -> None:
    """AsyncAPI's own JSON Schema of version 3.0.0 accepts the document, and rejects a document with a planted error."""
    schema = json.loads((ROOT / "tests" / "data" / "asyncapi-3.0.0.json").read_text(encoding="utf-8"))
    official = jsonschema_rs.validator_for(schema)
    assert [f"{list(error.instance_path)}: {error.message[:200]}" for error in official.iter_errors(document)] == []
    assert not official.is_valid(document | {"channels": {"event.start": {"adress": "event.start"}}})
    broken = document["operations"] | {"take-start": {"action": "eat", "channel": {"$ref": "#/channels/event.start"}}}
    assert not official.is_valid(document | {"operations": broken})


def test_it_has_what_is_public_and_nothing_else(document: Any) -> None:
    """Every inbound event and every result has a channel under its routing key; internal messages have none."""
    wanted = [f"event.{name}" for name in codec.types("in")] + [f"result.{name}" for name in codec.types("out")]
    assert [channel["address"] for channel in document["channels"].values()] == wanted
    assert {channel["bindings"]["amqp"]["exchange"]["name"] for channel in document["channels"].values()} == {"recorder"}
    operations = document["operations"].values()
    assert [o["channel"]["$ref"].removeprefix("#/channels/") for o in operations if o["action"] == "receive"] == wanted[
        : len(codec.types("in"))
    ]
    assert not {*codec.types("command"), *codec.types("inside")} & {*document["components"]["schemas"]}


def test_every_reference_leads_somewhere(document: Any) -> None:
    """Every `$ref` has a target."""

    def references(value: Any) -> list[str]:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = [value["$ref"]] if isinstance(value, dict) and isinstance(value.get("$ref"), str) else []
        return own + [each for child in children for each in references(child)]

    for reference in references(document):
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_what_the_recorder_says_is_what_it_describes(document: Any) -> None:
    """A result on the wire matches the payload of its message, and so does a start in either form; wrong ones do not."""
    event = codec.make("session-accepted", id="r", time_ms=1, data=ACCEPTED, subject=TASK, correlation_id="e")
    sent = json.loads(codec.encode(event))
    assert validator(document, "session-accepted").is_valid(sent)
    assert not validator(document, "session-refused").is_valid(sent)
    start = json.loads(codec.encode(codec.make("start", id="e", time_ms=1, data=START)))
    assert validator(document, "start").is_valid(start)
    assert validator(document, "start-bare").is_valid(START)
    assert not validator(document, "start-bare").is_valid(START | {"Moed": "02"})
    cos = START["CosConfig"] | {"SecretId": "without its key"}  # type: ignore[operator]
    assert not validator(document, "start-bare").is_valid(START | {"CosConfig": cos})
