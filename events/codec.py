"""Codec of messages: CloudEvents 1.0 in structured JSON ↔ `Event`, checked against schemas.json.

Rule: an event from `decode` or `make` has passed its schema. An invalid one raises `InvalidEvent` with the field and the reason,
and never with a value, which may be a secret. Messages from outside are read tolerantly (reader.py), the recorder's own strictly.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import jsonschema_rs

from events import errors, reader

CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "recorder"
MAX_DEPTH = 16
FREE_FIELDS = ("UserData",)  # JSON of the publisher's own, in which an integer may have a decimal point
MAX_DETAIL = 4096  # characters of a Detail that the schemas allow
# A message with more values than this gets only its first fault reported.
MAX_VALUES = 2_000
MAX_TIME_MS = 253_402_214_400_000  # the last day of the year 9999; ISO 8601 has no later time

# Version 00, a trace, a span, flags: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Data = Mapping[str, Any]
Payload = TypeVar("Payload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One message. `time_ms` is the Unix time of its publication, `subject` a TaskId or TaskId/speaker/n. `claim` is its id in
    the inbox where that differs from `id`, so that an id chosen by a publisher cannot equal a derived one. `traceparent` is the
    span that it follows from (W3C Trace Context), "" if nothing is traced."""

    id: str
    type: str
    time_ms: int
    data: Data
    subject: str = ""
    source: str = SOURCE
    correlation_id: str = field(default="")
    claim: str = ""
    traceparent: str = ""

    @property
    def inbox_id(self) -> str:
        """The id under which the inbox deduplicates it; at most 256 characters."""
        return self.claim or self.id


@functools.cache
def schemas() -> dict[str, Any]:
    """The document schemas.json."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name("schemas.json").read_text(encoding="utf-8"))
    return document


@functools.cache
def types(direction: str = "") -> tuple[str, ...]:
    """The names of all message types, or of one direction: in, inside, command or out."""
    entries = schemas()["$defs"].items()
    return tuple(n for n, d in entries if "x-direction" in d and direction in ("", d["x-direction"]))


@functools.cache
def _validator(type_: str, tolerant: bool) -> Any:
    document = _without_bounds(schemas()) if tolerant else schemas()
    wanted = {"$schema": document["$schema"], "$ref": f"#/$defs/{type_}", "$defs": document["$defs"]}
    return jsonschema_rs.validator_for(wanted, validate_formats=True, mask="the value")


def _without_bounds(schema: Any) -> Any:
    """A schema whose objects may have unknown fields."""
    if isinstance(schema, dict):
        kept = {name: part for name, part in schema.items() if name != "additionalProperties" or part is not False}
        return {name: _without_bounds(part) for name, part in kept.items()}
    return [_without_bounds(part) for part in schema] if isinstance(schema, list) else schema


@functools.cache
def _shape(type_: str) -> reader.Shape | None:
    """How to read data of this type tolerantly; None for the recorder's own messages."""
    definitions = schemas()["$defs"]
    return reader.shape(definitions[type_], definitions) if type_ in types("in") else None


def read(type_: str, data: object, *, tolerant: bool = False) -> Data:
    """As `check`, for data as it came from outside: what its sender means is checked and returned. `tolerant`: unknown fields of
    the recorder's own messages are no fault, because a newer version may have sent them."""
    known = _shape(type_)
    return check(type_, data, tolerant=tolerant) if known is None else check(type_, reader.read(data, known))


def check(type_: str, data: object, *, tolerant: bool = False) -> Data:
    """Check `data` against the schema of `type_` and return it. Raises InvalidEvent for the first fault (missing, then unknown,
    then wrong fields) and for an unknown type. `tolerant`: unknown fields are no fault."""
    if type_ not in types():
        raise errors.InvalidEvent("type", f"unknown message type {type_[:64]!r}")
    inside = type_ not in types("out")
    plain = _is_plain(data, inside)
    if not plain:
        _check_text(data, "")
    validator = _validator(type_, tolerant)
    if not validator.is_valid(data):
        _, where, why = min((_fault(e) for e in _faults(validator, data)), key=lambda f: f[0])
        raise errors.InvalidEvent(where, why)
    assert isinstance(data, dict)  # noqa: S101 - every schema is of type object; for the type checker
    if inside and not plain:
        _check_integers({name: value for name, value in data.items() if name not in FREE_FIELDS}, "")
    return data


