"""Marked secrets enter by every path, and a search of everything that the service wrote finds none of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.cos import faults
from tests import backends, buses, ports, postgres, secret_markers, waiting
from tests.e2e import secret_world
from tests.e2e.conftest import APP, BUCKET, live_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def secrets(
    tmp_path: Path, loops: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[secret_world.SecretWorld]:
    async with secret_world.running(tmp_path, loops, engine, monkeypatch) as made:
        yield made


# --- ways in --------------------------------------------------------------------------------------------------------------
async def wrong_requests(secrets: secret_world.SecretWorld) -> None:
    """Requests that are refused, with secrets in wrong places."""
    make = secrets.secret
    good = secrets.request("refused")
    for number, wrong in enumerate(
        (
            {"UserSIG": make("a wrong name")},
            {"CosConfig": good["CosConfig"] | {"secretkey": make("a wrong name in CosConfig")}},
            {"UserSig": [make("a wrong type")]},
            {"UserSig": make("too long a UserSig") * 300},
            {"CosConfig": make("CosConfig that is none")},
            {"CosConfig": secrets.wrong_keys("a wrong region") | {"Region": "../nowhere"}},
            {"Callback": f"https://user:{make('user of a Callback', encoded=True)}@example.com/"},
            {"Callback": secret_markers.address("gopher://example.com", make("a Callback of another scheme"))},
            {"RoomId": -1, "Password": make("a password")},
        )
    ):
        status, _ = await secrets.ask("POST", "/sessions", good | wrong)
        assert 400 <= status < 500, (number, status)
    secret = make("a body that is no JSON")
    for body in (f"UserSig={secret}", f'{{"UserSig": "{secret}"', f'["{secret}"]', f'"{secret}"', f"\xff{secret}"):
        status, _ = await secrets.ask("POST", "/sessions", body.encode("latin-1"))
        assert status == 400
    secret = make("a query", encoded=True)
    for method, path in (
        ("POST", "/sessions"),
        ("GET", "/sessions"),
        ("GET", "/results"),
        ("GET", "/nothing"),
        ("GET", "/healthz"),
    ):
        await secrets.ask(
            method, f"{path}?UserSig={secret}&limit={secret}&after={secret}&x={secret}", {} if method == "POST" else None
        )
    secret = make("headers")
    await secrets.ask("GET", "/sessions", Authorization=f"Bearer {secret}")
    await secrets.ask("GET", "/sessions", Authorization=f"Basic {base64.b64encode(secret.encode()).decode()}")
    await secrets.ask(
        "GET", "/sessions", **{"X-Api-Key": secret, "Cookie": f"session={secret}", "User-Agent": secret, "Referer": secret}
    )
    await secrets.ask("GET", "/internal/segments?recording=x&epoch=1", Authorization=f"Bearer {make('a wrong CLUSTER_TOKEN')}")
    body = {"EventGroupId": 1, "EventType": 103, "EventInfo": {"UserSig": make("a forged TRTC callback")}}
    status, _ = await secrets.ask("POST", "/trtc/callbacks", body, Sign=make("a wrong Sign"), SdkAppId=str(APP))
    assert status == 401


async def succeed(secrets: secret_world.SecretWorld, room: str, **more: Any) -> str:
    """A session whose secrets are renewed midway, and whose file and result arrive."""
    task_id = await _start(secrets, room, **more)
    _, again = (
        await secrets.ask(
            "POST",
            "/sessions",
            secrets.request(room, **more) | {"UserSig": secrets.secret(f"a renewed UserSig of {room}")},
        )
        if "UserSig" not in more
        else (200, {"TaskId": task_id})
    )
    assert again["TaskId"] == task_id
    await _live(secrets, room, more.get("SdkAppId", APP))
    finished = await _finished(secrets, task_id)
    assert [r["State"] for r in finished["Recordings"]] == ["Done"], finished
    return task_id


async def fail_and_replay(secrets: secret_world.SecretWorld, room: str) -> str:
    """An upload that COS refuses, a replay with wrong keys, one with the right ones, and a receiver that refuses."""
    secrets.world.simulator.receiver.answer_with(room, 500)
    status, _ = await secrets.ask(
        "POST", "/sessions", secrets.request(f"{room} from the start", CosConfig=secrets.wrong_keys(room))
    )
    assert status == 400
    task_id = await _start(secrets, room)
    no = faults.Fault(action=faults.STATUS, operation="initiate", status=403, code="AccessDenied", key=f"*{task_id}*")
    secrets.world.simulator.cos.faults.set(no)
    await _live(secrets, room)
    finished = await _finished(secrets, task_id)
    assert [r["State"] for r in finished["Recordings"]] == ["Failed"], finished
    for keys, state in ((secrets.wrong_keys(f"a replay of {room}"), "Failed"), (secrets.cos, "Done")):
        body = {"UserSig": secrets.secret(f"UserSig of a replay to {state}")}
        body |= {"CosConfig": {name: keys[name] for name in ("SecretId", "SecretKey", "Token")}}
        status, answer = await secrets.ask("POST", f"/sessions/{task_id}/replay", body)
        assert status < 300, answer
        revision = finished["Revision"] + 1
        finished = await _finished(secrets, task_id, revision=revision)
        assert [r["State"] for r in finished["Recordings"]] == [state], finished
    return task_id


async def be_refused(secrets: secret_world.SecretWorld, room: str) -> str:
    """A UserSig that TRTC refuses, so that ffmpeg prints the address; and a result whose receiver is unreachable."""
    callback = secret_markers.address(f"http://127.0.0.1:{ports.free()}", secrets.secret("a Callback that nobody answers"))
    task_id = await _start(secrets, room, SdkAppId=secret_world.SIGNED, Callback=callback, SubscribeUserIds=["alice"])
    await _live(secrets, room, secret_world.SIGNED, recorded=False)
    await _finished(secrets, task_id)
    return task_id


async def _start(secrets: secret_world.SecretWorld, room: str, **more: Any) -> str:
    status, answer = await secrets.ask("POST", "/sessions", secrets.request(room, **more))
    assert status < 300, answer
    return str(answer["TaskId"])


async def _live(secrets: secret_world.SecretWorld, room: str, app: int = APP, *, recorded: bool = True) -> None:
    made = secrets.world.simulator.create_room(app, room)
    speaker = await made.join("alice", video=False)
    if recorded:
        await waiting.until(lambda: speaker.viewers, 20, f"a pull in {room}")
    await live_for(2)
    await made.dismiss()


async def _finished(secrets: secret_world.SecretWorld, task_id: str, revision: int = 1) -> Any:
    async def poll() -> Any:
        _, found = await secrets.ask("GET", f"/sessions/{task_id}")
        return found if found["State"] == "Finished" and found["Revision"] >= revision else None

    return await waiting.until(poll, 60, f"revision {revision} of {task_id}", every_s=0.3)


async def over_the_bus(secrets: secret_world.SecretWorld) -> None:
    """Starts, stops and replays as publishers send them: accepted, refused, and of kinds that cannot be handled."""
    make = secrets.secret
    exchange = secrets.parked.removesuffix(".parked")
    bare, event = secrets.request("bus-bare"), secrets.request("bus-event")

    async def say(key: str, body: Any, id_: str, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await buses.say(exchange, key, raw, message_id=id_, headers=headers)

    cloud = {"specversion": "1.0", "source": "a publisher", "type": "start"}
    await say("event.start", bare, "bare")
    await say("event.start", cloud | {"id": "event", "data": event}, "event", Authorization=make("a header on the bus"))
    for kind in ("stop", "replay"):
        nobody = {"TaskId": "01" + "0" * 24, "UserSig": make(f"UserSig of a {kind} on the bus")}
        await say(f"event.{kind}", nobody, f"{kind}-nobody")
    nobody = {"TaskId": "01" + "0" * 24, "CosConfig": {k: make(f"{k} of a replay on the bus") for k in ("SecretId", "SecretKey")}}
    await say("event.replay", nobody, "replay-nobody-2")
    refused = secrets.request("bus-refused") | {"CosConfig": secrets.wrong_keys("the bus") | {"Path": ".."}}
    await say("event.start", refused, "refused")
    wrong: list[tuple[str, Any]] = [
        ("event.start", secrets.request("bus-wrong") | {"UserSIG": make("a wrong name on the bus")}),
        ("event.start", cloud | {"id": "x", "data": {"Kennwort": make("an unknown field on the bus")}}),
        ("event.start", {"UserSig": {"deep": [{"deeper": make("a deep field on the bus")}]}}),
        ("event.sing", secrets.request("bus-unknown")),
        ("event.start", f"UserSig={make('no JSON on the bus')}".encode()),
        ("event.start", b"\xff\xfe" + make("bytes on the bus").encode()),
        ("event.start", ("say " + make("words on the bus")).encode() + b" " * 1_000),
    ]
    for number, (key, body) in enumerate(wrong):
        headers = {"x-api-key": make(f"header {number}"), "Token": make(f"token {number}")}
        await say(key, body, f"wrong-{number}", **headers)
        # A wrong request is answered; what is no request is parked, whatever it holds.
        await say("event.user-left", body, f"parked-{number}", **headers)


async def parked(secrets: secret_world.SecretWorld) -> None:
    """Wait for the dead letters, and record them as the broker stores them."""
    count = 8  # seven that are no requests, and one of an unknown type
    messages = await buses.taken(secrets.parked, count)
    for number, message in enumerate(messages):
        properties = repr((message.headers, message.routing_key, message.message_id, message.content_type))
        secrets.record(f"parked message {number}", properties.encode() + message.body)
    assert {message.message_id for message in messages} == {"wrong-3", *(f"parked-{number}" for number in range(7))}


# --- the service's output ---------------------------------------------------------------------------------------------------
def tables(secrets: secret_world.SecretWorld) -> Iterator[tuple[str, bytes]]:
    """The whole content of the database: its files, or a dump."""
    assert secrets.world.backend is not None
    if secrets.world.engine == backends.DISTRIBUTED:
        yield "dump of the database", postgres.shared().dump(secrets.world.backend.database)
    for path in sorted((secrets.world.service.folder / "data").glob("recorder.db*")):
        yield path.name, path.read_bytes()


async def commands(secrets: secret_world.SecretWorld, task_ids: list[str]) -> None:
    """Record the output of the operator's commands, and the API's view of all sessions."""
    for path in ("/sessions", "/sessions?stuck=true", "/results?limit=100"):
        await secrets.ask("GET", path)
    given = secrets.world.service._environment
    given = given | {"RECORDER_URL": secrets.world.service.url, "RECORDER_TOKEN": secrets.token}
    calls = [("show", *task_ids[-1:]), ("doctor", "--within=60"), ("parked", "list"), ("keys", "rotate")]

    async def run(*words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import service; service.main()", *words, cwd=ROOT, env=given,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert b"Traceback" not in out, out.decode()
        secrets.record("recorder " + " ".join(words), out)

    await asyncio.gather(*(run(*words) for words in calls))


@contextlib.asynccontextmanager
async def watched(secrets: secret_world.SecretWorld) -> AsyncIterator[set[str]]:
    """Record every process that the service starts while the block runs; yields the programs seen."""
    seen: set[str] = set()
    contents: set[bytes] = set()
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            for name, content in secret_markers.processes(secrets.world.service.pid):
                if content not in contents:
                    secrets.record(name, content)
                contents.add(content)
                seen.add(os.path.basename(content.split(b"\0")[0].decode(errors="replace")))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await over.wait()

    watching = asyncio.create_task(watch())
    yield seen
    over.set()
    await watching


async def test_no_marked_secret_is_found(secrets: secret_world.SecretWorld) -> None:
    """Nothing that the service writes, during its run or after, contains any secret in any form."""
    marks, world = secrets.marks, secrets.world
    bus = world.engine == backends.DISTRIBUTED
    async with watched(secrets) as programs:
        task_ids = await asyncio.gather(
            succeed(secrets, "good"),
            succeed(secrets, "minted", SdkAppId=secret_world.MINTED, UserSig=""),
            fail_and_replay(secrets, "bad"),
            be_refused(secrets, "refused-by-trtc"),
        )
        await asyncio.gather(wrong_requests(secrets), *([over_the_bus(secrets)] if bus else []))
    for name, content in tables(secrets):
        secrets.record(name, content)
    await commands(secrets, task_ids)
    if bus:
        await parked(secrets)
    limits, environment = (secret_markers.of_process(world.service.pid, name) for name in ("limits", "environ"))
    assert b"Max core file size        0 " in limits
    assert await world.service.stop() == 0
    for requests in world.simulator.receiver.received.values():
        for request in requests:
            secrets.record("posted result", repr(sorted(request.headers.items())).encode() + request.body)
    key_file = world.service.folder / "data" / "secret.keys"
    if not bus:
        marks.others["the key that was made"] = key_file.read_bytes().splitlines()[-1]
    secrets.written |= {name: found for name, found in secret_markers.files(world.folder / "service") if name != str(key_file)}
    secrets.written |= dict(secret_markers.files(world.simulator.folder / "cos" / BUCKET))
    secret_world.learn_minted(secrets)
    assert marks.search_all(secrets.written) == []
    # Controls of the search itself: it finds a secret that must be there, and it was given the places that it must cover.
    assert marks.search("environment", environment)
    assert any("ffmpeg" in program for program in programs), programs
    assert any("posted result" in name for name in secrets.written)
    assert b"http.request" in secrets.written[str(world.service.log)]
    assert len(marks.values) > 40
