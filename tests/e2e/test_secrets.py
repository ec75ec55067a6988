"""Marked secrets are planted on every way in, and everything that the service wrote is searched for them: none is found."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from bus import topology
from simulator import server, usersig
from simulator.cos import faults, signature
from tests import backends, buses, ports, postgres, rabbit, secret_markers, service_process, waiting
from tests.e2e.conftest import APP, BUCKET, REGION, World, live_for

ROOT = Path(__file__).parents[2]
MINTED, SIGNED = 1400000002, 1400000003
"""Applications whose UserSigs the service mints, and whose UserSigs TRTC verifies."""
QUICK = {name: f"{seconds * waiting.pace():.1f}s" for name, seconds in (("LINGER", 2), ("IDLE_TIMEOUT", 3), ("LEASE", 5))}


class Garden:
    """A world in which every secret is a planted one, and what was written in it."""

    def __init__(self, world: World, marks: secret_markers.Planted, token: str) -> None:
        self.world = world
        self.marks = marks
        self.token = token
        self.cos: dict[str, str] = {}
        self.written: dict[str, bytes] = {}
        self.minted: set[str] = set()
        self._numbers = itertools.count()

    @property
    def parked(self) -> str:
        """The queue of what could not be handled."""
        assert self.world.backend is not None
        return topology.Topology(self.world.backend.settings["AMQP_PREFIX"]).parked

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """A request, whatever is answered; the answer counts as written."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"} | headers
        async with aiohttp.ClientSession() as http:
            url = self.world.service.url + path
            async with http.request(method, url, data=data, headers=given) as answer:
                raw = await answer.read()
        self.keep(f"answer to {method} {path.split('?')[0]}", repr(answer.headers).encode() + raw)
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(raw)
        return answer.status, None

    def keep(self, name: str, content: bytes) -> None:
        """Something was written."""
        self.written[f"{name} ({next(self._numbers)})"] = content

    def request(self, room: str, **more: Any) -> dict[str, Any]:
        """A start that succeeds, with the account's keys and a planted UserSig."""
        callback = self.world.simulator.receiver_url(room) + "?token=" + self.planted(f"Callback of {room}", encoded=True)
        found = {"SdkAppId": APP, "StrRoomId": room, "UserId": "recorder", "Mode": "00", "Callback": callback}
        found |= {"UserSig": self.planted(f"UserSig of {room}")}
        return found | {"CosConfig": {"Region": REGION, "Bucket": BUCKET, "Path": "lessons", **self.cos}} | more

    def planted(self, where: str, *, encoded: bool = False) -> str:
        """A new secret."""
        made = self.marks.make(where)
        return quote(made, safe="") if encoded else made

    def wrong_keys(self, where: str) -> dict[str, Any]:
        """COS credentials that nobody knows."""
        keys = {name: self.planted(f"{name} of {where}") for name in ("SecretId", "SecretKey", "Token")}
        return {"Region": REGION, "Bucket": BUCKET, "Path": "lessons", **keys}


@pytest.fixture
async def garden(tmp_path: Path, loops: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Garden]:
    """The world of the other tests, but with marked secrets from the ground up, and ears for the UserSigs that are minted."""
    marks = secret_markers.Planted()
    cos = {name: marks.make(f"{name} of the account") for name in ("SecretId", "SecretKey", "Token")}
    account = signature.Account(secret_id=cos["SecretId"], secret_key=cos["SecretKey"], token=cos["Token"])
    simulator = server.Simulator(folder=tmp_path / "tencent", content_folder=loops, accounts=[account], buckets=[BUCKET])
    await simulator.start()
    world = World(tmp_path, simulator, engine)
    made = Garden(world, marks, marks.make("API_TOKENS"))
    made.cos = cos
    (tmp_path / "service").mkdir()
    world.backend = backends.make(engine, tmp_path / "service" / "data")
    service = world.service = service_process.ServiceProcess(
        tmp_path / "service", world.settings() | _planted_settings(made, world.backend) | QUICK
    )
    await service.start()
    keys = json.loads(service._environment["TRTC_CALLBACK_KEYS"])
    for app in (APP, MINTED, SIGNED):
        simulator.configure_app(app, callback_url=f"{service.url}/trtc/callbacks", callback_key=keys[str(app)])
    minting = json.loads(service._environment["TRTC_KEYS"])[str(MINTED)]
    simulator.configure_app(MINTED, user_sig_key=minting)
    _overhear(made, monkeypatch)
    simulator.configure_app(SIGNED, user_sig_key=marks.make("TRTC's key of the application that verifies"))
    yield made
    await service.stop()
    await world.backend.remove(service.log)
    await simulator.stop()


