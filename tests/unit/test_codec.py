"""The codec: accepted and refused messages, the text of a refusal, and that no refusal repeats a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import codec, errors

NOW_MS = 1_800_000_000_000
TASK = "01" + "0" * 24
MARK = "MARKED-secret"
COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p"}
JOB = {"TaskId": TASK, "Speaker": "al", "N": 1, "Epoch": 1}
DELIVERY = {"TaskId": TASK, "Revision": 1, "Epoch": 1}
USER = {"SdkAppId": 1, "RoomId": 8, "UserId": "al", "EventMs": 5}
OUTPUT = {"DurationMs": 5, "SizeBytes": 9, "Crc64": "1", "StartMs": None, "EndMs": 2, "Gaps": [{"AtMs": 1, "DurationMs": 2}]}
FILE = {
    "UserId": "al",
    "RecordFile": "",
    "Status": 0,
    "Message": "录制失败",
    "Code": "FailedRecording",
    "Detail": "",
    "StartTime": "",
    "EndTime": "",
    "Duration": 1.5,
    "Size": 0,
    "Crc64": "",
    "Gaps": [{"At": 0.5, "Duration": 1}],
}
KEY = {"SdkAppId": "1", "RoomId": "8", "StrRoomId": "", "UserId": "rec"}
RESULT = {"TaskId": TASK, **KEY, "Speaker": "al", "N": 1, "Attempt": 1, "File": FILE}
VALID: dict[str, list[dict[str, Any]]] = {
    "start": [
        {"SdkAppId": 1, "RoomId": 8, "UserId": "rec", "UserSig": "s", "CosConfig": COS},
        {"SdkAppId": 4294967295, "RoomId": "", "StrRoomId": "r .%|~", "UserId": "rec", "CosConfig": COS, "Mode": "02"},
        {"SdkAppId": 1, "RoomId": 0, "StrRoomId": "r", "UserId": "r", "CosConfig": COS | {"SecretId": "i", "SecretKey": "k"}},
        {"SdkAppId": 1, "RoomId": 8, "UserId": "rec", "CosConfig": COS, "Callback": "https://x/y?z=1", "SubscribeUserIds": ["a"]},
    ],
    "stop": [{"TaskId": TASK}, {"SdkAppId": 1, "RoomId": 8, "UserId": "rec"}],
    "replay": [
        {"TaskId": TASK},
        {"TaskId": TASK, "Speaker": "al", "N": 2, "From": "transcoding", "DryRun": True, "UserSig": "s"},
        {"TaskId": TASK, "CosConfig": {"SecretId": "i", "SecretKey": "k", "Token": "t"}},
    ],
    "user-publishing": [
        USER | {"Kind": "audio"},
        {"SdkAppId": 1, "StrRoomId": "r", "UserId": "a", "EventMs": 0, "Kind": "video"},
    ],
    "user-unpublished": [USER | {"Kind": "video"}],
    "user-entered": [USER, USER | {"Role": 20}],
    "user-left": [USER, USER | {"Reason": 1}],
    "user-removed": [USER | {"Reason": 3}],
    "room-destroyed": [{"SdkAppId": 1, "RoomId": 8, "StrRoomId": "8", "EventMs": 5}],
    "capture-started": [JOB, JOB | {"FirstPacketMs": 5}],
    "ffmpeg-exit": [
        JOB | {"Job": "capture", "Reason": "eof", "MediaMs": 5, "SizeBytes": 6, "FirstPacketMs": None, "LastPacketMs": 7},
        JOB | {"Job": "transcode", "Reason": "ok", "Output": OUTPUT},
    ],
    "upload-finished": [JOB | {"SizeBytes": 1, "Crc64": "2", "Url": "https://x"}],
    "upload-failed": [JOB | {"Reason": "refused", "Retry": False}],
    "callback-finished": [DELIVERY],
    "callback-failed": [DELIVERY | {"Reason": "status", "Detail": "500", "Retry": True}],
    "deadline-passed": [{"Owner": TASK, "Kind": "idle", "Serial": "s"}, {"Owner": f"{TASK}#1", "Kind": "retry", "Serial": "s"}],
    "worker-lost": [{"Owner": f"{TASK}/al/1", "Epoch": 1, "Node": "n", "MediaMs": 5, "LastPacketMs": None}],
    "start-capture": [JOB],
    "stop-capture": [JOB],
    "start-transcode": [JOB],
    "start-upload": [JOB],
    "send-callback": [DELIVERY],
    "session-accepted": [{"TaskId": TASK, "Repeated": False, "Warnings": ["w"]}],
    "session-refused": [{"Code": "InvalidParameter", "Message": "m", "RequestId": "e"}],
    "recording-done": [RESULT],
    "failed-recording": [RESULT],
    "failed-transcode": [RESULT],
    "failed-cos-write": [RESULT],
    "session-finished": [KEY | {"Files": [FILE], "TaskId": TASK, "Revision": 1, "EndReason": "Idle"}],
}
# (type, change to its first valid example, field, word of the reason)
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("start", {"SdkAppId": None}, "SdkAppId", "required"),
    ("start", {"SdkAppId": 0}, "SdkAppId", "minimum"),
    ("start", {"SdkAppId": 2**32}, "SdkAppId", "maximum"),
    ("start", {"SdkAppId": 10**30}, "SdkAppId", "maximum"),
    ("start", {"SdkAppId": 1.0}, "SdkAppId", "decimal point"),
    ("start", {"SdkAppId": "1"}, "SdkAppId", "integer"),
    ("start", {"SdkAppId": True}, "SdkAppId", "integer"),
    ("start", {"RoomId": -1}, "RoomId", ""),
    ("start", {"RoomId": "8"}, "RoomId", ""),
    ("start", {"RoomId": 8.0}, "RoomId", "decimal point"),
    ("start", {"StrRoomId": "a\nb"}, "StrRoomId", ""),
    ("start", {"StrRoomId": "x" * 65}, "StrRoomId", "64"),
    ("start", {"UserId": ""}, "UserId", ""),
    ("start", {"UserId": "a\x00b"}, "UserId", ""),
    ("start", {"UserId": "a\x7fb"}, "UserId", ""),
    ("start", {"UserId": "\ud800"}, "UserId", "valid text"),
    ("start", {"UserSig": MARK + "\x00"}, "UserSig", "valid text"),
    ("start", {"UserSig": MARK * 400}, "UserSig", ""),
    ("start", {"UserSig": [MARK]}, "UserSig", ""),
    ("start", {"UserSig": {MARK: MARK}}, "UserSig", ""),
    ("start", {"CosConfig": None}, "CosConfig", "required"),
    ("start", {"CosConfig": MARK}, "CosConfig", ""),
    (
        "start",
        {"CosConfig": {"Bucket": "b-12345", "Path": "", "SecretKey": MARK, "SecretId": MARK}},
        "CosConfig.Region",
        "required",
    ),
    ("start", {"CosConfig": COS | {"SecretKey": MARK}}, "CosConfig.SecretId", "required"),
    ("start", {"CosConfig": COS | {"SecretId": MARK}}, "CosConfig.SecretKey", "required"),
    ("start", {"CosConfig": COS | {"Token": MARK}}, "CosConfig.SecretId", "required"),
    ("start", {"CosConfig": COS | {"SecretId": MARK * 30, "SecretKey": "k"}}, "CosConfig.SecretId", ""),
    ("start", {"CosConfig": COS | {"SecretId": 5, "SecretKey": MARK}}, "CosConfig.SecretId", ""),
    ("start", {"CosConfig": COS | {"Region": "Mars!"}}, "CosConfig.Region", ""),
    ("start", {"CosConfig": COS | {"Bucket": "no appid"}}, "CosConfig.Bucket", ""),
    ("start", {"CosConfig": COS | {"Sercet": MARK}}, "CosConfig.Sercet", "known"),
    ("start", {"Mode": "03"}, "Mode", ""),
    ("start", {"Callback": "file:///etc/passwd"}, "Callback", ""),
    ("start", {"Callback": "https://x/ y"}, "Callback", ""),
    ("start", {"SubscribeUserIds": ["a"] * 2}, "SubscribeUserIds", ""),
    ("start", {"SubscribeUserIds": [str(n) for n in range(33)]}, "SubscribeUserIds", "32"),
    ("start", {"SubscribeUserIds": ["ok", ""]}, "SubscribeUserIds.1", ""),
    ("start", {"userSig": MARK}, "userSig", "known"),
    ("stop", {"TaskId": None}, "", "TaskId"),
    ("stop", {"TaskId": "01"}, "TaskId", ""),
    ("stop", {"TaskId": TASK.replace("0", "I")}, "TaskId", ""),
    ("replay", {"N": 1}, "Speaker", "required"),
    ("replay", {"From": "done"}, "From", ""),
    ("replay", {"UserSig": ""}, "UserSig", ""),
    ("replay", {"CosConfig": {"SecretId": MARK}}, "CosConfig.SecretKey", "required"),
    ("replay", {"CosConfig": COS | {"SecretId": MARK, "SecretKey": MARK}}, "CosConfig.Region", "known"),
    ("user-publishing", {"Kind": "smell"}, "Kind", ""),
    ("user-publishing", {"UserId": ""}, "UserId", ""),
    ("user-publishing", {"RoomId": None}, "", "RoomId"),
    ("user-publishing", {"EventMs": 2**60}, "EventMs", "maximum"),
    ("user-unpublished", {"Kind": None}, "Kind", "required"),
    ("user-entered", {"EventMs": None}, "EventMs", "required"),
    ("user-left", {"UserId": "x" * 65}, "UserId", ""),
    ("user-removed", {"UserId": None}, "UserId", "required"),
    ("room-destroyed", {"EventMs": -1}, "EventMs", ""),
    ("capture-started", {"Epoch": 0}, "Epoch", ""),
    ("capture-started", {"Epoch": 2**63}, "Epoch", "maximum"),
    ("ffmpeg-exit", {"Job": "upload"}, "Job", ""),
    ("ffmpeg-exit", {"MediaMs": 5.0}, "MediaMs", "decimal point"),
    ("ffmpeg-exit", {"MediaMs": 2**63}, "MediaMs", "maximum"),
    ("ffmpeg-exit", {"SizeBytes": 2**63}, "SizeBytes", "maximum"),
    ("ffmpeg-exit", {"Output": OUTPUT | {"Gaps": [{"AtMs": 1}]}}, "Output.Gaps.0.DurationMs", "required"),
    ("upload-finished", {"Url": None}, "Url", "required"),
    ("upload-failed", {"Retry": "yes"}, "Retry", ""),
    ("callback-finished", {"Revision": 0}, "Revision", ""),
    ("callback-failed", {"Reason": "x" * 65}, "Reason", ""),
    ("deadline-passed", {"Serial": None}, "Serial", "required"),
    ("worker-lost", {"Owner": 5}, "Owner", ""),
    *[
        ("worker-lost", {"Owner": o}, "Owner", "")
        for o in ("", "x", "/", "//", "a/b/c", f"{TASK}/al", f"{TASK}/al/x", f"{TASK}#")
    ],
    ("start-capture", {"Epoch": None}, "Epoch", "required"),
    ("stop-capture", {"N": 0}, "N", ""),
    ("start-transcode", {"Speaker": ""}, "Speaker", ""),
    ("start-upload", {"UserSig": MARK}, "UserSig", "known"),
    ("send-callback", {"Revision": None}, "Revision", "required"),
    ("session-accepted", {"Warnings": "w"}, "Warnings", ""),
    ("session-refused", {"RequestId": None}, "RequestId", "required"),
    ("recording-done", {"Attempt": 0}, "Attempt", ""),
    ("failed-recording", {"File": FILE | {"Status": 2}}, "File.Status", ""),
    ("failed-transcode", {"File": FILE | {"Message": "oops"}}, "File.Message", ""),
    ("failed-cos-write", {"File": {k: v for k, v in FILE.items() if k != "Gaps"}}, "File.Gaps", "required"),
    ("session-finished", {"EndReason": "Bored"}, "EndReason", ""),
]


def _changed(type_: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The first valid example with some fields changed; None takes a field away."""
    return {k: v for k, v in (VALID[type_][0] | changes).items() if v is not None}


