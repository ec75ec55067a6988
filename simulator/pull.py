"""The pull endpoint: `GET /pull/{room}?sdkappid=&userid=&usersig=&remoteuserid=[&use_number_room_id=1]`.

Rule: the query is that of TRTC's RTMP address; only `use_number_room_id=1` makes the room an integer one. The room is taken from
the raw target, since `..` and `%2F` are legal in a string room's id.

403: the UserSig is missing, wrong or expired (the text names which) · 404: no such room, or the speaker publishes nothing · 400:
the query is incomplete · a speaker with `refuse` answers its status.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import parse_qs, unquote

import structlog
from aiohttp import web

from simulator import connection, live, rooms, speakers, usersig

PREFIX = "/pull/"

log = structlog.get_logger()


class Pulls:
    """Answers pulls with live FLV."""

    def __init__(
        self,
        houses: rooms.Rooms,
        *,
        announce: bool = False,
        one_per_user: bool = False,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.announce = announce
        self.one_per_user = one_per_user
        self._rooms = houses
        self._wall_s = wall_s

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one pull; returns when the stream has ended."""
        speaker, user_id = self._admit(request)
        room, stream = speaker.room, speaker.stream
        if speaker.refusal is not None:
            return web.Response(status=speaker.refusal.status, text=speaker.refusal.body)
        if self.one_per_user:
            for other in room.speakers.values():
                other.close_viewers(user_id=user_id)
        viewer = live.Viewer(user_id, is_gone=lambda: _gone(request), abort=lambda: connection.reset(request))
        if not stream.answers:
            return await _leave_unanswered(request, stream, viewer)
        response = web.StreamResponse(headers={"Content-Type": "video/x-flv", "Cache-Control": "no-cache"})
        await response.prepare(request)
        if not speaker.here:
            return response
        stream.join(viewer)
        if self.announce:
            room.viewer_entered(user_id)
        log.info("viewer.joined", room=room.handle, speaker=speaker.user_id, user_id=user_id)
        try:
            await _write(response, viewer)
        finally:
            stream.leave(viewer)
            if self.announce and viewer.reason != live.REMOVED:
                room.viewer_left(user_id)
            log.info("viewer.left", room=room.handle, speaker=speaker.user_id, user_id=user_id, reason=viewer.reason)
        return response

    def _admit(self, request: web.Request) -> tuple[speakers.Speaker, str]:
        path, _, raw_query = request.raw_path.partition("?")
        query = {name: values[0] for name, values in parse_qs(raw_query).items()}
        missing = [name for name in ("sdkappid", "userid", "remoteuserid") if not query.get(name)]
        number_room = query.get("use_number_room_id") == "1"
        text = unquote(path.removeprefix(PREFIX))
        if missing or not query["sdkappid"].isdecimal() or (number_room and not text.isdecimal()):
            raise web.HTTPBadRequest(text=f"missing or wrong: {', '.join(missing) or 'sdkappid or room'}\n")
        sdk_app_id, user_id = int(query["sdkappid"]), query["userid"]
        app = self._rooms.house.app(sdk_app_id)
        verdict = usersig.check(
            query.get("usersig", ""), sdk_app_id=sdk_app_id, user_id=user_id, key=app.user_sig_key, now_s=self._wall_s()
        )
        if verdict != usersig.OK:
            raise web.HTTPForbidden(text=f"{verdict}\n")
        room = self._rooms.find(sdk_app_id, int(text) if number_room else text)
        speaker = room.speakers.get(query["remoteuserid"]) if room else None
        if speaker is None or not (speaker.publishing or speaker.refusal):
            raise web.HTTPNotFound(text="no such stream\n")
        return speaker, user_id


async def _write(response: web.StreamResponse, viewer: live.Viewer) -> None:
    try:
        async for data in viewer.chunks():
            await response.write(data)
        if viewer.reason in live.PROPER:
            await response.write_eof()
    except ConnectionError:
        viewer.close(live.GONE)


async def _leave_unanswered(request: web.Request, stream: live.Stream, viewer: live.Viewer) -> web.StreamResponse:
    """Send nothing until the stall or the stream is over, then abort."""
    stream.wait(viewer)
    try:
        async for _ in viewer.chunks():
            log.debug("viewer.unanswered", user_id=viewer.user_id)
    finally:
        stream.leave(viewer)
    connection.reset(request)
    return web.Response()


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
