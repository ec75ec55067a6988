"""The simulator: one HTTP server in place of TRTC's rooms, callbacks and server API, and of COS. For the demo, the tests, and
developers without an account.

Rule: one port serves everything; the Host (COS) or the path selects the service.

    Host {bucket}.cos.{region}.myqcloud.com     COS (also as /cos/{bucket}/{key} under any host)
    /, or the header X-TC-Action                TRTC's server API
    /pull/{room}?…                              live HTTP-FLV of one speaker
    /control…                                   the control API
    /receiver/{name}                            stores every POST
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path

import structlog
from aiohttp import web

from simulator import callbacks, content, control, live, pull, receiver, rest, rooms
from simulator.cos import service, signature

MEBIBYTE = 1024 * 1024
SHUTDOWN_S = 2.0

log = structlog.get_logger()


class Simulator:
    """A small Tencent. `folder` keeps objects (`folder/cos/{bucket}/{key}`) and the encoded loops; rooms are not kept.

    `port` 0 takes a free one: see `port` and `url` after `start`. `content_folder` may be shared by many simulators, and saves a
    second or so each. `accounts` are the keys of COS and of TRTC's server API, `buckets` the existing buckets (None = any name).
    `announce_pulls`: each pull causes 103 (audience) and, at its end, 104. `one_pull_per_user`: a second pull under a user id in
    a room ends the first. Both are open questions about the real service, so tests try both answers.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        folder: Path = Path("var/simulator"),
        *,
        apps: Iterable[callbacks.App] = (),
        accounts: Iterable[signature.Account] = (),
        buckets: Iterable[str] | None = None,
        content_folder: Path | None = None,
        ffmpeg: str = "",
        announce_pulls: bool = False,
        one_pull_per_user: bool = False,
        retry_rule: callbacks.RetryRule | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.host, self.port, self.folder = host, port, folder
        self.apps = {app.sdk_app_id: app for app in apps}
        self.live = live.Live(clock)
        self.content = content.Content(content_folder or folder / "content", ffmpeg=ffmpeg)
        self.callbacks = callbacks.Callbacks(rule=retry_rule, wall_ms=lambda: int(wall_s() * 1000))
        numbers = itertools.count()
        house = rooms.House(
            live=self.live,
            content=self.content,
            messenger=self.callbacks,
            app=self.app,
            next_number=lambda: next(numbers) % content.NUMBERS,
        )
        self.rooms = rooms.Rooms(house)
        self.pulls = pull.Pulls(self.rooms, announce=announce_pulls, one_per_user=one_pull_per_user, wall_s=wall_s)
        self.receiver = receiver.Receiver()
        self.cos = service.Cos(folder, accounts=accounts, buckets=buckets, wall_s=wall_s)
        self.rest = rest.RestApi(self.rooms, lambda: self.cos.accounts, wall_s=wall_s)
        self._wanted_port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def pull_template(self) -> str:
        """The setting PULL_ADDRESS for a recorder that pulls here: the recorder fills in the braces."""
        query = "sdkappid={sdkappid}&userid={userid}&usersig={usersig}&remoteuserid={speaker}{number_room}"
        return f"{self.url}{pull.PREFIX}{{room}}?{query}"

    def receiver_url(self, name: str) -> str:
        """The URL whose posts `receiver.received[name]` stores."""
        return f"{self.url}/receiver/{name}"

    async def start(self) -> None:
        """Listen. A second call does nothing. Raises OSError if the port is taken."""
        if self._runner is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cos.start()
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self._wanted_port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]
        self.callbacks.start()
        self.live.start()
        log.info("simulator.started", url=self.url, folder=str(self.folder))

    async def stop(self) -> None:
        """End every stream, callback and connection. A second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        try:
            self.rooms.clear()
            await self.live.stop()
        finally:
            await self.callbacks.stop()
            await runner.cleanup()
        log.info("simulator.stopped", url=self.url)

    def app(self, sdk_app_id: int) -> callbacks.App:
        """The application; an unconfigured one has no address and no keys."""
        return self.apps.get(sdk_app_id) or callbacks.App(sdk_app_id=sdk_app_id)

    def configure_app(
        self,
        sdk_app_id: int,
        *,
        callback_url: str | None = None,
        callback_key: str | None = None,
        user_sig_key: str | None = None,
    ) -> callbacks.App:
        """Set the given (not None) values of an application, known or new; messages in flight keep the old values."""
        known = self.app(sdk_app_id)
        self.apps[sdk_app_id] = replace(
            known,
            callback_url=known.callback_url if callback_url is None else callback_url,
            callback_key=known.callback_key if callback_key is None else callback_key,
            user_sig_key=known.user_sig_key if user_sig_key is None else user_sig_key,
        )
        return self.apps[sdk_app_id]

    def create_room(self, sdk_app_id: int, room: int | str) -> rooms.Room:
        """The room of this application and id: int = integer room, str = string room. Raises ValueError."""
        return self.rooms.create(sdk_app_id, room)

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._doors], client_max_size=16 * MEBIBYTE)
        control.Control(self).add_routes(application.router)
        self.receiver.add_routes(application.router)
        return application

    @web.middleware
    async def _doors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Route requests that the router cannot distinguish, because they depend on headers or the raw target."""
        if self.cos.concerns(request):
            return await self.cos.answer(request)
        if self.rest.concerns(request):
            return await self.rest.answer(request)
        if request.method == "GET" and request.raw_path.startswith(pull.PREFIX):
            return await self.pulls.answer(request)
        return await handler(request)