# --- schemas ---------------------------------------------------------------------------------------------------------
def test_every_type_has_examples() -> None:
    """Every type of the document is tested here, and no other; each has a valid and an invalid example."""
    assert set(VALID) == set(codec.types())
    assert {type_ for type_, *_ in WRONG} == set(codec.types())


@pytest.mark.parametrize("type_", VALID)
def test_what_is_right_is_taken(type_: str) -> None:
    """Every valid example is accepted."""
    for data in VALID[type_]:
        assert codec.check(type_, data) == data


@pytest.mark.parametrize(("type_", "changes", "field", "reason"), WRONG)
def test_what_is_wrong_is_refused_by_name(type_: str, changes: dict[str, Any], field: str, reason: str) -> None:
    """A refusal names the field and the reason, and never repeats a secret's value."""
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.check(type_, _changed(type_, changes))
    assert refused.value.field == field
    assert reason in refused.value.reason
    assert refused.value.reason
    assert MARK not in str(refused.value)


def test_missing_comes_before_unknown_and_wrong() -> None:
    """Of several faults the most helpful one is named: a missing field, then an unknown one, then a wrong one."""
    body = {"SdkAppId": "x", "RoomId": 1, "CosConfig": COS, "Usr": 1}
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(sorted(VALID)), st.data())
def test_nothing_but_invalid_event_is_raised(type_: str, data: st.DataObject) -> None:
    """For any value in any field, the check accepts or raises InvalidEvent; a marked secret is never repeated."""
    body = dict(data.draw(st.sampled_from(VALID[type_])))
    for name in data.draw(st.lists(st.sampled_from(sorted(body)), max_size=3)):
        body[name] = data.draw(JSON)
    body |= data.draw(st.dictionaries(st.sampled_from(["UserSig", "CosConfig", "x"]), JSON | st.just({"SecretKey": MARK})))
    said = ""
    try:
        codec.check(type_, body)
    except errors.InvalidEvent as error:
        said = str(error)
    assert MARK not in said


