"""TRTC's callbacks: the documented signature, the meaning of every event type, and stable ids."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from events import codec
from machine import errors, trtc_callback
from tencent import trtc_callbacks

APP = 1400000001
DOCUMENTED_KEY = "123654"
DOCUMENTED_SIGN = "kkoFeO3Oh2ZHnjtg8tEAQhtXK16/KI05W3BQff8IvGA="
DOCUMENTED_BODY = (
    b'{\n\t"EventGroupId":\t2,\n\t"EventType":\t204,\n\t"CallbackTs":\t1664209748188,\n\t"EventInfo":\t{\n'
    b'\t\t"RoomId":\t8489,\n\t\t"EventTs":\t1664209748,\n\t\t"EventMsTs":\t1664209748180,\n'
    b'\t\t"UserId":\t"user_85034614",\n\t\t"Reason":\t0\n\t}\n}'
)


def body(number: int, **info: Any) -> dict[str, Any]:
    given = {"RoomId": 8489, "EventTs": 1664209748, "EventMsTs": 1664209748180, "UserId": "alice", **info}
    return {
        "EventGroupId": 1 if number < 200 else 2,
        "EventType": number,
        "CallbackTs": 1664209748188,
        "EventInfo": {name: value for name, value in given.items() if value is not None},
    }


def understood(number: int, **info: Any) -> trtc_callback.CallbackEvent:
    event = trtc_callbacks.to_event(APP, body(number, **info))
    assert isinstance(event, trtc_callback.CallbackEvent)
    return event


def test_documented_signature_holds() -> None:
    """Tencent's published example is verified with its published signature."""
    assert trtc_callbacks.verify(DOCUMENTED_KEY, DOCUMENTED_BODY, DOCUMENTED_SIGN)


@pytest.mark.parametrize(
    ("key", "raw", "sign"),
    [
        ("123655", DOCUMENTED_BODY, DOCUMENTED_SIGN),
        (DOCUMENTED_KEY, DOCUMENTED_BODY + b"\n", DOCUMENTED_SIGN),
        (DOCUMENTED_KEY, json.dumps(json.loads(DOCUMENTED_BODY)).encode(), DOCUMENTED_SIGN),
        (DOCUMENTED_KEY, DOCUMENTED_BODY, DOCUMENTED_SIGN.lower()),
        (DOCUMENTED_KEY, DOCUMENTED_BODY, DOCUMENTED_SIGN.rstrip("=")),
        (DOCUMENTED_KEY, DOCUMENTED_BODY, ""),
        (DOCUMENTED_KEY, DOCUMENTED_BODY, "签名\udcff"),
        ("", DOCUMENTED_BODY, base64.b64encode(hmac.new(b"", DOCUMENTED_BODY, hashlib.sha256).digest()).decode()),
    ],
)
def test_anything_else_is_no_signature(key: str, raw: bytes, sign: str) -> None:
    """Another key, other bytes (even of equal JSON), another spelling, no signature, or an empty key is false, and nothing
    raises."""
    assert not trtc_callbacks.verify(key, raw, sign)


@pytest.mark.parametrize(
    ("number", "info", "event_type", "kind"),
    [
        (102, {"UserId": None}, "room-destroyed", ""),
        (103, {"Role": 20}, "user-entered", ""),
        (104, {"Reason": 1, "Role": 21}, "user-left", ""),
        (105, {"Role": 21}, "user-left", ""),
        (105, {"Role": 20}, "user-entered", ""),
        (201, {}, "user-publishing", "video"),
        (202, {"Reason": 0}, "user-unpublished", "video"),
        (203, {}, "user-publishing", "audio"),
        (204, {"Reason": 0}, "user-unpublished", "audio"),
    ],
)
def test_understood_types(number: int, info: dict[str, Any], event_type: str, kind: str) -> None:
    """Every relevant type becomes its event, with the kind of media."""
    event = understood(number, **info)
    assert (event.type, event.data.get("Kind", "")) == (event_type, kind)
    assert event.event_ms == event.data["EventMs"] == 1664209748180
    assert event.data["UserId"] == ("" if number == 102 else "alice")
    codec.check(event.type, dict(event.data))


@pytest.mark.parametrize(
    ("number", "info"), [(101, {}), (103, {"Role": 21}), (103, {}), (105, {"Role": 7}), (205, {}), (206, {}), (999, {})]
)
def test_ignored_types_say_why(number: int, info: dict[str, Any]) -> None:
    """An irrelevant type is ignored with a reason that names it."""
    event = trtc_callbacks.to_event(APP, body(number, **info))
    assert isinstance(event, trtc_callback.IgnoredCallback)
    assert str(number) in event.reason


@pytest.mark.parametrize(
    "odd",
    [
        body(999) | {"EventInfo": None},
        body(207) | {"EventInfo": {"RoomId": [], "UserId": 5, "Reason": "x"}},
        body(-1),
        body(2**40),
        {"EventGroupId": 3, "EventType": "recording-started"},
        {"EventGroupId": "4", "EventType": "401", "EventInfo": "text"},
    ],
)
def test_unknown_callbacks_are_ignored_whatever_they_hold(odd: dict[str, Any]) -> None:
    """Nothing of a type that TRTC adds is read, so nothing in it can be wrong; it is marked as unknown."""
    event = trtc_callbacks.to_event(APP, odd)
    assert isinstance(event, trtc_callback.IgnoredCallback)
    assert event.unknown


@pytest.mark.parametrize(
    ("number", "info"),
    [
        (101, {"UserId": 5}),
        (206, {"Role": "screen", "Reason": []}),
        (103, {"Role": "21", "UserId": None}),
        (203, {"Reason": "x"}),
    ],
)
def test_odd_fields_that_nothing_needs(number: int, info: dict[str, Any]) -> None:
    """A field that the event does not need is not read."""
    event = trtc_callbacks.to_event(APP, body(number, **info))
    assert not getattr(event, "unknown", False)


