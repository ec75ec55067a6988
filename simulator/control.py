"""The HTTP control API under `/control`: rooms, speakers, callbacks and faults for users of any language.

Rules: it offers only operations of the Python API; JSON in, JSON out, errors as `{"Code", "Message"}`. It has no authentication:
the simulator listens on loopback by default. docs/simulator.md is its reference.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simulator import bodies, callbacks, control_speakers, rooms
from simulator.cos import faults, signature

if TYPE_CHECKING:
    from simulator import server

ROOM = "/control/rooms/{room}"
SPEAKER = ROOM + "/speakers/{user}"
ROOM_FIELDS: bodies.Fields = {
    "SdkAppId": int,
    "RoomId": int,
    "StrRoomId": str,
    "Room": str,
    "EndsWhenEmpty": bool,
    "DismissalAsText": bool,
    "AnnouncesLeavers": bool,
    "Speakers": list,
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """Routes of the control API over one simulator."""

    def __init__(self, simulator: server.Simulator) -> None:
        self._simulator = simulator

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add all routes."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/control", self._overview),
            ("PUT", "/control/apps/{app}", self._put_app),
            ("PUT", "/control/accounts/{id}", self._put_account),
            ("DELETE", "/control/accounts/{id}", self._delete_account),
            ("PUT", "/control/pulls", self._put_pulls),
            ("POST", "/control/rooms", self._create_room),
            ("GET", ROOM, self._show_room),
            ("DELETE", ROOM, self._dismiss),
            ("POST", ROOM + "/remove", self._remove),
            ("POST", ROOM + "/announce", self._announce),
            ("POST", ROOM + "/speakers", self._join),
            ("PATCH", SPEAKER, self._change),
            ("DELETE", SPEAKER, self._leave),
            ("POST", SPEAKER + "/close", self._close),
            ("GET", "/control/callbacks", self._list_callbacks),
            ("GET", "/control/callbacks/faults", self._show_callback_faults),
            ("PUT", "/control/callbacks/faults", self._put_callback_faults),
            ("GET", "/control/cos", self._cos),
            ("GET", "/control/cos/faults", self._show_cos_faults),
            ("PUT", "/control/cos/faults", self._put_cos_faults),
            ("GET", "/control/rest", self._rest),
        ]
        for method, path, handler in table:
            router.add_route(method, path, with_errors(handler))

    async def _overview(self, request: web.Request) -> web.Response:
        simulator = self._simulator
        apps = [{"SdkAppId": app.sdk_app_id, "CallbackUrl": app.callback_url} for app in simulator.apps.values()]
        shown = [room.describe() for room in simulator.rooms.all()]
        accounts = list(simulator.cos.accounts)
        return bodies.answer({"Url": simulator.url, "Apps": apps, "Accounts": accounts, "Rooms": shown})

    async def _put_app(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"CallbackUrl": str, "CallbackKey": str, "UserSigKey": str})
        if not request.match_info["app"].isdecimal():
            raise ValueError("SdkAppId is not a number")
        self._simulator.configure_app(
            int(request.match_info["app"]),
            callback_url=body.get("CallbackUrl"),
            callback_key=body.get("CallbackKey"),
            user_sig_key=body.get("UserSigKey"),
        )
        return web.Response(status=204)

    async def _put_account(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"SecretKey": str, "Token": str, "ExpiresInS": float})
        if not body.get("SecretKey"):
            raise ValueError("SecretKey is required")
        secret_id, expires_in_s = request.match_info["id"], body.get("ExpiresInS")
        account = signature.Account(
            secret_id=secret_id,
            secret_key=body["SecretKey"],
            token=body.get("Token", ""),
            expires_s=None if expires_in_s is None else time.time() + expires_in_s,
        )
        self._simulator.cos.accounts[secret_id] = account
        return web.Response(status=204)

    async def _delete_account(self, request: web.Request) -> web.Response:
        self._simulator.cos.accounts.pop(request.match_info["id"], None)
        return web.Response(status=204)

    async def _put_pulls(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"Announce": bool, "OnePerUser": bool})
        pulls = self._simulator.pulls
        pulls.announce = body.get("Announce", pulls.announce)
        pulls.one_per_user = body.get("OnePerUser", pulls.one_per_user)
        return web.Response(status=204)

    # Rooms

    async def _create_room(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, ROOM_FIELDS)
        if "SdkAppId" not in body:
            raise ValueError("SdkAppId is required")
        joining = [bodies.checked(each, control_speakers.JOINING) for each in body.get("Speakers", [])]
        number, text = body.get("RoomId"), body.get("StrRoomId", "")
        room = self._simulator.rooms.create(body["SdkAppId"], number or text, handle=body.get("Room", ""))
        room.ends_when_empty = body.get("EndsWhenEmpty", room.ends_when_empty)
        room.dismissal_as_text = body.get("DismissalAsText", room.dismissal_as_text)
        room.announces_leavers = body.get("AnnouncesLeavers", room.announces_leavers)
        for each in joining:
            await control_speakers.join(room, each)
        return bodies.answer(room.describe(), status=201)

    async def _show_room(self, request: web.Request) -> web.Response:
        return bodies.answer(self._room(request).describe())

    async def _dismiss(self, request: web.Request) -> web.Response:
        await self._room(request).dismiss()
        return web.Response(status=204)

    async def _remove(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"UserId": str})
        if not body.get("UserId"):
            raise ValueError("UserId is required")
        await self._room(request).remove(body["UserId"])
        return web.Response(status=204)

    async def _announce(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"EventType": int, "UserId": str, "Info": dict, "Forged": bool})
        if "EventType" not in body:
            raise ValueError("EventType is required")
        room, info = self._room(request), body.get("Info", {})
        if not all(name[:1].isupper() for name in info):
            raise ValueError("the names in Info are those of Tencent's EventInfo, such as Reason")
        message = room.announce(body["EventType"], body.get("UserId", ""), forged=body.get("Forged", False), **info)
        return bodies.answer(_shown(message), status=202)

    # Speakers

    async def _join(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, control_speakers.JOINING)
        return bodies.answer(await control_speakers.join(self._room(request), body), status=201)

    async def _change(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, control_speakers.CHANGING)
        room, user = self._room(request), request.match_info["user"]
        return bodies.answer(await control_speakers.change(control_speakers.find(room, user), body))

    async def _leave(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"Reason": int})
        speaker = control_speakers.find(self._room(request), request.match_info["user"])
        await speaker.leave(**({"reason": body["Reason"]} if "Reason" in body else {}))
        return web.Response(status=204)

    async def _close(self, request: web.Request) -> web.Response:
        body = await bodies.read(request, {"Abrupt": bool, "UserId": str})
        speaker = control_speakers.find(self._room(request), request.match_info["user"])
        closed = speaker.close_viewers(abrupt=body.get("Abrupt", False), user_id=body.get("UserId"))
        return bodies.answer({"Closed": closed})

    # Requests and deliveries, and faults

    async def _list_callbacks(self, request: web.Request) -> web.Response:
        return bodies.answer([_shown(message) for message in self._simulator.callbacks.messages])

    async def _show_callback_faults(self, request: web.Request) -> web.Response:
        return bodies.answer([bodies.shown(fault) for fault in self._simulator.callbacks.faults])

    async def _put_callback_faults(self, request: web.Request) -> web.Response:
        self._simulator.callbacks.set_faults(*await bodies.read_rules(request, callbacks.Fault))
        return web.Response(status=204)

    async def _cos(self, request: web.Request) -> web.Response:
        cos = self._simulator.cos
        stored = [bodies.shown(each) | {"Path": str(each.path)} for each in cos.objects.all()]
        opened = [
            bodies.shown(upload) | {"Parts": [bodies.shown(part) for part in upload.parts.values()]}
            for upload in cos.uploads.all()
        ]
        served = [bodies.shown(each) for each in cos.served]
        return bodies.answer({"Objects": stored, "Uploads": opened, "Served": served})

    async def _show_cos_faults(self, request: web.Request) -> web.Response:
        return bodies.answer([bodies.shown(fault) for fault in self._simulator.cos.faults.rules])

    async def _put_cos_faults(self, request: web.Request) -> web.Response:
        self._simulator.cos.faults.set(*await bodies.read_rules(request, faults.Fault))
        return web.Response(status=204)

    async def _rest(self, request: web.Request) -> web.Response:
        return bodies.answer([bodies.shown(served) for served in self._simulator.rest.served])

    def _room(self, request: web.Request) -> rooms.Room:
        return self._simulator.rooms.by_handle(request.match_info["room"])


def with_errors(handler: Handler) -> Handler:
    """Wrap a handler: its errors become `{"Code", "Message"}`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValueError as error:
            return bodies.answer({"Code": "InvalidParameter", "Message": str(error)}, status=400)
        except rooms.NotHere as error:
            return bodies.answer({"Code": "NotFound", "Message": str(error)}, status=404)

    return handle


def _shown(message: callbacks.Message) -> dict[str, Any]:
    return {
        "SdkAppId": message.app.sdk_app_id,
        "EventGroupId": message.event_group,
        "EventType": message.event_type,
        "EventInfo": message.info,
        "Forged": message.forged,
        "Outcome": message.outcome,
        "Attempts": [{"AtMs": each.at_ms, "Status": each.status, "Error": each.error} for each in message.attempts],
    }
