"""The codec: bytes to events and back, the envelope, and which bytes are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import codec, errors
from tests import message_examples as messages

NOW_MS = 1_800_000_000_000
VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=9)


@given(
    st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()),
    st.integers(0, 4_102_444_800_000),
    st.sampled_from([(t, d) for t, all_ in messages.VALID.items() for d in all_]),
    VALID_TEXT,
    VALID_TEXT,
)
@example("e", 1_785_542_400_123, ("stop", {"TaskId": messages.TASK}), messages.TASK, "")
def test_an_event_survives_the_wire(
    id_: str, time_ms: int, message: tuple[str, dict[str, Any]], subject: str, cause: str
) -> None:
    """An encoded event decodes to the same event, to the millisecond."""
    event = codec.make(message[0], id=id_, time_ms=time_ms, data=message[1], subject=subject, correlation_id=cause)
    assert codec.decode(codec.encode(event), now_ms=NOW_MS) == event


def test_the_envelope_is_a_cloud_event() -> None:
    """Structured JSON of CloudEvents 1.0 with the attributes of the contract."""
    event = codec.make(
        "stop", id="e1", time_ms=1_785_542_400_123, data={"TaskId": messages.TASK}, subject=messages.TASK, correlation_id="c"
    )
    assert json.loads(codec.encode(event)) == {
        "specversion": "1.0",
        "id": "e1",
        "source": "recorder",
        "type": "stop",
        "time": "2026-08-01T00:00:00.123Z",
        "datacontenttype": "application/json",
        "subject": messages.TASK,
        "correlationid": "c",
        "data": {"TaskId": messages.TASK},
    }


@pytest.mark.parametrize("type_", codec.types())
def test_a_reader_ignores_unknown_fields_of_internal_messages(type_: str) -> None:
    """A newer version may add fields to the recorder's own messages, at any depth. In messages of other publishers an unknown
    field is a fault, and this version sends none."""
    foreign = type_ in codec.types("in")
    for valid in messages.VALID[type_]:
        more = messages.with_more(valid)
        raw = codec.encode(codec.Event(id="e", type=type_, time_ms=0, data=more))
        with pytest.raises(errors.InvalidEvent, match="is not a known field"):
            codec.make(type_, id="e", time_ms=0, data=more)
        if foreign:
            with pytest.raises(errors.InvalidEvent, match="is not a known field"):
                codec.decode(raw, now_ms=NOW_MS)
        else:
            assert codec.decode(raw, now_ms=NOW_MS).data == more


def test_a_bare_body_takes_its_type_and_id_from_outside() -> None:
    """A publisher's bare JSON: type from the routing key, id from message_id, time of arrival; without an id it is refused."""
    raw = json.dumps(messages.VALID["start"][0]).encode()
    event = codec.decode(raw, bare_type="start", bare_id="m1", now_ms=NOW_MS)
    assert (event.type, event.id, event.time_ms, event.data) == ("start", "m1", NOW_MS, messages.VALID["start"][0])
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.decode(raw, bare_type="start", now_ms=NOW_MS)
    assert refused.value.field == "message_id"
    with pytest.raises(errors.InvalidEvent):
        codec.decode(raw, now_ms=NOW_MS)
    with pytest.raises(errors.InvalidEvent):
        codec.decode(b'{"TaskId": "01"}', bare_type="stop", bare_id="m1", now_ms=NOW_MS)


ENVELOPE: dict[str, Any] = {"specversion": "1.0", "id": "e", "source": "s", "type": "stop", "data": {"TaskId": messages.TASK}}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": 1.0}, "specversion"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 5}, "id"),
        ({"id": "x" * 257}, "id"),
        ({"source": None}, "source"),
        ({"type": None}, "type"),
        ({"type": "nothing"}, "type"),
        ({"time": "yesterday"}, "time"),
        ({"time": 5}, "time"),
        ({"data": None}, ""),
        ({"data": "text"}, ""),
        ({"data": {"TaskId": "x"}}, "TaskId"),
        ({"id": "a\x00b"}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"source": "\udfff"}, "source"),
        ({"subject": "\x00"}, "subject"),
        ({"correlationid": "\ud800"}, "correlationid"),
    ],
)
def test_a_bad_envelope_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """Each attribute that is missing or wrong is named."""
    body = {k: v for k, v in (ENVELOPE | changes).items() if v is not None}
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.decode(json.dumps(body).encode(), now_ms=NOW_MS)
    assert refused.value.field == field


def test_times_of_publishers() -> None:
    """A time with another offset is the same moment; no time is the time of arrival."""
    for text, ms in (
        ("2026-08-01T08:00:00+08:00", 1_785_542_400_000),
        ("2026-08-01T00:00:00Z", 1_785_542_400_000),
        (None, NOW_MS),
    ):
        body = {k: v for k, v in (ENVELOPE | {"time": text}).items() if v is not None}
        assert codec.decode(json.dumps(body).encode(), now_ms=NOW_MS).time_ms == ms


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "1969-12-31T23:59:59Z"])
def test_times_that_no_clock_shows(text: str) -> None:
    """A time that cannot be encoded as Unix time again is refused at the entry point."""
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.encode(codec.decode(json.dumps(ENVELOPE | {"time": text}).encode(), now_ms=NOW_MS))
    assert refused.value.field == "time"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"x"', id="a text"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": Infinity}', id="Infinity"),
        pytest.param(b'{"a": -Infinity}', id="-Infinity"),
        pytest.param(b'{"a": ' + b"9" * 5_000 + b"}", id="a number of 5000 digits"),
        pytest.param(b'{"a": 1, "b": 2, "a": 1}', id="a field twice"),
        pytest.param(b'{"b": {"\\ud800": 1, "\\ud800": 1}}', id="a field twice that is no text"),
        pytest.param(b'{"a":' * 20 + b"1" + b"}" * 20, id="20 levels"),
        pytest.param(b'{"a":' * 400 + b"1" + b"}" * 400, id="400 levels"),
        pytest.param(b'{"a":' * 700 + b"1" + b"}" * 700, id="700 levels"),
        pytest.param(b'{"a":' * 100_000, id="100000 levels"),
        pytest.param(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", id="50000 lists"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    """Any bytes decode, or raise InvalidEvent."""
    with pytest.raises(errors.InvalidEvent):
        codec.decode(raw, bare_type="start", bare_id="m", now_ms=NOW_MS)


def test_sixteen_levels_are_allowed() -> None:
    """The size limit has the documented value."""
    assert codec.parse(b'{"a":' * 16 + b"1" + b"}" * 16)
    with pytest.raises(errors.InvalidEvent, match="16"):
        codec.parse(b'{"a":' * 17 + b"1" + b"}" * 17)


@given(st.binary(max_size=60) | messages.JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_message_or_invalid(raw: bytes) -> None:
    """The decoder raises nothing but InvalidEvent."""
    try:
        codec.decode(raw, bare_type="stop", bare_id="m", now_ms=NOW_MS)
    except errors.InvalidEvent:
        return
    raise AssertionError("no such bytes are a stop")
