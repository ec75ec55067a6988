"""Fuzzed messages of every type in events/schemas.json, valid and mutated. A seed always gives the same messages.

Rule: rooms, users and TaskIds come from a fixed pool. So no message can stop a session outside of it, and the few valid starts
open a bounded number of sessions.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from events import codec

KINDS = {"in": "event", "inside": "event", "command": "command", "out": "event"}
APPS = (1400000001, 1400000002)
ROOMS = (7001, 7002)
STR_ROOMS = ("fuzz room", "../../etc", "7001")
USERS = ("recorder", "alice", "bob", "-rf", "../x", "a|b", "名字", "x" * 32)
TASKS = ("01JBX5Q9V7T3M8K2C4D6F8H0ZW", "01JBX5Q9V7T3M8K2C4D6F8H0ZX")
NODES = ("node-5f1c0a9e2b7d4c36", "elsewhere")
MOST_OPTIONAL = 0.4
TIME = "2026-11-02T08:00:00+00:00"
# Unexpected values, for any field.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.0, 1.5, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, -(10**30), 1e300, float("inf"),
    float("nan"), "", " ", "0", "-", "..", "/", "\x00", "a\x00b", "\ud800", "a\udfffb", "\U0001f600", "\u202e\u2066", "\r\nX: y",
    "x" * 63, "x" * 64, "x" * 65, "é" * 64, "x" * 5_000, "名" * 256, [], {}, [[]], [None], {"": ""}, {"\x00": 1}, {"\ud800": 1},
    "${jndi:ldap://x}", "'; DROP TABLE sessions; --", "%00%n%s", "{{7*7}}", "01JBX5Q9V7T3M8K2C4D6F8H0ZW/alice/1",
)  # fmt: skip
KEYS = (
    "", "event", "event.", "event..", "event.start.x", "event.#", "event.*", "EVENT.START", "command", "command.",
    "command.start",
    "command.start-capture.nobody", "command.stop-capture.x.y", "event.session-finished", "command.start-capture", "x" * 255,
    "event." + "é" * 100, "\x00", "event.start\n", "event.deadline-passed", "command.event.start",
)  # fmt: skip
IDS = ("x" * 247, "x" * 248, "x" * 255, "x" * 256, "x" * 257, "é" * 256, "名" * 256, "a\x00b", "\ud800", "", "a b", "\n", "../..")
TEXTS = ("", "text/plain", "application/json", "application/xml", "application/cloudevents-batch+json", "\x00", "x" * 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as published. `properties` are those of AMQP."""

    n: int
    key: str
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)
    made_by: str = ""

    @property
    def channel(self) -> str:
        """`event` or `command`, by the routing key; `event` for any other key."""
        return "command" if self.key.startswith("command.") else "event"

    def id(self) -> str:
        """The id under which the service would decide it; "" if it has none."""
        try:
            body = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(body, dict):
            return ""
        return str(body.get("id", "")) if "specversion" in body else str(self.properties.get("message_id", ""))


def messages(seed: int, count: int) -> Iterator[Message]:
    """`count` messages; about one in twelve stays valid."""
    dice = random.Random(seed)
    yield from (_refused(n, id_) for n, id_ in enumerate(IDS))
    for n in range(len(IDS), count):
        message = _valid(dice, n)
        made_by = []
        for _ in range(dice.choice((1,) * 6 + (2,) * 4 + (3, 0))):
            mutate = dice.choice(MUTATIONS)
            message = mutate(dice, message)
            made_by.append(mutate.__name__.strip("_"))
        yield replace(message, made_by="+".join(made_by) or "nothing")


def _refused(n: int, id_: str) -> Message:
    """A valid start that is refused, because no recorder can enter the room without a UserSig. Its answer's id is made from this
    id and is longer."""
    data: dict[str, Any] = {"SdkAppId": APPS[0], "RoomId": ROOMS[0], "UserId": "refused"}
    _tame(random.Random(0), data)
    del data["UserSig"]
    whole = {"specversion": "1.0", "id": id_, "source": "fuzz", "type": "start", "data": data}
    return Message(n=n, key="event.start", body=_dump(whole), made_by="nothing")


# --- valid messages -------------------------------------------------------------------------------------------------------
def _valid(dice: random.Random, n: int) -> Message:
    type_ = dice.choice(codec.types())
    definition = codec.schemas()["$defs"][type_]
    data = _sample(dice, definition, type_)
    if dice.random() < 0.9:
        data.pop("SubscribeUserIds", None)
    if type_ == "start":
        _tame(dice, data)
    kind = KINDS[definition["x-direction"]]
    properties: dict[str, Any] = {"message_id": f"fuzz-{n}"}
    if kind == "event" and dice.random() < 0.3:
        return Message(n=n, key=f"{kind}.{type_}", body=_dump(data), properties=properties | {"content_type": "application/json"})
    whole = {"specversion": "1.0", "id": f"fuzz-{n}", "source": "fuzz", "type": type_, "time": TIME, "data": data}
    properties["content_type"] = codec.CONTENT_TYPE
    return Message(n=n, key=f"{kind}.{type_}", body=_dump(whole), properties=properties)