@pytest.mark.parametrize(
    ("number", "info"),
    [
        (203, {"EventMsTs": "1664209748180"}),
        (201, {"EventMsTs": "", "EventTs": "1664209748"}),
        (104, {"Reason": "3", "Role": ""}),
        (104, {"Reason": ""}),
        (103, {"Role": "20"}),
        (105, {"Role": "21", "Reason": "0"}),
    ],
)
def test_numbers_in_strings_are_the_same_event(number: int, info: dict[str, Any]) -> None:
    """A number as a string of digits gives the event of the number, and its id; "" is not given."""
    plain = {name: int(text) if text else None for name, text in info.items()}
    given = body(number, **info) | {"EventType": str(number), "EventGroupId": "1" if number < 200 else "2"}
    assert trtc_callbacks.to_event(APP, given) == understood(number, **plain)


def test_type_of_another_group_is_ignored() -> None:
    """A number has a meaning only within its group: 203 of the recording group is another event."""
    other = body(203) | {"EventGroupId": 3}
    assert isinstance(trtc_callbacks.to_event(APP, other), trtc_callback.IgnoredCallback)


def test_reason_and_role_are_carried() -> None:
    """The Reason of a departure and the Role of an arrival are numbers in the data, absent if Tencent sends none."""
    assert understood(104, Reason=3).data["Reason"] == 3
    assert "Reason" not in understood(104).data
    assert understood(103, Role=20).data["Role"] == 20


@pytest.mark.parametrize(
    ("number", "room", "rooms"),
    [
        (203, 8489, {"RoomId": 8489}),
        (203, "8489", {"StrRoomId": "8489"}),
        (203, "team a/..%2F|~", {"StrRoomId": "team a/..%2F|~"}),
        (102, 8489, {"RoomId": 8489}),
        (102, "8489", {"RoomId": 8489, "StrRoomId": "8489"}),
        (102, "4294967295", {"RoomId": 4294967295, "StrRoomId": "4294967295"}),
        (102, "4294967296", {"StrRoomId": "4294967296"}),
        (102, "0", {"StrRoomId": "0"}),
        (102, "08489", {"StrRoomId": "08489"}),
        (102, "٨٤٨٩", {"StrRoomId": "٨٤٨٩"}),
        (102, "-5", {"StrRoomId": "-5"}),
        (102, "team a", {"StrRoomId": "team a"}),
    ],
)
def test_kind_of_room(number: int, room: object, rooms: dict[str, object]) -> None:
    """A number is an integer room, a string a string room; only for 102 may digits in a string be both."""
    event = understood(number, RoomId=room)
    assert {name: value for name, value in event.data.items() if name.endswith("RoomId")} == rooms


def test_repeat_has_the_same_id() -> None:
    """Tencent's retry of a callback (another CallbackTs, other order) has the id of the first."""
    again = dict(reversed(list(body(203).items()))) | {"CallbackTs": 1}
    assert trtc_callbacks.to_event(APP, again) == understood(203)
    assert understood(203).id.startswith("trtc-")
    assert len(understood(203).id) == 45


def test_every_part_of_the_identity_changes_the_id() -> None:
    """App, type, room, kind of room, user and time each make another event."""
    other_app = trtc_callbacks.to_event(APP + 1, body(203))
    assert isinstance(other_app, trtc_callback.CallbackEvent)
    events = [
        understood(203),
        other_app,
        understood(201),
        understood(203, RoomId=8490),
        understood(203, RoomId="8489"),
        understood(203, UserId="bob"),
        understood(203, EventMsTs=1664209748181),
    ]
    assert len({event.id for event in events}) == len(events)


def test_seconds_serve_where_milliseconds_are_missing() -> None:
    """Without EventMsTs the event's time is EventTs in seconds."""
    assert understood(203, EventMsTs=None).event_ms == 1664209748000


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (body(203) | {"EventType": "203x"}, "EventType"),
        (body(203) | {"EventType": True}, "EventType"),
        ({"EventGroupId": 1}, "EventType"),
        ({"EventType": 203}, "EventGroupId"),
        (body(203) | {"EventInfo": [1]}, "EventInfo"),
        (body(203, RoomId=0), "EventInfo.RoomId"),
        (body(203, RoomId=2**32), "EventInfo.RoomId"),
        (body(203, RoomId=1.5), "EventInfo.RoomId"),
        (body(203, RoomId=True), "EventInfo.RoomId"),
        (body(203, RoomId=""), "EventInfo.RoomId"),
        (body(203, RoomId="x" * 65), "EventInfo.RoomId"),
        (body(203, RoomId="\ud800"), "EventInfo.RoomId"),
        (body(203, RoomId="a\0"), "EventInfo.RoomId"),
        (body(203, UserId=None), "EventInfo.UserId"),
        (body(203, UserId=""), "EventInfo.UserId"),
        (body(203, UserId=7), "EventInfo.UserId"),
        (body(203, EventMsTs="now"), "EventInfo.EventMsTs"),
        (body(203, EventMsTs=-1), "EventInfo.EventMsTs"),
        (body(203, EventMsTs=None, EventTs=None), "EventInfo.EventTs"),
        (body(104, Reason="left"), "EventInfo.Reason"),
        (body(103, Role="anchor"), "EventInfo.Role"),
    ],
)
def test_broken_callback_names_its_field(broken: dict[str, Any], field: str) -> None:
    """A missing or wrong field is named, and nothing else is raised."""
    with pytest.raises(errors.InvalidParameter) as caught:
        trtc_callbacks.to_event(APP, broken)
    assert caught.value.field == field