def make(
    type_: str, *, id: str, time_ms: int, data: Data, subject: str = "", correlation_id: str = "", traceparent: str = ""
) -> Event:
    """Build an event, read and checked by its schema. Raises InvalidEvent."""
    about = {"subject": subject, "correlation_id": correlation_id, "traceparent": traceparent}
    return Event(id=id, type=type_, time_ms=time_ms, data=read(type_, dict(data)), **about)


def encode(event: Event) -> bytes:
    """The event as structured CloudEvents JSON, UTF-8."""
    body: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": iso(event.time_ms),
        "datacontenttype": "application/json",
    }
    if event.subject:
        body["subject"] = event.subject
    if event.correlation_id:
        body["correlationid"] = event.correlation_id
    if event.traceparent:
        body["traceparent"] = event.traceparent
    body["data"] = event.data
    return _WRITING.encode(body).encode()


def decode(raw: bytes, *, bare_type: str = "", bare_id: str = "", now_ms: int) -> Event:
    """Parse and check a message. With `bare_type` and `bare_id`, a body without `specversion` counts as bare data, which
    publishers may send: the type then comes from the routing key, the id from message_id. Raises InvalidEvent."""
    body = parse(raw)
    if "specversion" not in body and bare_type:
        if not bare_id:
            raise errors.InvalidEvent("message_id", "a bare JSON body needs a message_id, under which a repeat is deduplicated")
        _check_text(bare_id, "message_id")
        return make(bare_type, id=bare_id, time_ms=now_ms, data=body)
    for name in ("specversion", "id", "source", "type"):
        if not isinstance(body.get(name), str) or not body[name] or len(body[name]) > 256:
            raise errors.InvalidEvent(name, "must be a string of 1 to 256 characters (CloudEvents 1.0)")
    if body["specversion"] != "1.0":
        raise errors.InvalidEvent("specversion", "only CloudEvents 1.0 is understood")
    for name in ("id", "source", "subject", "correlationid"):
        _check_text(body.get(name, ""), name)
    return Event(
        id=body["id"],
        type=body["type"],
        time_ms=_time_ms(body.get("time"), now_ms),
        data=read(body["type"], body.get("data"), tolerant=True),
        subject=str(body.get("subject") or ""),
        source=body["source"],
        correlation_id=str(body.get("correlationid") or ""),
        traceparent=traceparent(body),
    )


def traceparent(attributes: Mapping[str, Any]) -> str:
    """The traceparent among a message's attributes or headers: CloudEvents' extension "Distributed Tracing". "" for none, and for
    anything else."""
    found = attributes.get("traceparent")
    return found if isinstance(found, str) and _TRACEPARENT.fullmatch(found) else ""


