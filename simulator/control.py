"""The HTTP control API under `/control`: rooms, speakers, callbacks and faults for those who do not write Python.

Imports rooms, callbacks, cos. Rule: it does nothing that the Python API does not; JSON in, JSON out, errors as
`{"Code", "Message"}`. It has no authentication: the simulator listens on loopback unless told otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from simulator import callbacks, content, rooms
from simulator.cos import faults

if TYPE_CHECKING:
    from simulator import server

F = TypeVar("F")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """Routes of the control API over one simulator."""

    def __init__(self, simulator: server.Simulator) -> None:
        self._simulator = simulator

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add all routes."""
        room, speaker = "/control/rooms/{room}", "/control/rooms/{room}/speakers/{user}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/control", self._overview),
            ("PUT", "/control/apps/{app}", self._put_app),
            ("POST", "/control/rooms", self._create_room),
            ("GET", room, self._show_room),
            ("DELETE", room, self._dismiss),
            ("POST", room + "/remove", self._remove),
            ("POST", room + "/speakers", self._join),
            ("PATCH", speaker, self._change),
            ("DELETE", speaker, self._leave),
            ("POST", speaker + "/close", self._close),
            ("GET", "/control/callbacks", self._list_callbacks),
            ("PUT", "/control/callbacks/faults", self._callback_faults),
            ("PUT", "/control/cos/faults", self._cos_faults),
            ("GET", "/control/cos", self._cos),
        ]
        for method, path, handler in table:
            router.add_route(method, path, _with_errors(handler))

    async def _overview(self, request: web.Request) -> web.Response:
        simulator = self._simulator
        apps = [{"SdkAppId": app.sdk_app_id, "CallbackUrl": app.callback_url} for app in simulator.apps.values()]
        shown = [room.describe() for room in simulator.rooms.all()]
        return web.json_response({"Url": simulator.url, "Apps": apps, "Rooms": shown})

    async def _put_app(self, request: web.Request) -> web.Response:
        body = await _body(request, {"CallbackUrl": str, "CallbackKey": str, "UserSigKey": str})
        self._simulator.configure_app(
            _integer(request.match_info["app"]),
            callback_url=body.get("CallbackUrl"),
            callback_key=body.get("CallbackKey"),
            user_sig_key=body.get("UserSigKey"),
        )
        return web.Response(status=204)

    async def _create_room(self, request: web.Request) -> web.Response:
        body = await _body(request, {"SdkAppId": int, "RoomId": int, "StrRoomId": str, "EndsWhenEmpty": bool})
        if "SdkAppId" not in body:
            raise ValueError("SdkAppId is required")
        room = self._simulator.rooms.create(body["SdkAppId"], body.get("RoomId") or body.get("StrRoomId", ""))
        room.ends_when_empty = body.get("EndsWhenEmpty", room.ends_when_empty)
        return web.json_response(room.describe(), status=201)

    async def _show_room(self, request: web.Request) -> web.Response:
        return web.json_response(self._room(request).describe())

    async def _dismiss(self, request: web.Request) -> web.Response:
        await self._room(request).dismiss()
        return web.Response(status=204)

    async def _remove(self, request: web.Request) -> web.Response:
        body = await _body(request, {"UserId": str})
        await self._room(request).remove(body.get("UserId", ""))
        return web.Response(status=204)

    async def _join(self, request: web.Request) -> web.Response:
        body = await _body(request, {"UserId": str, "Audio": bool, "Video": bool, "Size": str, "Number": int})
        if not body.get("UserId"):
            raise ValueError("UserId is required")
        speaker = await self._room(request).join(
            body["UserId"],
            audio=body.get("Audio", True),
            video=body.get("Video", True),
            size=body.get("Size", content.SIZES[0]),
            number=body.get("Number", -1),
        )
        return web.json_response(rooms.describe(speaker), status=201)

    async def _change(self, request: web.Request) -> web.Response:
        speaker = self._speaker(request)
        body = await _body(
            request,
            {
                "Audio": bool, "Video": bool, "Size": str, "Stalled": bool, "Declares": str, "JumpMs": int,
                "Refuse": int, "RefuseBody": str,
            },
        )  # fmt: skip
        if "Audio" in body:
            await (speaker.unmute_audio() if body["Audio"] else speaker.mute_audio())
        if "Video" in body:
            await (speaker.unmute_video() if body["Video"] else speaker.mute_video())
        if "Size" in body:
            await speaker.resize(body["Size"])
        if "Stalled" in body:
            speaker.stream.set_stalled(body["Stalled"])
        if "Declares" in body:
            speaker.declare(body["Declares"])
        speaker.jump(body.get("JumpMs", 0))
        if body.get("Refuse"):
            speaker.refuse(body["Refuse"], body.get("RefuseBody", ""))
        elif "Refuse" in body:
            speaker.accept()
        return web.json_response(rooms.describe(speaker))

    async def _leave(self, request: web.Request) -> web.Response:
        await self._speaker(request).leave()
        return web.Response(status=204)

    async def _close(self, request: web.Request) -> web.Response:
        body = await _body(request, {"Abrupt": bool, "UserId": str})
        closed = self._speaker(request).close_viewers(abrupt=body.get("Abrupt", False), user_id=body.get("UserId"))
        return web.json_response({"Closed": closed})

    async def _list_callbacks(self, request: web.Request) -> web.Response:
        return web.json_response([_shown(message) for message in self._simulator.callbacks.messages])

    async def _callback_faults(self, request: web.Request) -> web.Response:
        self._simulator.callbacks.set_faults(*await _faults(request, callbacks.Fault))
        return web.Response(status=204)

    async def _cos_faults(self, request: web.Request) -> web.Response:
        self._simulator.cos.faults.set(*await _faults(request, faults.Fault))
        return web.Response(status=204)

    async def _cos(self, request: web.Request) -> web.Response:
        cos = self._simulator.cos
        return web.json_response(
            {
                "Objects": [dataclasses.asdict(stored) | {"path": str(stored.path)} for stored in cos.objects.all()],
                "Uploads": [dataclasses.asdict(upload) for upload in cos.uploads.all()],
                "Served": [dataclasses.asdict(served) for served in cos.served],
            }
        )

    def _room(self, request: web.Request) -> rooms.Room:
        return self._simulator.rooms.by_handle(request.match_info["room"])

    def _speaker(self, request: web.Request) -> rooms.Speaker:
        speaker = self._room(request).speakers.get(request.match_info["user"])
        if speaker is None:
            raise rooms.NotHere("no such speaker in the room")
        return speaker


