"""TRTC's RTMP edge for tests: nginx with libnginx-mod-rtmp, on ephemeral ports, in a folder of its own.

Rules: streams are pushed to `push/{room}?…&userid=` and pulled from `pull/{room}?…&remoteuserid=`, as in TRTC; both hooks answer
302 with the internal name of room and speaker. A viewer is closed when the speaker leaves, and refused if no speaker is there.
nginx is one process, ended by its pid.

The module reads 255 bytes of a stream's name with its query, so a UserSig must be short here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import imageio_ffmpeg
from aiohttp import web

from simulator import speakers
from tests import ports, process_freeze, rtmp_publisher, waiting

MODULE = "/usr/lib/nginx/modules/ngx_rtmp_module.so"
CONFIGURATION = """
load_module {module};
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{http_port};
        location /control {{ rtmp_control all; }}
    }}
}}
rtmp {{
    access_log off;
    server {{
        listen 127.0.0.1:{port};
        chunk_size 4096;
        application push {{
            live on;
            on_publish {hooks}/publish;
            push rtmp://127.0.0.1:{port}/pull;
        }}
        application pull {{
            live on;
            idle_streams off;
            on_play {hooks}/play;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One pull that reached the edge, at `at_s` of the monotonic clock."""

    at_s: float
    room: int | str
    user_id: str
    speaker: str
    user_sig: str


class Edge:
    """nginx, its hooks, and its publishers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = self._http_port = 0
        self.plays: list[Play] = []
        self.refused: set[str] = set()
        self._pushers: dict[tuple[int | str, str], rtmp_publisher.Publisher] = {}
        self._relays: list[asyncio.subprocess.Process] = []
        self._runner: web.AppRunner | None = None
        self._nginx: asyncio.subprocess.Process | None = None

    @property
    def pull_template(self) -> str:
        """The setting PULL_ADDRESS: TRTC's form with another host."""
        query = "sdkappid={sdkappid}&userid={userid}&usersig={usersig}&remoteuserid={speaker}{number_room}"
        return f"rtmp://127.0.0.1:{self.port}/pull/{{room}}?{query}"

    async def start(self) -> None:
        """Listen. Raises AssertionError with nginx's output if it cannot."""
        self.folder.mkdir(parents=True)
        application = web.Application()
        application.router.add_post("/publish", self._on_publish)
        application.router.add_post("/play", self._on_play)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port, self._http_port = ports.free(), ports.free()
        configuration = self.folder / "nginx.conf"
        hooks = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        places = {"folder": self.folder, "port": self.port, "http_port": self._http_port, "hooks": hooks, "module": MODULE}
        configuration.write_text(CONFIGURATION.format(**places))
        with (self.folder / "output.log").open("wb") as output:
            self._nginx = await asyncio.create_subprocess_exec(
                binary(), "-p", str(self.folder), "-c", str(configuration), stdout=output, stderr=output
            )
        await waiting.until(self._listens, 10, "nginx to listen")

    async def stop(self) -> None:
        """End everything; safe to call twice."""
        for pusher in self._pushers.values():
            await pusher.stop()
        self._pushers.clear()
        for process in [*self._relays, *([self._nginx] if self._nginx else [])]:
            await _end(process)
        self._relays.clear()
        if self._runner is not None:
            await self._runner.cleanup()

    async def publish(self, speaker: speakers.Speaker) -> None:
        """Push a simulated speaker's stream until they leave."""
        room = speaker.room.room
        name = f"{_escaped(room)}?{_query(speaker)}"
        pusher = rtmp_publisher.Publisher(speaker, port=self.port, app="push", name=name)
        await pusher.start()
        if earlier := self._pushers.pop((room, speaker.user_id), None):
            await earlier.stop()
        self._pushers[room, speaker.user_id] = pusher

    async def publish_by_ffmpeg(self, speaker: speakers.Speaker, pull_template: str) -> None:
        """The same by an ffmpeg that pulls from the simulator and pushes here: a second implementation of the protocol."""
        room = speaker.room.room
        number_room = "&use_number_room_id=1" if isinstance(room, int) else ""
        source = pull_template.format(
            room=_escaped(room), sdkappid=speaker.room.sdk_app_id, userid="relay", usersig="any",
            speaker=quote(speaker.user_id, safe=""), number_room=number_room,
        )  # fmt: skip
        target = f"rtmp://127.0.0.1:{self.port}/push/{_escaped(room)}?{_query(speaker)}"
        arguments = ["-nostdin", "-v", "error", "-re", "-i", source, "-c", "copy", "-f", "flv", target]
        with (self.folder / "relay.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                imageio_ffmpeg.get_ffmpeg_exe(), *arguments, stdout=output, stderr=output
            )
        self._relays.append(process)

    async def drop(self, room: int | str, speaker: str) -> int:
        """Disconnect every viewer of a speaker; returns their number."""
        url = f"http://127.0.0.1:{self._http_port}/control/drop/subscriber?app=pull&name={inner_name(room, speaker)}"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            found = re.search(r"\d+", await answer.text())
            return int(found[0]) if found else 0

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is sent or answered."""
        assert self._nginx is not None
        process_freeze.freeze(self._nginx.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._nginx is not None
        self._nginx.send_signal(signal.SIGCONT)

    async def _on_publish(self, request: web.Request) -> web.Response:
        said = await request.post()
        return _renamed(inner_name(_room(said), str(said["userid"])))

    async def _on_play(self, request: web.Request) -> web.Response:
        said = await request.post()
        user_id, speaker, user_sig = (str(said[name]) for name in ("userid", "remoteuserid", "usersig"))
        play = Play(at_s=time.monotonic(), room=_room(said), user_id=user_id, speaker=speaker, user_sig=user_sig)
        self.plays.append(play)
        if play.user_sig in self.refused:
            return web.Response(status=403)
        return _renamed(inner_name(play.room, play.speaker))

    async def _listens(self) -> bool:
        assert self._nginx is not None
        assert self._nginx.returncode is None, (self.folder / "output.log").read_text()
        for port in (self.port, self._http_port):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
        return True


def binary() -> str:
    """The path of nginx, which is not on an ordinary user's PATH."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    assert found, "nginx is not installed: sh deploy/test-servers.sh"
    return found


def inner_name(room: int | str, user_id: str) -> str:
    """The name of a speaker's stream inside nginx: one word, unique per speaker."""
    return hashlib.sha256(f"{type(room).__name__}/{room}/{user_id}".encode()).hexdigest()[:24]


def _query(speaker: speakers.Speaker) -> str:
    number_room = "&use_number_room_id=1" if isinstance(speaker.room.room, int) else ""
    return f"sdkappid={speaker.room.sdk_app_id}&userid={quote(speaker.user_id, safe='')}&usersig=any{number_room}"


def _escaped(room: int | str) -> str:
    return quote(str(room), safe="")


def _room(said: Any) -> int | str:
    text = unquote(str(said["name"]))
    return int(text) if said.get("use_number_room_id") == "1" else text


def _renamed(name: str) -> web.Response:
    return web.Response(status=302, headers={"Location": name})


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), waiting.limit_s(3))
    except TimeoutError:
        process.kill()
        await process.wait()