def test_an_unknown_type_is_refused() -> None:
    """An unknown type, or the name of a part of the document, is no message."""
    for name in ("nothing", "File", "", "x" * 500):
        with pytest.raises(errors.InvalidEvent) as refused:
            codec.check(name, {})
        assert refused.value.field == "type"
        assert len(str(refused.value)) < 200


# --- bytes -----------------------------------------------------------------------------------------------------------
VALID_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=9)


@given(
    st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()),
    st.integers(0, 4_102_444_800_000),
    st.sampled_from([(t, d) for t, all_ in VALID.items() for d in all_]),
    VALID_TEXT,
    VALID_TEXT,
)
@example("e", 1_785_542_400_123, ("stop", {"TaskId": TASK}), TASK, "")
def test_an_event_survives_the_wire(
    id_: str, time_ms: int, message: tuple[str, dict[str, Any]], subject: str, cause: str
) -> None:
    """An encoded event decodes to the same event, to the millisecond."""
    event = codec.make(message[0], id=id_, time_ms=time_ms, data=message[1], subject=subject, correlation_id=cause)
    assert codec.decode(codec.encode(event), now_ms=NOW_MS) == event


def test_the_envelope_is_a_cloud_event() -> None:
    """Structured JSON of CloudEvents 1.0 with the attributes of the contract."""
    event = codec.make("stop", id="e1", time_ms=1_785_542_400_123, data={"TaskId": TASK}, subject=TASK, correlation_id="c")
    assert json.loads(codec.encode(event)) == {
        "specversion": "1.0",
        "id": "e1",
        "source": "recorder",
        "type": "stop",
        "time": "2026-08-01T00:00:00.123Z",
        "datacontenttype": "application/json",
        "subject": TASK,
        "correlationid": "c",
        "data": {"TaskId": TASK},
    }