def _with_errors(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValueError as error:
            return web.json_response({"Code": "InvalidParameter", "Message": str(error)}, status=400)
        except rooms.NotHere as error:
            return web.json_response({"Code": "NotFound", "Message": str(error)}, status=404)

    return handle


async def _body(request: web.Request, fields: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object sent, its fields known and of their type. Raises ValueError naming the field."""
    body = await request.json() if request.can_read_body else {}
    if not isinstance(body, dict):
        raise ValueError("the body is not a JSON object")
    for name, value in body.items():
        if name not in fields:
            raise ValueError(f"{name} is not known; there are {', '.join(fields)}")
        if not isinstance(value, fields[name]) or (fields[name] is int and isinstance(value, bool)):
            raise ValueError(f"{name} is not of type {fields[name].__name__}")
    return body


async def _faults(request: web.Request, kind: type[F]) -> list[F]:
    """A JSON array of objects with the fields of the dataclass `kind`."""
    body = await request.json()
    if not isinstance(body, list) or not all(isinstance(item, dict) for item in body):
        raise ValueError("the body is not a JSON array of objects")
    try:
        return [kind(**item) for item in body]
    except TypeError as error:
        raise ValueError(str(error)) from None


def _integer(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("SdkAppId is not a number")
    return int(text)


def _shown(message: callbacks.Message) -> dict[str, Any]:
    return {
        "SdkAppId": message.app.sdk_app_id,
        "EventGroupId": message.event_group,
        "EventType": message.event_type,
        "EventInfo": message.info,
        "Outcome": message.outcome,
        "Attempts": [{"AtMs": each.at_ms, "Status": each.status, "Error": each.error} for each in message.attempts],
    }
