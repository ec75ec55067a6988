"""User requests: a start, stop or replay as values with one meaning.

Rules: pure. Secrets leave the request here, into a value of their own; `StartRequest` holds none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from events import codec, errors, object_attributes, secret_names

TYPES = ("start", "stop", "replay", "resend")
"""The types of the messages that users send."""
STR_ROOM_MAX_BYTES = 64
USER_DATA_MAX_BYTES = 1024
# Less than codec.MAX_DEPTH, because a result has it two levels deeper.
USER_DATA_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A TRTC room of an application. Exactly one id is set: `room_id` (integer room) or `str_room_id` (string room)."""

    sdk_app_id: int
    room_id: int = 0
    str_room_id: str = ""

    @property
    def kind(self) -> str:
        """`integer` or `string`: an integer room and a string room with the same digits are different rooms."""
        return "integer" if self.room_id else "string"

    @property
    def name(self) -> str:
        """The id as text."""
        return str(self.room_id) if self.room_id else self.str_room_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """The secrets of a request. They are never logged, journaled or put on the bus."""

    user_sig: str = field(default="", repr=False)
    secret_id: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def to_json(self) -> dict[str, str]:
        """The form in the secrets table."""
        return {"UserSig": self.user_sig, "SecretId": self.secret_id, "SecretKey": self.secret_key, "Token": self.token}

    @staticmethod
    def from_json(body: Mapping[str, str]) -> Secrets:
        """The opposite of `to_json`; missing fields are empty."""
        get = body.get
        return Secrets(
            user_sig=get("UserSig", ""),
            secret_id=get("SecretId", ""),
            secret_key=get("SecretKey", ""),
            token=get("Token", ""),
        )

    def renewed_by(self, fresh: Secrets) -> Secrets:
        """These secrets, replaced by those that `fresh` has. COS credentials are replaced as a whole."""
        cos = fresh if fresh.secret_id else self
        return Secrets(
            user_sig=fresh.user_sig or self.user_sig,
            secret_id=cos.secret_id,
            secret_key=cos.secret_key,
            token=cos.token,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """A start without its secrets. `mode` is 00, 01 or 02. `callback` is "" for none; once the session is stored, it is only the
    URL's `origin`."""

    room: Room
    user_id: str
    region: str
    bucket: str
    path: str
    mode: str = "00"
    callback: str = ""
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    user_data: str = ""  # UserData as JSON text; "": not given
    callback_events: tuple[str, ...] = ()
    attributes: object_attributes.ObjectAttributes = object_attributes.NONE
    manifest: bool = False


def fingerprint(type_: str, id_: str, data: Mapping[str, Any]) -> str:
    """A digest by which another request under the same id is noticed, salted with the id; "" for a message that is no request.

    Secrets do not count: a repeat may bring fresh ones."""
    if type_ not in TYPES:
        return ""
    text = json.dumps([type_, _without_secrets(data)], sort_keys=True, separators=(",", ":"))
    salt = hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return hashlib.blake2b(text.encode(), key=salt, digest_size=16).hexdigest()


def _without_secrets(data: Any) -> Any:
    if not isinstance(data, Mapping):
        return data
    return {name: _without_secrets(value) for name, value in data.items() if name not in secret_names.fields()}


def differing(one: StartRequest, other: StartRequest) -> tuple[str, ...]:
    """The settings in which two starts of one key differ, under the names of their fields. Both have the whole callback URL."""
    return tuple(name for name, value in _SETTINGS.items() if value(one) != value(other))


def _attribute(name: str, request: StartRequest) -> object:
    return getattr(request.attributes, name)


# The settings of a start under the names of its fields. The order of a list has no meaning.
_SETTINGS: dict[str, Callable[[StartRequest], object]] = {
    "Mode": lambda request: request.mode,
    "CosConfig.Region": lambda request: request.region,
    "CosConfig.Bucket": lambda request: request.bucket,
    "CosConfig.Path": lambda request: request.path,
    **{f"CosConfig.{field}": partial(_attribute, name) for name, field in object_attributes.FIELDS.items()},
    "Callback": lambda request: request.callback,
    "SubscribeUserIds": lambda request: set(request.subscribe),
    "UnSubscribeUserIds": lambda request: set(request.unsubscribe),
    "CallbackEvents": lambda request: set(request.callback_events),
    "UserData": lambda request: _canonical(request.user_data),
    "Manifest": lambda request: request.manifest,
}


def room(data: Mapping[str, Any]) -> Room | None:
    """The room that a message names, or None. An integer room wins; 0 and "" mean not given. Raises InvalidEvent for a name that
    is too long."""
    room_id, str_room_id = data.get("RoomId") or 0, data.get("StrRoomId") or ""
    if not room_id and not str_room_id:
        return None
    if len(str_room_id.encode()) > STR_ROOM_MAX_BYTES:
        raise errors.InvalidEvent("StrRoomId", f"is longer than {STR_ROOM_MAX_BYTES} bytes")
    return Room(sdk_app_id=data["SdkAppId"], room_id=int(room_id), str_room_id="" if room_id else str_room_id)


def start(data: Mapping[str, Any]) -> tuple[StartRequest, Secrets]:
    """Split a checked start into request and secrets. Raises InvalidEvent."""
    where = room(data)
    if where is None:
        raise errors.InvalidEvent("RoomId", "one of RoomId and StrRoomId is required")
    if data.get("SubscribeUserIds") and data.get("UnSubscribeUserIds"):
        raise errors.InvalidEvent("UnSubscribeUserIds", "give SubscribeUserIds or UnSubscribeUserIds, not both")
    if data.get("CallbackEvents") and not data.get("Callback"):
        raise errors.InvalidEvent("CallbackEvents", "needs a Callback that receives them")
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
        user_data=_user_data(data),
        callback_events=tuple(data.get("CallbackEvents", ())),
        attributes=object_attributes.read(cos),
        manifest=data.get("Manifest", False),
    )
    return request, secrets(data)


def secrets(data: Mapping[str, Any]) -> Secrets:
    """The secrets of a start or a replay; missing ones are empty."""
    cos = data.get("CosConfig", {})
    return Secrets.from_json(
        {"UserSig": data.get("UserSig", ""), **{k: cos.get(k, "") for k in ("SecretId", "SecretKey", "Token")}}
    )


def origin(url: str) -> str:
    """Scheme and host of a URL, with `…` for the rest: the path, query and user of a callback URL often are its secret.
    Idempotent."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an open bracket: no part of it is safe to show
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…" if parts.netloc else "…"


def _user_data(data: Mapping[str, Any]) -> str:
    if "UserData" not in data:
        return ""
    try:
        text = json.dumps(data["UserData"], ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise errors.InvalidEvent("UserData", "has a number that is too large") from None
    if len(text.encode()) > USER_DATA_MAX_BYTES:
        raise errors.InvalidEvent("UserData", f"is longer than {USER_DATA_MAX_BYTES} bytes as JSON without spaces")
    if codec.nests_deeper(data["UserData"], USER_DATA_MAX_DEPTH):
        raise errors.InvalidEvent("UserData", f"nests deeper than {USER_DATA_MAX_DEPTH} levels")
    return text


def _canonical(text: str) -> str:
    """JSON text in which the order of fields has no meaning."""
    return json.dumps(json.loads(text), sort_keys=True) if text else ""


def _path(text: str) -> str:
    path = text.strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise errors.InvalidEvent("CosConfig.Path", "must not hold empty parts, '.' or '..'")
    return path
