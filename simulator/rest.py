"""TRTC's server API (`trtc.tencentcloudapi.com`, version 2019-07-22): closing rooms and removing users.

Rules:
- A request is verified first, TC3-HMAC-SHA256 only; its Host is signed and has no other meaning.
- Every response is HTTP 200 with Content-Type exactly `application/json`, errors too: the official SDK looks for errors in
  nothing else.
- RemoveUser and DismissRoom take integer rooms only, …ByStrRoomId string rooms only. An empty room does not exist.

Where Tencent documents no code for a case, the nearest one of the SDK's `errorcodes.py` is used; removing only users who are not
in the room counts as success, since no documented code fits.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from simulator import rooms, tc3
from simulator.cos import signature

SERVICE, VERSION = "trtc", "2019-07-22"
ACTION = "X-TC-Action"
MAX_USERS = 10
KEPT = 10_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request and its result; `code` "" is success."""

    action: str
    code: str
    parameters: Mapping[str, Any]


class RestApi:
    """The API over the rooms of one simulator; `accounts` tells the keys in force."""

    def __init__(
        self,
        known: rooms.Rooms,
        accounts: Callable[[], Mapping[str, signature.Account]],
        *,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.served: deque[Served] = deque(maxlen=KEPT)
        self._rooms = known
        self._accounts = accounts
        self._wall_s = wall_s
        self._actions: dict[str, Callable[[Mapping[str, Any]], Awaitable[None]]] = {
            "RemoveUser": lambda body: self._remove(body, self._room(body, int)),
            "RemoveUserByStrRoomId": lambda body: self._remove(body, self._room(body, str)),
            "DismissRoom": lambda body: self._room(body, int).dismiss(),
            "DismissRoomByStrRoomId": lambda body: self._room(body, str).dismiss(),
        }

    def concerns(self, request: web.Request) -> bool:
        """Whether a request is for this API: it names an action, or uses the path of the older signature methods."""
        return ACTION in request.headers or request.raw_path.partition("?")[0] == "/"

    async def answer(self, request: web.Request) -> web.Response:
        """Verify, execute, respond."""
        action, code = request.headers.get(ACTION, ""), ""
        said: dict[str, Any] = {"RequestId": str(uuid.uuid4())}
        body: Mapping[str, Any] = {}
        try:
            raw = await request.read()
            signed = tc3.parse(request.method, request.raw_path, request.headers, raw)
            tc3.verify(signed, self._accounts(), self._wall_s(), service=SERVICE)
            self._check(request, action)
            body = _parameters(raw)
            await self._actions[action](body)
        except tc3.Refused as refused:
            code = refused.code
            said = {"Error": {"Code": code, "Message": refused.message}} | said
        self.served.append(Served(action=action, code=code, parameters=body))
        log.info("trtc.served", action=action, code=code)
        return web.Response(body=json.dumps({"Response": said}).encode(), headers={"Content-Type": "application/json"})

    def _check(self, request: web.Request, action: str) -> None:
        if request.headers.get("X-TC-Version") != VERSION:
            raise tc3.Refused("NoSuchVersion", f"The version is {VERSION}.")
        if action not in self._actions:
            raise tc3.Refused("InvalidAction", f"The simulator knows {', '.join(self._actions)}.")
        if request.method != "POST" or request.content_type != "application/json":
            raise tc3.Refused("UnsupportedProtocol", "The simulator takes POST with application/json only.")

    def _room(self, body: Mapping[str, Any], kind: type[int] | type[str]) -> rooms.Room:
        sdk_app_id = _given(body, "SdkAppId", int)
        room = self._rooms.find(sdk_app_id, _given(body, "RoomId", kind))
        if room is None or not room.exists:
            raise tc3.Refused("FailedOperation.RoomNotExist", "The room does not exist.")
        return room

    async def _remove(self, body: Mapping[str, Any], room: rooms.Room) -> None:
        users = _given(body, "UserIds", list)
        if not 0 < len(users) <= MAX_USERS or not all(isinstance(user, str) and user for user in users):
            raise tc3.Refused("InvalidParameter.UserIds", f"UserIds is a list of 1 to {MAX_USERS} strings.")
        for user in users:
            if room.holds(user):
                await room.remove(user)


def _parameters(raw: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise tc3.Refused("InvalidParameter", "The body is not a JSON object.")
    return body


def _given(body: Mapping[str, Any], name: str, kind: type) -> Any:
    """A required parameter of this type; numbers are within TRTC's limits, texts within 64 bytes."""
    value = body.get(name)
    if value is None:
        raise tc3.Refused(f"MissingParameter.{name}", f"The parameter {name} is missing.")
    right = isinstance(value, kind) and not isinstance(value, bool)
    right = (
        right and (kind is not int or 0 < value < 2**32) and (kind is not str or 0 < len(value.encode(errors="replace")) <= 64)
    )
    if not right:
        raise tc3.Refused(
            f"InvalidParameter.{name}", f"The parameter {name} is not of type {kind.__name__}, or out of its range."
        )
    return value