def parse(raw: bytes) -> dict[str, Any]:
    """Parse bytes to a JSON object; a byte-order mark is skipped. Raises InvalidEvent for anything else, for deeper nesting than
    `MAX_DEPTH`, and for a repeated field: one reader takes its first value and another its last, so the checked value might not
    be the used one."""
    try:
        body = _READING.decode(raw.removeprefix(reader.BOM).decode("utf-8"))
    except errors.InvalidEvent:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise errors.InvalidEvent("", "the body is not JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise errors.InvalidEvent("", "the body must be a JSON object")
    # Fewer brackets cannot nest deeper.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and nests_deeper(body, MAX_DEPTH):
        raise errors.InvalidEvent("", f"the body nests deeper than {MAX_DEPTH} levels")
    return body


def to_payload(kind: Callable[..., Payload], data: Data) -> Payload:
    """An event's data, checked before, as a dataclass: its field `first_packet_ms` is `FirstPacketMs`. A field's metadata may
    name a function that parses it."""
    values = {}
    for name, key, _, read in _payload_fields(kind):
        if key in data:
            values[name] = data[key] if read is None or data[key] is None else read(data[key])
    return kind(**values)


def from_payload(payload: Any) -> dict[str, Any]:
    """The opposite of `to_payload`. Leaves out a field with its default value, and cuts a detail longer than schemas allow."""
    kind: Any = type(payload)
    data: dict[str, Any] = {}
    for name, key, default, read in _payload_fields(kind):
        value = getattr(payload, name)
        if default is dataclasses.MISSING or value != default:
            data[key] = value if read is None else value.to_json()
    if "Detail" in data:
        data["Detail"] = data["Detail"][:MAX_DETAIL]
    return data


@functools.cache
def _payload_fields(kind: Any) -> tuple[tuple[str, str, Any, Any], ...]:
    """(field, name in JSON, default, parser) of each field of a payload."""
    return tuple(
        (f.name, "".join(word.capitalize() for word in f.name.split("_")), f.default, f.metadata.get("parse"))
        for f in dataclasses.fields(kind)
    )


def iso(time_ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time_ms(text: object, now_ms: int) -> int:
    if reader.is_absent(text):
        return now_ms
    try:
        time_ms = round(datetime.fromisoformat(str(text)).timestamp() * 1000)
        if not 0 <= time_ms < MAX_TIME_MS:
            iso(time_ms)
    except (ValueError, OverflowError):
        raise errors.InvalidEvent("time", "must be an ISO 8601 time") from None
    if time_ms < 0:
        raise errors.InvalidEvent("time", "must not be before 1970")
    return time_ms


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # In one pass: a body may have tens of thousands of names.
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise errors.InvalidEvent(twice[:64].encode("utf-8", "backslashreplace").decode(), "is given twice")
    return found


# Built once: building a decoder costs more than decoding a message.
_READING = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)
_WRITING = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def nests_deeper(value: object, levels: int) -> bool:
    """Whether objects and arrays nest deeper than so many levels."""
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(nests_deeper(child, levels - 1) for child in children)


def _faults(validator: Any, data: object) -> Iterable[Any]:
    """The faults of invalid data: all of them, or only the first one for a large message, whose list of faults could take a
    kilobyte for each two bytes received."""
    if _values_left(data, MAX_VALUES) >= 0:
        found: Iterable[Any] = validator.iter_errors(data)
        return found
    try:
        validator.validate(data)
    except jsonschema_rs.ValidationError as error:
        return (error,)
    raise AssertionError("valid after all")


def _values_left(value: object, left: int) -> int:
    """`left` minus the number of values in `value`, itself included; negative if it holds more."""
    left -= 1
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if left < 0:
            break
        left = _values_left(child, left)
    return left


def _fault(error: Any) -> tuple[int, str, str]:
    """(rank, field, reason) of one of the validator's errors. The validator's text masks the instance, but its `instance_path`
    names neither a missing nor an unknown field."""
    path = ".".join(str(p) for p in error.instance_path)
    kind = error.kind
    match kind.name:
        case "required":
            return 0, _join(path, kind.property), "is required"
        case "additionalProperties":
            return 1, _join(path, str(kind.unexpected[0])[:64]), "is not a known field"
        case "anyOf":
            return 2, path, _any_of(error)
        case _:
            return 2, path, str(error.message)


def _any_of(error: Any) -> str:
    branches = [list(branch) for branch in error.kind.context]
    if all(e.kind.name == "required" for branch in branches for e in branch):
        return "needs " + " or ".join(" and ".join(e.kind.property for e in branch) for branch in branches)
    return "; or ".join(str(branch[0].message) for branch in branches if branch)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_plain(value: object, whole: bool) -> bool:
    """Whether all text in a value is valid and, with `whole`, no number has a decimal point. This quick check without paths is
    nearly always enough."""
    if isinstance(value, str):
        return ("\x00" not in value and value.isascii()) or is_text(value)
    if isinstance(value, dict):
        for name, child in value.items():
            if not (name.isascii() and "\x00" not in name) or (type(child) is not int and not _is_plain(child, whole)):
                return False
        return True
    if isinstance(value, list):
        return all(_is_plain(child, whole) for child in value)
    return not (whole and isinstance(value, float))


def _check_integers(value: object, path: str) -> None:
    """Refuse 1.0 as an integer, which JSON Schema accepts."""
    if isinstance(value, float):
        raise errors.InvalidEvent(path, "must be an integer, written without a decimal point")
    for name, child in _children(value):
        _check_integers(child, _join(path, name))


def _check_text(value: object, path: str) -> None:
    """Refuse text that no database, header or validator can hold: NUL and lone surrogates, in field names too."""
    if isinstance(value, str) and not is_text(value):
        raise errors.InvalidEvent(path, "contains a character that is not valid text")
    for name, child in _children(value):
        if not is_text(name):
            raise errors.InvalidEvent(path, "has a field whose name is not valid text")
        _check_text(child, _join(path, name))


def _children(value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [(str(name), child) for name, child in value.items()]
    if isinstance(value, list):
        return [(str(index), child) for index, child in enumerate(value)]
    return []


def is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text