def _tame(dice: random.Random, data: dict[str, Any]) -> None:
    """Make a start acceptable to a service with the simulator: its bucket exists, and its result goes nowhere."""
    data["CosConfig"] = {"Region": "ap-shanghai", "Bucket": "recordings-1250000000", "Path": "fuzz"}
    data["CosConfig"] |= {"SecretId": "AKIDexample", "SecretKey": "secret-key-example"}
    data.pop("Callback", None)
    data["UserSig"] = "any"
    data.pop(dice.choice(("SubscribeUserIds", "UnSubscribeUserIds")), None)


def _sample(dice: random.Random, schema: dict[str, Any], name: str) -> Any:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return _sample(dice, codec.schemas()["$defs"][name], name)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if "properties" in schema:
        required = schema.get("required", ())
        chosen = [f for f in schema["properties"] if f in required or dice.random() < MOST_OPTIONAL]
        return {f: _sample(dice, schema["properties"][f], f) for f in chosen}
    if "type" not in schema and "anyOf" in schema:
        return _sample(dice, dice.choice(schema["anyOf"]), name)
    return _plain(dice, schema, name)


def _plain(dice: random.Random, schema: dict[str, Any], name: str) -> Any:
    match schema.get("type"):
        case "integer" | "number":
            return _number(dice, schema, name)
        case "boolean":
            return dice.random() < 0.5
        case "array":
            return [_sample(dice, schema.get("items", {}), name) for _ in range(dice.randrange(3))]
        case "object":
            return {}
        case _:
            return _text(dice, name)


def _number(dice: random.Random, schema: dict[str, Any], name: str) -> int:
    match name:
        case "SdkAppId":
            return dice.choice(APPS)
        case "RoomId":
            return dice.choice(ROOMS)
        case "EventMs" | "FirstPacketMs" | "LastPacketMs" | "Ms":
            return dice.choice((1, 1_800_000_000_000, 4_000_000_000_000))
    low = int(schema.get("minimum", 0))
    return dice.choice((low, low + 1, min(low + 5, int(schema.get("maximum", low + 5)))))


def _text(dice: random.Random, name: str) -> str:
    known = {"TaskId": TASKS, "StrRoomId": STR_ROOMS, "Node": NODES, "UserId": USERS, "Speaker": USERS, "Crc64": ("123",)}
    known |= {"SubscribeUserIds": USERS, "UnSubscribeUserIds": USERS, "Url": ("https://x.invalid/",)}
    if name == "Owner":
        return dice.choice((*TASKS, f"{TASKS[0]}/alice/1", f"{TASKS[0]}#1", "x", "/", "#", "a/b/c/d", "a#b"))
    return dice.choice(known.get(name, ("x", "stopped", "ok", "idle")))


# --- mutations ------------------------------------------------------------------------------------------------------------
def _flipped(dice: random.Random, message: Message) -> Message:
    body = bytearray(message.body or b"x")
    for _ in range(dice.randint(1, 4)):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return replace(message, body=bytes(body))


def _truncated(dice: random.Random, message: Message) -> Message:
    return replace(message, body=message.body[: dice.randrange(len(message.body) + 1)])


def _of_other_bytes(dice: random.Random, message: Message) -> Message:
    text = message.body.decode("utf-8", "replace")
    made: tuple[bytes, ...] = (
        b"", b"null", b"[]", b"0", b'""', b"\xff\xfe", b"\xef\xbb\xbf" + message.body, text.encode("utf-16"), message.body * 2,
        gzip.compress(message.body, mtime=0), dice.randbytes(dice.randrange(1, 400)), b"<?xml version='1.0'?>", b"\x00" * 64,
        b" " * 300_000,
    )  # fmt: skip
    return replace(message, body=dice.choice(made))


def _deep(dice: random.Random, message: Message) -> Message:
    levels = dice.choice((15, 16, 17, 40, 1_000, 100_000))
    if dice.random() < 0.5:
        return replace(message, body=b'{"a":' * levels + b"1" + b"}" * levels)
    return replace(message, body=b'{"specversion":"1.0","data":' + b"[" * levels + b"]" * levels + b"}")


def _odd_value(dice: random.Random, message: Message) -> Message:
    def change(body: Any) -> None:
        holder, name = dice.choice(_places(body))
        holder[name] = copy.deepcopy(dice.choice(ODD))

    return _in_json(message, change)


