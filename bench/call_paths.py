"""Call paths: how far a reader travels in the code to follow an HTTP start, a TRTC callback, an ffmpeg exit and a replay.

Rule: the tree under test runs as two processes of its own, with its own Python: the service under `bench/call_tracer.py`, and the
simulator without it. Everything else is HTTP, so no module name of the tree matters.

One run opens a room for each repetition and takes each through the four paths. The room's speaker is live, so the first ffmpeg
exit of a recording is the end of its capture by `stop`. COS then refuses the upload, and the failed recording is replayed. A
figure is the median of the repetitions, because the first one also imports modules that the service loads late.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PATHS = {"start": "HTTP start", "callback": "TRTC callback", "ffmpeg-exit": "ffmpeg exit", "replay": "replay"}
FIGURES = ("calls", "functions", "files", "package changes")
TRACER = Path(__file__).with_name("call_tracer.py")
PLAIN = ("-c", "import service; service.main()")
APP = 1400000001
CALLBACK_KEY = "simulator-callback-key"
FIRST_ROOM = 8489
AUDIO_ON = 203
LIMIT_S = 120.0
STOP_LIMIT_S = 30.0
COS = {
    "Region": "ap-shanghai", "Bucket": "lessons-1250000000", "Path": "lessons",
    "SecretId": "AKIDsimulator", "SecretKey": "simulator-secret-key",
}  # fmt: skip
REFUSE_UPLOADS = [{"Action": "status", "Operation": "upload-part", "Times": 0, "Status": 403, "Code": "AccessDenied"}]

Figures = dict[str, dict[str, float]]
Passes = dict[str, list[dict[str, Any]]]


class NotMeasured(Exception):
    """A tree did not go through the paths as expected."""


def measure(tree: Path, repetitions: int = 5) -> Figures:
    """The median figures of each path in a tree: path → figure → median. Raises NotMeasured."""
    return {
        path: {figure: statistics.median(one[figure] for one in found) for figure in FIGURES}
        for path, found in passes(tree, repetitions).items()
    }


def calls(tree: Path, path: str) -> list[str]:
    """The calls of one pass through a path, in order: file and function. Raises NotMeasured."""
    # The second pass: the first one also loads modules.
    return [str(call) for call in passes(tree, 2)[path][1]["sequence"]]


def passes(tree: Path, repetitions: int) -> Passes:
    """Each pass through each path, as the tracer wrote it. Raises NotMeasured."""
    with tempfile.TemporaryDirectory(prefix="call-paths-") as name:
        folder = Path(name)
        output = folder / "paths.jsonl"
        cos, api = free_port(), free_port()
        receiver = f"http://127.0.0.1:{cos}/receiver/trtc"
        simulated = [*PLAIN, "simulator", "--port", str(cos), "--folder", str(folder / "tencent"), "--callback-url", receiver]
        with (
            process(tree, simulated, folder / "simulator.log", environment(folder), f"http://127.0.0.1:{cos}/control"),
            process(
                tree,
                [str(TRACER), str(tree), str(output), "serve"],
                folder / "service.log",
                environment(folder) | settings(folder, cos, api),
                f"http://127.0.0.1:{api}/readyz",
            ),
        ):
            Walk(f"http://127.0.0.1:{api}", f"http://127.0.0.1:{cos}").through(range(FIRST_ROOM, FIRST_ROOM + repetitions))
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return by_path(lines, repetitions)


def by_path(lines: Sequence[dict[str, Any]], repetitions: int) -> Passes:
    """The tracer's lines by path. Of a recording's ffmpeg exits only the first counts. Raises NotMeasured."""
    found: Passes = {path: [] for path in PATHS}
    exits = set()
    for line in lines:
        if line["subject"] not in exits:
            found[line["path"]].append(line)
        if line["subject"]:
            exits.add(line["subject"])
    for path, seen in found.items():
        if len(seen) != repetitions:
            raise NotMeasured(f"The path {path} was seen {len(seen)} times instead of {repetitions} times.")
    return found


class Walk:
    """The requests that take rooms through the four paths."""

    def __init__(self, api: str, simulator: str) -> None:
        self._api = api
        self._simulator = simulator

    def through(self, rooms: Sequence[int]) -> None:
        """Every room through every path, one request at a time."""
        for room in rooms:
            opened = {"Room": str(room), "SdkAppId": APP, "RoomId": room, "Speakers": [{"UserId": "alice"}]}
            request("POST", f"{self._simulator}/control/rooms", opened)
        sessions = [self._start(room) for room in rooms]
        for room in rooms:
            self._announce(room)
        for session in sessions:
            self._wait(session, "Recording")
        request("PUT", f"{self._simulator}/control/cos/faults", REFUSE_UPLOADS)
        for session in sessions:
            request("POST", f"{self._api}/sessions/{session}/stop", {})
            self._wait(session, "Failed")
        request("PUT", f"{self._simulator}/control/cos/faults", [])
        for session in sessions:
            request("POST", f"{self._api}/sessions/{session}/replay", {}, {"X-Measured-Path": "replay"})
            self._wait(session, "Done")

    def _start(self, room: int) -> str:
        wanted = {"SdkAppId": APP, "RoomId": room, "UserId": "recorder", "UserSig": "any", "Mode": "00", "CosConfig": COS}
        answer = request("POST", f"{self._api}/sessions", wanted, {"X-Measured-Path": "start"})
        return str(answer["TaskId"])

    def _announce(self, room: int) -> None:
        now_ms = time.time_ns() // 10**6
        info = {"RoomId": room, "EventTs": now_ms // 1000, "EventMsTs": now_ms, "UserId": "alice"}
        body = {"EventGroupId": 2, "EventType": AUDIO_ON, "CallbackTs": now_ms, "EventInfo": info}
        sign = base64.b64encode(hmac.new(CALLBACK_KEY.encode(), json.dumps(body).encode(), hashlib.sha256).digest()).decode()
        headers = {"SdkAppId": str(APP), "Sign": sign, "X-Measured-Path": "callback"}
        request("POST", f"{self._api}/trtc/callbacks", body, headers)

    def _wait(self, session: str, state: str) -> None:
        def states() -> list[str]:
            return [one["State"] for one in request("GET", f"{self._api}/sessions/{session}")["Recordings"]]

        until(lambda: states() == [state], f"the recording of {session} to be {state}")


def environment(folder: Path) -> dict[str, str]:
    """The environment of both processes: no setting of the service."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder)}


