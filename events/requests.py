"""A start, stop or replay as users say it, turned into values with one meaning. Pure. Imports only this room.

Rule: secrets leave the request here, into a value of their own; `StartRequest` holds none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from events import errors

STR_ROOM_MAX_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A room of an application. Exactly one of the two ids is set: `room_id` (integer room) or `str_room_id` (string room)."""

    sdk_app_id: int
    room_id: int = 0
    str_room_id: str = ""

    @property
    def kind(self) -> str:
        """`integer` or `string`: rooms of the same digits and another kind are other rooms."""
        return "integer" if self.room_id else "string"

    @property
    def name(self) -> str:
        """The id as text, whichever kind it is."""
        return str(self.room_id) if self.room_id else self.str_room_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What must never be logged, journalled or put on the bus."""

    user_sig: str = field(default="", repr=False)
    secret_id: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def to_json(self) -> dict[str, str]:
        """As it is kept in the secrets table."""
        return {"UserSig": self.user_sig, "SecretId": self.secret_id, "SecretKey": self.secret_key, "Token": self.token}

    @staticmethod
    def from_json(body: Mapping[str, str]) -> Secrets:
        """The opposite of `to_json`; what is missing is empty."""
        get = body.get
        return Secrets(
            user_sig=get("UserSig", ""),
            secret_id=get("SecretId", ""),
            secret_key=get("SecretKey", ""),
            token=get("Token", ""),
        )

    def renewed_by(self, fresh: Secrets) -> Secrets:
        """These, with whatever `fresh` brings in their place; COS credentials are replaced as a whole."""
        cos = fresh if fresh.secret_id else self
        return Secrets(
            user_sig=fresh.user_sig or self.user_sig,
            secret_id=cos.secret_id,
            secret_key=cos.secret_key,
            token=cos.token,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """A start with one meaning and no secrets. `mode` is 00, 01 or 02; `callback` is "" for none, and only its `origin` once the
    session is kept."""

    room: Room
    user_id: str
    region: str
    bucket: str
    path: str
    mode: str = "00"
    callback: str = ""
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()


def room(data: Mapping[str, Any]) -> Room | None:
    """The room a message names, or None. An integer room wins; 0 and "" mean not given. Raises InvalidEvent on too long a
    name."""
    room_id, str_room_id = data.get("RoomId") or 0, data.get("StrRoomId") or ""
    if not room_id and not str_room_id:
        return None
    if len(str_room_id.encode()) > STR_ROOM_MAX_BYTES:
        raise errors.InvalidEvent("StrRoomId", f"is longer than {STR_ROOM_MAX_BYTES} bytes")
    return Room(sdk_app_id=data["SdkAppId"], room_id=int(room_id), str_room_id="" if room_id else str_room_id)


def start(data: Mapping[str, Any]) -> tuple[StartRequest, Secrets]:
    """Split a checked start into request and secrets. Raises InvalidEvent naming the field."""
    where = room(data)
    if where is None:
        raise errors.InvalidEvent("RoomId", "one of RoomId and StrRoomId is required")
    if data.get("SubscribeUserIds") and data.get("UnSubscribeUserIds"):
        raise errors.InvalidEvent("UnSubscribeUserIds", "give SubscribeUserIds or UnSubscribeUserIds, not both")
    cos = data["CosConfig"]
    request = StartRequest(
        room=where,
        user_id=data["UserId"],
        region=cos["Region"],
        bucket=cos["Bucket"],
        path=_path(cos["Path"]),
        mode=data.get("Mode", "00"),
        callback=data.get("Callback", ""),
        subscribe=tuple(data.get("SubscribeUserIds", ())),
        unsubscribe=tuple(data.get("UnSubscribeUserIds", ())),
    )
    return request, secrets(data)


def secrets(data: Mapping[str, Any]) -> Secrets:
    """The secrets of a start or a replay; what it does not bring is empty."""
    cos = data.get("CosConfig", {})
    return Secrets.from_json(
        {"UserSig": data.get("UserSig", ""), **{k: cos.get(k, "") for k in ("SecretId", "SecretKey", "Token")}}
    )


def origin(url: str) -> str:
    """Scheme and host of a URL, and of the rest only that it is there: path, query and user of a callback's address are often
    its secret. What was cut before stays as it is."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an open bracket: nothing of it is safe to show
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…" if parts.netloc else "…"


def _path(text: str) -> str:
    path = text.strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise errors.InvalidEvent("CosConfig.Path", "must not hold empty parts, '.' or '..'")
    return path