def test_a_bare_body_takes_its_type_and_id_from_outside() -> None:
    """A publisher's bare JSON: type from the routing key, id from message_id, time of arrival; without an id it is refused."""
    raw = json.dumps(VALID["start"][0]).encode()
    event = codec.decode(raw, bare_type="start", bare_id="m1", now_ms=NOW_MS)
    assert (event.type, event.id, event.time_ms, event.data) == ("start", "m1", NOW_MS, VALID["start"][0])
    with pytest.raises(errors.InvalidEvent) as refused:
        codec.decode(raw, bare_type="start", now_ms=NOW_MS)
    assert refused.value.field == "message_id"
    with pytest.raises(errors.InvalidEvent):
        codec.decode(raw, now_ms=NOW_MS)
    with pytest.raises(errors.InvalidEvent):
        codec.decode(b'{"TaskId": "01"}', bare_type="stop", bare_id="m1", now_ms=NOW_MS)


ENVELOPE: dict[str, Any] = {"specversion": "1.0", "id": "e", "source": "s", "type": "stop", "data": {"TaskId": TASK}}


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


@given(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_message_or_invalid(raw: bytes) -> None:
    """The decoder raises nothing but InvalidEvent."""
    try:
        codec.decode(raw, bare_type="stop", bare_id="m", now_ms=NOW_MS)
    except errors.InvalidEvent:
        return
    raise AssertionError("no such bytes are a stop")
