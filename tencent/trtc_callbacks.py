"""TRTC's event callbacks: the signature check and the translation into events. Pure.

Rules: the caller reads a body only after `verify` returned true. Every known callback becomes exactly one event, whose id is the
same for every repeat. A refused callback is lost after a minute, so only the fields that its event needs are read, and an unknown
callback is ignored with a reason. Source of event numbers, fields and the signature: TRTC's page "Room and media callbacks"
(EventGroupId 1 and 2).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

from events import reader
from machine import errors, trtc_callback

ANCHOR = 20
AUDIENCE = 21
MAX_ROOM_NUMBER = 2**32 - 1
MAX_ROOM_BYTES = 64
MAX_USER_BYTES = 256

_ROOM_DISMISSED = 102
_ENTERED = 103
_ROLE_CHANGED = 105

# (EventGroupId, EventType) → (event type or "" if ignored, Kind, meaning)
_MEANINGS: dict[tuple[int, int], tuple[str, str, str]] = {
    (1, 101): ("", "", "room created"),
    (1, 102): ("room-destroyed", "", "room dismissed"),
    (1, 103): ("user-entered", "", "entered the room"),
    (1, 104): ("user-left", "", "left the room"),
    (1, 105): ("", "", "changed role"),  # the type depends on Role: see _role_change
    (2, 201): ("user-publishing", "video", "video on"),
    (2, 202): ("user-unpublished", "video", "video off"),
    (2, 203): ("user-publishing", "audio", "audio on"),
    (2, 204): ("user-unpublished", "audio", "audio off"),
    (2, 205): ("", "", "screen share on"),
    (2, 206): ("", "", "screen share off"),
}

# Built once: building an encoder costs more than encoding an identity.
_IDENTITY = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))

_GROUPS = {group for group, _ in _MEANINGS}


def verify(key: str, raw: bytes, sign: str) -> bool:
    """Whether `sign` (the header `Sign`) is base64(HMAC-SHA256(key, raw)); compared in constant time, on the raw bytes.

    False for an empty key or an empty signature.
    """
    if not key or not sign:
        return False
    expected = base64.b64encode(hmac.new(key.encode(), raw, hashlib.sha256).digest())
    return hmac.compare_digest(expected, sign.strip().encode("utf-8", "replace"))


def to_event(sdk_app_id: int, body: Mapping[str, object]) -> trtc_callback.CallbackEvent | trtc_callback.IgnoredCallback:
    """Translate one verified callback body into an event, or return the reason to ignore it.

    `sdk_app_id` comes from the header `SdkAppId`. Raises errors.InvalidParameter(field=…) when a field is missing or wrong.
    """
    _number("SdkAppId", sdk_app_id, 1, MAX_ROOM_NUMBER)
    group = _integer("EventGroupId", body.get("EventGroupId"))
    if group not in _GROUPS:
        return trtc_callback.IgnoredCallback(reason=f"EventGroupId {group} is unknown", unknown=True)
    number = _integer("EventType", body.get("EventType"))
    if (group, number) not in _MEANINGS:
        return trtc_callback.IgnoredCallback(reason=f"EventType {number} of group {group} is unknown", unknown=True)
    event_type, _, meaning = _MEANINGS[group, number]
    if not event_type and number != _ROLE_CHANGED:
        return trtc_callback.IgnoredCallback(reason=f"{number}: {meaning}")
    info = body.get("EventInfo")
    if not isinstance(info, Mapping):
        raise errors.InvalidParameter("EventInfo must be an object.", field="EventInfo")
    return _understood(sdk_app_id, group, number, info)


def _understood(
    sdk_app_id: int, group: int, number: int, info: Mapping[str, object]
) -> trtc_callback.CallbackEvent | trtc_callback.IgnoredCallback:
    event_type, kind, meaning = _MEANINGS[group, number]
    role = _optional_number("Role", info) if number in (_ENTERED, _ROLE_CHANGED) else None
    if number == _ROLE_CHANGED:
        event_type, meaning = _role_change(role)
    elif number == _ENTERED and role != ANCHOR:
        event_type, meaning = "", "an audience member entered"
    if not event_type:
        return trtc_callback.IgnoredCallback(reason=f"{number}: {meaning}")
    reason = _optional_number("Reason", info) if event_type == "user-left" else None
    rooms, room_kind = _rooms(number, info)
    user_id = "" if number == _ROOM_DISMISSED else _user(info)
    event_ms = _event_ms(info)
    data: dict[str, object] = {"SdkAppId": sdk_app_id, **rooms, "UserId": user_id, "EventMs": event_ms}
    if kind:
        data["Kind"] = kind
    if role is not None and event_type == "user-entered":
        data["Role"] = role
    if reason is not None:
        data["Reason"] = reason
    identity = [sdk_app_id, number, room_kind, str(info["RoomId"]), user_id, event_ms]
    return trtc_callback.CallbackEvent(type=event_type, id=_event_id(identity), data=data, event_ms=event_ms)


def _role_change(role: int | None) -> tuple[str, str]:
    """105: an anchor who becomes audience stops publishing; one who becomes anchor is present from now on."""
    if role == AUDIENCE:
        return "user-left", "became audience"
    if role == ANCHOR:
        return "user-entered", "became anchor"
    return "", "changed to a role the recorder does not know"


def _rooms(number: int, info: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """The room fields of `data`, and the kind of the received id ("integer" or "string").

    A number is an integer room, a string a string room. The documented example of 102 shows a number as a string, so for 102 a
    string that is a room number names both; the deciding handler takes the one with an open session.
    """
    room = info.get("RoomId")
    if isinstance(room, str):
        _check_text("EventInfo.RoomId", room, MAX_ROOM_BYTES)
        if number == _ROOM_DISMISSED and _is_room_number(room):
            return {"RoomId": int(room), "StrRoomId": room}, "string"
        return {"StrRoomId": room}, "string"
    return {"RoomId": _number("EventInfo.RoomId", room, 1, MAX_ROOM_NUMBER)}, "integer"


def _is_room_number(room: str) -> bool:
    """Whether the string is a room number: ASCII digits, no leading zero, 1 to 2³²−1."""
    return room.isascii() and room.isdigit() and room[0] != "0" and int(room) <= MAX_ROOM_NUMBER


def _user(info: Mapping[str, object]) -> str:
    user_id = info.get("UserId")
    if not isinstance(user_id, str):
        raise errors.InvalidParameter("EventInfo.UserId must be a string.", field="EventInfo.UserId")
    _check_text("EventInfo.UserId", user_id, MAX_USER_BYTES)
    return user_id


def _check_text(field: str, value: str, max_bytes: int) -> None:
    """Whether a text is not empty, not too long, and storable: JSON can encode lone surrogates and NUL, databases cannot store
    them."""
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        size_bytes = 0
    if not 0 < size_bytes <= max_bytes or "\0" in value:
        raise errors.InvalidParameter(f"{field} must be text of 1 to {max_bytes} bytes.", field=field)


def _event_ms(info: Mapping[str, object]) -> int:
    """EventMsTs, or EventTs in seconds if the finer one is missing."""
    if not reader.is_absent(info.get("EventMsTs")):
        return _number("EventInfo.EventMsTs", info["EventMsTs"], 1, 2**53)
    return _number("EventInfo.EventTs", info.get("EventTs"), 1, 2**43) * 1000


def _optional_number(name: str, info: Mapping[str, object]) -> int | None:
    return None if reader.is_absent(info.get(name)) else _number(f"EventInfo.{name}", info[name], 0, 2**31)


def _number(field: str, value: object, low: int, high: int) -> int:
    found = reader.number(value)
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise errors.InvalidParameter(f"{field} must be an integer from {low} to {high}.", field=field)
    return found


def _integer(field: str, value: object) -> int:
    found = reader.number(value)
    if isinstance(found, bool) or not isinstance(found, int):
        raise errors.InvalidParameter(f"{field} must be an integer.", field=field)
    return found


def _event_id(identity: list[object]) -> str:
    """The event's id, from (SdkAppId, EventType, room kind, room, UserId, EventMsTs): a repeat is a duplicate by construction."""
    return "trtc-" + hashlib.sha256(_IDENTITY.encode(identity).encode()).hexdigest()[:40]
