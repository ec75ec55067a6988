"""The greeting of `recorder simulator`: every line that an application developer has to copy.

Rule: each printed line works when pasted into a shell, whatever the options were; it goes to standard output, apart from the log.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from simulator import server
from simulator.cos import signature

SERVICE_PORT = 8080
ROOM, ROOM_NUMBER, SPEAKER = "lesson", 8489, "alice"
REGION, BUCKET = "ap-shanghai", "lessons-1250000000"

_TEXT = """\
A stand-in for Tencent is listening at {url}; what it stores is under {folder}.
TRTC callbacks go to {callback_url}. The keys of COS and of TRTC's server API: SecretId {secret_id}, SecretKey {secret_key}.

1. In another terminal, start a recorder that takes it for Tencent, and wait until it is ready:

{environment}
recorder serve 2>{log} &
curl -s --retry 30 --retry-delay 1 --retry-connrefused {service_url}/readyz

2. There, open a room with a speaker:

{open_room}

3. Record it:

{start}

4. End the room after a few seconds:

{dismiss}

5. See the result, as your server would have got it; the file lies under {objects}:

{result}

TRTC's server API (RemoveUser, DismissRoom, and both ByStrRoomId) answers at {endpoint}, protocol http.
How to lose callbacks, break COS or stall a speaker: docs/simulator.md. Ctrl-C ends it.
"""


@dataclass(slots=True, kw_only=True)
class Welcome:
    """Prints the lines to copy, once the simulator has its port. Like other parts, it has `start`, which prints, and `stop`,
    which does nothing."""

    simulator: server.Simulator
    sdk_app_id: int
    account: signature.Account
    write: Callable[[str], object]

    async def start(self) -> None:
        """Print the text; the simulator must be running."""
        self.write(self.text())

    async def stop(self) -> None:
        """Does nothing."""

    def text(self) -> str:
        """All lines to copy."""
        simulator = self.simulator
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment().items()]
        return _TEXT.format(
            url=simulator.url,
            folder=simulator.folder.absolute(),
            callback_url=simulator.app(self.sdk_app_id).callback_url,
            secret_id=self.account.secret_id,
            secret_key=self.account.secret_key,
            environment="\n".join(exports),
            log=shlex.quote(str(simulator.folder.absolute() / "recorder.log")),
            service_url=self.service_url,
            open_room=_curl(f"{simulator.url}/control/rooms", self._room()),
            start=_curl(f"{self.service_url}/sessions", self._request(), "-H 'Content-Type: application/json'"),
            dismiss=f"curl -X DELETE {simulator.url}/control/rooms/{ROOM}",
            result=f"curl '{simulator.receiver_url(ROOM)}?wait=60'",
            objects=simulator.folder.absolute() / "cos" / BUCKET,
            endpoint=urlsplit(simulator.url).netloc,
        )

    @property
    def service_url(self) -> str:
        """The recorder's address, taken from the callback address."""
        parts = urlsplit(self.simulator.app(self.sdk_app_id).callback_url)
        return f"{parts.scheme}://{parts.netloc}"

    def environment(self) -> dict[str, str]:
        """Settings for a recorder that uses the simulator as Tencent and keeps its files apart from a real one's."""
        simulator, app = self.simulator, self.simulator.app(self.sdk_app_id)
        folder = simulator.folder.absolute() / "recorder"
        found = {
            "PULL_ADDRESS": simulator.pull_template,
            "COS_ENDPOINT": simulator.url,
            "TRTC_CALLBACK_KEYS": json.dumps({str(self.sdk_app_id): app.callback_key}),
            "CALLBACK_ALLOW": urlsplit(simulator.url).hostname or "",
            "MIN_FREE": "100MiB",
            "DATA_DIR": str(folder / "data"),
            "SPOOL_DIR": str(folder / "spool"),
        }
        if app.user_sig_key:
            found["TRTC_KEYS"] = json.dumps({str(self.sdk_app_id): app.user_sig_key})
        port = urlsplit(self.service_url).port or 80
        if port != SERVICE_PORT:
            found |= {"PORT": str(port), "RECORDER_URL": self.service_url}
        return found

    def _room(self) -> Mapping[str, Any]:
        return {"Room": ROOM, "SdkAppId": self.sdk_app_id, "RoomId": ROOM_NUMBER, "Speakers": [{"UserId": SPEAKER}]}

    def _request(self) -> Mapping[str, Any]:
        keys = {"SecretId": self.account.secret_id, "SecretKey": self.account.secret_key}
        if self.account.token:
            keys["Token"] = self.account.token
        request: dict[str, Any] = {"SdkAppId": self.sdk_app_id, "RoomId": ROOM_NUMBER, "UserId": "recorder"}
        if not self.simulator.app(self.sdk_app_id).user_sig_key:
            request["UserSig"] = "any"
        request |= {"Mode": "02", "CosConfig": {"Region": REGION, "Bucket": BUCKET, "Path": "lessons"} | keys}
        return request | {"Callback": self.simulator.receiver_url(ROOM)}


def _curl(url: str, body: Mapping[str, Any], *options: str) -> str:
    return " ".join(["curl", url, *options, "-d", shlex.quote(json.dumps(body))])
