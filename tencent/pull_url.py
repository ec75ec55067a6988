"""The pull URL of a speaker's stream, built from a template and untrusted values.

Rule: every value is percent-encoded, so that none can leave its place in the template. The URL contains the UserSig and is a
secret. Source of the default: TRTC's RTMP pull address. `use_number_room_id=1` marks an integer room; without it the same digits
name a string room.
"""

from __future__ import annotations

import string
from urllib.parse import quote

from machine import errors

DEFAULT_TEMPLATE = (
    "rtmp://rtmp.rtc.qq.com/pull/{room}?sdkappid={sdkappid}&userid={userid}&usersig={usersig}&remoteuserid={speaker}{number_room}"
)
PLACEHOLDERS = ("room", "sdkappid", "userid", "usersig", "speaker", "number_room")
SCHEMES = ("rtmp://", "rtmps://", "http://", "https://")

_NUMBER_ROOM = "&use_number_room_id=1"
# A UserSig may contain "*", which RFC 3986 allows in a query: unencoded, it is right for servers that decode the query and for
# those that do not.
_PLAIN = "*"


def check_template(template: str) -> None:
    """Raise errors.InvalidParameter(field="PULL_ADDRESS") unless `template` has a known scheme and only known placeholders."""
    _pieces(template)


def pull_address(
    template: str,
    *,
    sdk_app_id: int,
    room_id: int | None,
    str_room_id: str,
    user_id: str,
    user_sig: str,
    speaker: str,
) -> str:
    """The URL to pull `speaker`'s stream from, as the viewer `user_id` with `user_sig`. A secret.

    `room_id` is the integer room (None: none), else `str_room_id` the string room. Placeholders: {room}, {sdkappid}, {userid},
    {usersig}, {speaker}, and {number_room}, which is `&use_number_room_id=1` for integer rooms and empty otherwise. Raises
    errors.InvalidParameter, field "PULL_ADDRESS" for the template and "RoomId" if neither room is given.
    """
    if not room_id and not str_room_id:
        raise errors.InvalidParameter("Either RoomId or StrRoomId must be given.", field="RoomId")
    values = {
        "room": _encode_room(str(room_id) if room_id else str_room_id),
        "sdkappid": str(sdk_app_id),
        "userid": _encode("UserId", user_id),
        "usersig": _encode("UserSig", user_sig),
        "speaker": _encode("SubscribeUserIds", speaker),
        "number_room": _NUMBER_ROOM if room_id else "",
    }
    return "".join(literal + (values[name] if name else "") for literal, name in _pieces(template))


def _encode_room(room: str) -> str:
    """The room as one path segment. `.` and `..` are legal room ids, which a client or server may resolve as folders."""
    return room.replace(".", "%2E") if room in (".", "..") else _encode("StrRoomId", room)


def _encode(field: str, value: str) -> str:
    try:
        return quote(value, safe=_PLAIN)
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can encode
        raise errors.InvalidParameter(f"{field} is not valid text.", field=field) from error


def _pieces(template: str) -> list[tuple[str, str]]:
    """The template as (literal, placeholder or "") pairs."""
    if not template.startswith(SCHEMES):
        raise _wrong("must begin with one of " + ", ".join(SCHEMES))
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _wrong("has a brace without its partner") from error
    pieces = []
    for literal, name, spec, conversion in parsed:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise _wrong(f"has the placeholder {{{name}}}; known are " + ", ".join(f"{{{one}}}" for one in PLACEHOLDERS))
        pieces.append((literal, name or ""))
    return pieces


def _wrong(what: str) -> errors.InvalidParameter:
    return errors.InvalidParameter(f"The setting PULL_ADDRESS {what}.", field="PULL_ADDRESS")