def _missing(dice: random.Random, message: Message) -> Message:
    def change(body: Any) -> None:
        holder, name = dice.choice(_places(body))
        del holder[name]

    return _in_json(message, change)


def _unknown(dice: random.Random, message: Message) -> Message:
    def change(body: Any) -> None:
        holder, _ = dice.choice(_places(body))
        if isinstance(holder, dict):
            holder[
                dice.choice(("x", "dataschema", "traceparent", "\x00", "\ud800", "名", "data_base64", "taskid", "__proto__"))
            ] = 1

    return _in_json(message, change)


def _twice(dice: random.Random, message: Message) -> Message:
    name = dice.choice((b"id", b"type", b"data", b"UserId", b"TaskId"))
    return replace(message, body=b'{"' + name + b'":"x",' + message.body[1:])


def _long_number(dice: random.Random, message: Message) -> Message:
    digits = b"9" * dice.choice((20, 400, 5_000))
    return replace(message, body=message.body.replace(b": 1", b": " + digits, 1).replace(b":1", b":" + digits, 1))


def _envelope(dice: random.Random, message: Message) -> Message:
    name = dice.choice(("specversion", "id", "type", "source", "time", "subject", "correlationid", "datacontenttype", "data"))
    times = ("", "0000-01-01", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z", "2026-02-30", "now", "2026-11-02T08:00:00")
    values = {"time": times, "id": IDS, "correlationid": IDS, "subject": IDS, "type": (*codec.types(), "start\x00", "")}

    def change(body: Any) -> None:
        body[name] = copy.deepcopy(dice.choice((*values.get(name, ()), *values.get(name, ()), *ODD)))

    return _in_json(message, change)


def _other_key(dice: random.Random, message: Message) -> Message:
    return replace(message, key=dice.choice((*KEYS, *(f"event.{t}" for t in codec.types()))))


def _other_properties(dice: random.Random, message: Message) -> Message:
    # A message always has an id. The client library would invent one, and the test could not tell which message was which.
    changes: tuple[dict[str, Any], ...] = (
        {"message_id": "0"}, {"message_id": " "}, {"message_id": "x" * 255}, {"message_id": "é" * 127}, {"message_id": "\x00"},
        {"message_id": "fuzz-1"}, {"content_encoding": "gzip"}, {"content_encoding": "\x00"}, {"correlation_id": "名" * 80},
        {"type": "stop"}, {"app_id": "recorder"}, {"reply_to": "somewhere"}, {"priority": 255},
        *({"content_type": text} for text in TEXTS),
    )  # fmt: skip
    return replace(message, properties=message.properties | dice.choice(changes))


def _other_headers(dice: random.Random, message: Message) -> Message:
    changes: tuple[dict[str, Any], ...] = (
        {"x-delivery-count": 10**9}, {"x-delivery-count": "many"}, {"x-death": "none"}, {"x-reason": "forged"},
        {"x-death": [{"count": 99, "queue": "recorder.requests", "reason": "rejected"}]}, {"x-routing-key": "event.stop"},
        {"x-sealed-by": "forged"}, {"x-shown": {"a": [1, None, True]}}, {"": ""}, {"é" * 60: 1}, {"big": "x" * 60_000},
        {"deep": {"a": {"b": {"c": {"d": [1.5, -1, 2**40]}}}}}, {f"h{n}": n for n in range(200)},
        {"bytes": bytearray(b"\xff\x00\xfe")},
        {"cloudEvents:specversion": "1.0", "cloudEvents:type": "stop"}, {"time": datetime(1970, 1, 2, tzinfo=UTC)},
    )  # fmt: skip
    return replace(message, headers=message.headers | dice.choice(changes))


Mutation = Callable[[random.Random, Message], Message]
MUTATIONS: tuple[Mutation, ...] = (
    _flipped, _truncated, _of_other_bytes, _deep, _odd_value, _odd_value, _odd_value, _missing, _missing, _unknown, _twice,
    _long_number, _envelope, _envelope, _other_key, _other_properties, _other_headers,
)  # fmt: skip


def _in_json(message: Message, change: Callable[[Any], None]) -> Message:
    """The message with its JSON changed; unchanged if an earlier mutation left no JSON."""
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        return message
    if not isinstance(body, dict) or not body:
        return message
    try:
        change(body)
        return replace(message, body=_dump(body))
    except RecursionError:
        return message


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (object or array, name or index) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    ahead = [value]
    while ahead:
        here = ahead.pop()
        for name, child in here.items() if isinstance(here, dict) else enumerate(here):
            found.append((here, name))
            if isinstance(child, dict | list):
                ahead.append(child)
    return found


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")