def _overhear(garden: Garden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the UserSigs that the service mints, as they come to the simulator: nowhere else may they be seen."""
    check = usersig.check

    def heard(user_sig: str, *, sdk_app_id: int, **more: Any) -> str:
        verdict = check(user_sig, sdk_app_id=sdk_app_id, **more)
        if sdk_app_id == MINTED:
            assert verdict == usersig.OK, "it was minted with the planted key"
            garden.minted.add(user_sig)
        return verdict

    monkeypatch.setattr(usersig, "check", heard)


def _learn_minted(garden: Garden) -> None:
    """Search for the minted UserSigs from now on, and for the signatures in them."""
    assert garden.minted
    for number, user_sig in enumerate(sorted(garden.minted)):
        garden.marks.learn(f"a minted UserSig ({number})", user_sig)
        packed = base64.b64decode(user_sig.translate(str.maketrans("*-_", "+/=")))
        garden.marks.learn(f"the signature in a minted UserSig ({number})", json.loads(zlib.decompress(packed))["TLS.sig"])
        assert garden.marks.search("an address", f"…?usersig={quote(user_sig)}&remoteuserid=alice".encode())


def _planted_settings(garden: Garden, ground: backends.Backend) -> dict[str, str]:
    """Every setting that is a secret."""
    make = garden.planted
    found = dict(ground.settings)
    found |= {
        "API_TOKENS": garden.token,
        "CALLBACK_SECRET": "whsec_" + base64.b64encode(make("CALLBACK_SECRET").encode()).decode(),
        "TRTC_KEYS": json.dumps({str(MINTED): make("TRTC_KEYS")}),
        "TRTC_CALLBACK_KEYS": json.dumps({str(app): make(f"TRTC_CALLBACK_KEYS of {app}") for app in (APP, MINTED, SIGNED)}),
        "CLUSTER_TOKEN": make("CLUSTER_TOKEN"),
        "TENCENTCLOUD_SECRET_ID": make("TENCENTCLOUD_SECRET_ID"),
        "TENCENTCLOUD_SECRET_KEY": make("TENCENTCLOUD_SECRET_KEY"),
        "LOG_LEVEL": "debug",
    }
    if ground.engine == backends.DISTRIBUTED:
        key = garden.planted("SECRET_KEYS").encode().ljust(32, b"!")[:32]
        password = make("password of AMQP_URL")
        _add_user(f"{found['AMQP_PREFIX']}-planted", password)
        found |= {
            "SECRET_KEYS": base64.b64encode(key).decode(),
            "AMQP_URL": found["AMQP_URL"].replace(
                "recorder:recorder@", f"{found['AMQP_PREFIX']}-planted:{quote(password, safe='')}@"
            ),
            "DATABASE_URL": found["DATABASE_URL"].replace(
                "recorder@", f"recorder:{make('password of DATABASE_URL', encoded=True)}@"
            ),
        }
    return found


def _add_user(name: str, password: str) -> None:
    """A user of the broker, in one call: the control program takes seconds to begin."""
    words = [f'<<"{word}">>' for word in (name, password, "test")]
    rights = [words[0], '<<"/">>', *['<<".*">>'] * 3, words[2]]
    call = f"rabbit_auth_backend_internal:add_user({', '.join(words)}), "
    call += f"rabbit_auth_backend_internal:set_permissions({', '.join(rights)})."
    control = str(rabbit.SCRIPT.with_name("rabbitmqctl"))
    subprocess.run([control, "-q", "eval", call], env=rabbit.shared()._environment(), check=True, capture_output=True)


# --- ways in --------------------------------------------------------------------------------------------------------------
async def wrong_requests(garden: Garden) -> None:
    """Requests that are refused, with secrets where they do not belong."""
    make = garden.planted
    good = garden.request("refused")
    for number, wrong in enumerate(
        (
            {"UserSIG": make("a wrong name")},
            {"CosConfig": good["CosConfig"] | {"secretkey": make("a wrong name in CosConfig")}},
            {"UserSig": [make("a wrong type")]},
            {"UserSig": make("too long a UserSig") * 300},
            {"CosConfig": make("CosConfig that is none")},
            {"CosConfig": garden.wrong_keys("a wrong region") | {"Region": "../nowhere"}},
            {"Callback": f"https://user:{make('user of a Callback', encoded=True)}@example.com/"},
            {"Callback": secret_markers.address("gopher://example.com", make("a Callback of another scheme"))},
            {"RoomId": -1, "Password": make("a password")},
        )
    ):
        status, _ = await garden.ask("POST", "/sessions", good | wrong)
        assert 400 <= status < 500, (number, status)
    secret = make("a body that is no JSON")
    for body in (f"UserSig={secret}", f'{{"UserSig": "{secret}"', f'["{secret}"]', f'"{secret}"', f"\xff{secret}"):
        status, _ = await garden.ask("POST", "/sessions", body.encode("latin-1"))
        assert status == 400
    secret = make("a query", encoded=True)
    for method, path in (
        ("POST", "/sessions"),
        ("GET", "/sessions"),
        ("GET", "/results"),
        ("GET", "/nothing"),
        ("GET", "/healthz"),
    ):
        await garden.ask(
            method, f"{path}?UserSig={secret}&limit={secret}&after={secret}&x={secret}", {} if method == "POST" else None
        )
    secret = make("headers")
    await garden.ask("GET", "/sessions", Authorization=f"Bearer {secret}")
    await garden.ask("GET", "/sessions", Authorization=f"Basic {base64.b64encode(secret.encode()).decode()}")
    await garden.ask(
        "GET", "/sessions", **{"X-Api-Key": secret, "Cookie": f"session={secret}", "User-Agent": secret, "Referer": secret}
    )
    await garden.ask("GET", "/internal/segments?recording=x&epoch=1", Authorization=f"Bearer {make('a wrong CLUSTER_TOKEN')}")
    body = {"EventGroupId": 1, "EventType": 103, "EventInfo": {"UserSig": make("a forged TRTC callback")}}
    status, _ = await garden.ask("POST", "/trtc/callbacks", body, Sign=make("a wrong Sign"), SdkAppId=str(APP))
    assert status == 401


async def succeed(garden: Garden, room: str, **more: Any) -> str:
    """A session whose secrets are renewed on the way, and whose file and result arrive."""
    task_id = await _start(garden, room, **more)
    _, again = (
        await garden.ask(
            "POST", "/sessions", garden.request(room, **more) | {"UserSig": garden.planted(f"a renewed UserSig of {room}")}
        )
        if "UserSig" not in more
        else (200, {"TaskId": task_id})
    )
    assert again["TaskId"] == task_id
    await _live(garden, room, more.get("SdkAppId", APP))
    finished = await _finished(garden, task_id)
    assert [r["State"] for r in finished["Recordings"]] == ["Done"], finished
    return task_id


async def fail_and_replay(garden: Garden, room: str) -> str:
    """An upload that COS refuses; a replay with keys that nobody knows, one with the right ones. The receiver refuses, too."""
    garden.world.simulator.receiver.answer_with(room, 500)
    status, _ = await garden.ask("POST", "/sessions", garden.request(f"{room} from the start", CosConfig=garden.wrong_keys(room)))
    assert status == 400
    task_id = await _start(garden, room)
    no = faults.Fault(action=faults.STATUS, operation="initiate", status=403, code="AccessDenied", key=f"*{task_id}*")
    garden.world.simulator.cos.faults.set(no)
    await _live(garden, room)
    finished = await _finished(garden, task_id)
    assert [r["State"] for r in finished["Recordings"]] == ["Failed"], finished
    for keys, state in ((garden.wrong_keys(f"a replay of {room}"), "Failed"), (garden.cos, "Done")):
        body = {"UserSig": garden.planted(f"UserSig of a replay to {state}")}
        body |= {"CosConfig": {name: keys[name] for name in ("SecretId", "SecretKey", "Token")}}
        status, said = await garden.ask("POST", f"/sessions/{task_id}/replay", body)
        assert status < 300, said
        revision = finished["Revision"] + 1
        finished = await _finished(garden, task_id, revision=revision)
        assert [r["State"] for r in finished["Recordings"]] == [state], finished
    return task_id


async def be_refused(garden: Garden, room: str) -> str:
    """A UserSig that TRTC does not take: ffmpeg is told so, and prints the address; and a callback that reaches nobody."""
    callback = secret_markers.address(f"http://127.0.0.1:{ports.free()}", garden.planted("a Callback that nobody answers"))
    task_id = await _start(garden, room, SdkAppId=SIGNED, Callback=callback, SubscribeUserIds=["alice"])
    await _live(garden, room, SIGNED, recorded=False)
    await _finished(garden, task_id)
    return task_id


async def _start(garden: Garden, room: str, **more: Any) -> str:
    status, said = await garden.ask("POST", "/sessions", garden.request(room, **more))
    assert status < 300, said
    return str(said["TaskId"])


async def _live(garden: Garden, room: str, app: int = APP, *, recorded: bool = True) -> None:
    made = garden.world.simulator.create_room(app, room)
    speaker = await made.join("alice", video=False)
    if recorded:
        await waiting.until(lambda: speaker.viewers, 20, f"a pull in {room}")
    await live_for(2)
    await made.dismiss()


async def _finished(garden: Garden, task_id: str, revision: int = 1) -> Any:
    async def look() -> Any:
        _, found = await garden.ask("GET", f"/sessions/{task_id}")
        return found if found["State"] == "Finished" and found["Revision"] >= revision else None

    return await waiting.until(look, 60, f"revision {revision} of {task_id}", every_s=0.3)


async def over_the_bus(garden: Garden) -> None:
    """Starts, stops and replays as publishers send them: taken, refused, and of kinds that cannot be handled."""
    make = garden.planted
    exchange = garden.parked.removesuffix(".parked")
    bare, event = garden.request("bus-bare"), garden.request("bus-event")

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
    refused = garden.request("bus-refused") | {"CosConfig": garden.wrong_keys("the bus") | {"Path": ".."}}
    await say("event.start", refused, "refused")
    wrong: list[tuple[str, Any]] = [
        ("event.start", garden.request("bus-wrong") | {"UserSIG": make("a wrong name on the bus")}),
        ("event.start", cloud | {"id": "x", "data": {"Kennwort": make("an unknown field on the bus")}}),
        ("event.start", {"UserSig": {"deep": [{"deeper": make("a deep field on the bus")}]}}),
        ("event.sing", garden.request("bus-unknown")),
        ("event.start", f"UserSig={make('no JSON on the bus')}".encode()),
        ("event.start", b"\xff\xfe" + make("bytes on the bus").encode()),
        ("event.start", ("say " + make("words on the bus")).encode() + b" " * 1_000),
    ]
    for number, (key, body) in enumerate(wrong):
        await say(key, body, f"wrong-{number}", **{"x-api-key": make(f"header {number}"), "Token": make(f"token {number}")})


async def parked(garden: Garden) -> None:
    """Wait for what could not be handled, and keep it as the broker holds it."""
    count = 8  # the seven wrong ones, and a stop that has a field too many
    messages = await buses.taken(garden.parked, count)
    for number, message in enumerate(messages):
        told = repr((message.headers, message.routing_key, message.message_id, message.content_type))
        garden.keep(f"parked message {number}", told.encode() + message.body)
    assert {message.message_id for message in messages} >= {f"wrong-{number}" for number in range(7)}


# --- what was written -------------------------------------------------------------------------------------------------------
def tables(garden: Garden) -> Iterator[tuple[str, bytes]]:
    """All that the database holds: its files, or a dump."""
    assert garden.world.backend is not None
    if garden.world.engine == backends.DISTRIBUTED:
        yield "dump of the database", postgres.shared().dump(garden.world.backend.database)
    for path in sorted((garden.world.service.folder / "data").glob("recorder.db*")):
        yield path.name, path.read_bytes()


async def commands(garden: Garden, task_ids: list[str]) -> None:
    """What the operator's commands print, and the API says of all sessions."""
    for path in ("/sessions", "/sessions?stuck=true", "/results?limit=100"):
        await garden.ask("GET", path)
    given = garden.world.service._environment
    given = given | {"RECORDER_URL": garden.world.service.url, "RECORDER_TOKEN": garden.token}
    said = [("show", *task_ids[-1:]), ("doctor",), ("parked", "list"), ("keys", "rotate")]

    async def run(*words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import service; service.main()", *words, cwd=ROOT, env=given,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert b"Traceback" not in out, out.decode()
        garden.keep("recorder " + " ".join(words), out)

    await asyncio.gather(*(run(*words) for words in said))


@contextlib.asynccontextmanager
async def watched(garden: Garden) -> AsyncIterator[set[str]]:
    """Look at every process that the service starts, for as long as the block runs; yields the programs seen."""
    seen: set[str] = set()
    contents: set[bytes] = set()
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            for name, content in secret_markers.processes(garden.world.service.pid):
                if content not in contents:
                    garden.keep(name, content)
                contents.add(content)
                seen.add(os.path.basename(content.split(b"\0")[0].decode(errors="replace")))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await over.wait()

    watching = asyncio.create_task(watch())
    yield seen
    over.set()
    await watching


async def test_no_planted_secret_is_found(garden: Garden) -> None:
    """Nothing that the service wrote has any of the secrets that came in, in any form: neither while it runs nor after it."""
    marks, world = garden.marks, garden.world
    bus = world.engine == backends.DISTRIBUTED
    async with watched(garden) as programs:
        task_ids = await asyncio.gather(
            succeed(garden, "good"),
            succeed(garden, "minted", SdkAppId=MINTED, UserSig=""),
            fail_and_replay(garden, "bad"),
            be_refused(garden, "refused-by-trtc"),
        )
        await asyncio.gather(wrong_requests(garden), *([over_the_bus(garden)] if bus else []))
    for name, content in tables(garden):
        garden.keep(name, content)
    await commands(garden, task_ids)
    if bus:
        await parked(garden)
    limits, environment = (secret_markers.of_process(world.service.pid, name) for name in ("limits", "environ"))
    assert b"Max core file size        0 " in limits
    assert await world.service.stop() == 0
    for requests in world.simulator.receiver.received.values():
        for request in requests:
            garden.keep("posted result", repr(sorted(request.headers.items())).encode() + request.body)
    key_file = world.service.folder / "data" / "secret.keys"
    if not bus:
        marks.others["the key that was made"] = key_file.read_bytes().splitlines()[-1]
    garden.written |= {name: found for name, found in secret_markers.files(world.folder / "service") if name != str(key_file)}
    garden.written |= dict(secret_markers.files(world.simulator.folder / "cos" / BUCKET))
    _learn_minted(garden)
    assert marks.search_all(garden.written) == []
    # The search itself: it finds what is there to be found, and was shown what it should see.
    assert marks.search("environment", environment)
    assert any("ffmpeg" in program for program in programs), programs
    assert any("posted result" in name for name in garden.written)
    assert b"http.request" in garden.written[str(world.service.log)]
    assert len(marks.values) > 40