def settings(folder: Path, cos: int, api: int) -> dict[str, str]:
    """The service's settings, as in the README."""
    query = "sdkappid={sdkappid}&userid={userid}&usersig={usersig}&remoteuserid={speaker}{number_room}"
    return {
        "PORT": str(api),
        "TRTC_CALLBACK_KEYS": f"{APP}={CALLBACK_KEY}",
        "DATA_DIR": str(folder / "data"),
        "SPOOL_DIR": str(folder / "spool"),
        "MIN_FREE": "100MiB",
        "PULL_ADDRESS": f"http://127.0.0.1:{cos}/pull/{{room}}?{query}",
        "COS_ENDPOINT": f"http://127.0.0.1:{cos}",
        "LOG_FORMAT": "json",
    }


@contextlib.contextmanager
def process(tree: Path, arguments: Sequence[str], log: Path, variables: dict[str, str], ready: str) -> Iterator[None]:
    """A process of the tree's Python in the tree, from the time that `ready` responds."""
    # The process must not outlive a run that is killed.
    command = ["setpriv", "--pdeathsig", "KILL", str(interpreter(tree)), *arguments]
    with log.open("wb") as file:
        running = subprocess.Popen(command, cwd=tree, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until(lambda: running.poll() is not None or responds(ready), f"{ready} to respond")
        if running.poll() is not None:
            raise NotMeasured(f"A process of {tree} ended: {log.read_text(errors='replace')[-2000:]}")
        yield
    finally:
        running.terminate()
        try:
            running.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def interpreter(tree: Path) -> Path:
    """The Python of a tree's own environment, or the running one if the tree has none."""
    own = tree / ".venv/bin/python"
    return own if own.exists() else Path(sys.executable)


def responds(url: str) -> bool:
    """Whether a URL responds with success."""
    try:
        request("GET", url)
    except (NotMeasured, OSError):
        return False
    return True


def request(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Send a request and return the JSON of its response, None without one. Raises NotMeasured for an error status."""
    data = None if body is None else json.dumps(body).encode()
    whole = urllib.request.Request(  # noqa: S310 - 127.0.0.1
        url, data, {"Content-Type": "application/json", **(headers or {})}, method=method
    )
    try:
        with urllib.request.urlopen(whole, timeout=LIMIT_S) as response:  # noqa: S310 - 127.0.0.1
            text = response.read()
    except urllib.error.HTTPError as error:
        with error:
            raise NotMeasured(f"{method} {url}: {error.code} {error.read().decode(errors='replace')[:500]}") from error
    return json.loads(text) if text else None


def until(condition: Callable[[], object], awaited: str) -> None:
    """Wait until a condition is true. Raises NotMeasured after LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise NotMeasured(f"Waited {LIMIT_S:g} s for {awaited}.")
        time.sleep(0.2)


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
