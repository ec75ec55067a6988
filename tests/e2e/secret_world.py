"""Secret world: a service whose secrets are all marked, and everything that it writes."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from bus import topology
from simulator import server, usersig
from simulator.cos import signature
from tests import backends, rabbit, secret_markers, service_process, waiting
from tests.e2e.conftest import APP, BUCKET, REGION, World

MINTED, SIGNED = 1400000002, 1400000003
"""The application whose UserSigs the service mints, and the one whose UserSigs TRTC verifies."""
QUICK = {name: f"{seconds * waiting.pace():.1f}s" for name, seconds in (("LINGER", 2), ("IDLE_TIMEOUT", 3), ("LEASE", 5))}


class SecretWorld:
    """A world in which every secret is marked, and a record of everything that the service wrote."""

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
        """The queue of dead letters."""
        assert self.world.backend is not None
        return topology.Topology(self.world.backend.settings["AMQP_PREFIX"]).parked

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request and record its response, whatever its status."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"} | headers
        async with aiohttp.ClientSession() as http:
            url = self.world.service.url + path
            async with http.request(method, url, data=data, headers=given) as answer:
                raw = await answer.read()
        self.record(f"answer to {method} {path.split('?')[0]}", repr(answer.headers).encode() + raw)
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(raw)
        return answer.status, None

    def record(self, name: str, content: bytes) -> None:
        """Record something that the service wrote."""
        self.written[f"{name} ({next(self._numbers)})"] = content

    def request(self, room: str, **more: Any) -> dict[str, Any]:
        """A start that succeeds, with the account's keys and a marked UserSig."""
        callback = self.world.simulator.receiver_url(room) + "?token=" + self.secret(f"Callback of {room}", encoded=True)
        found = {"SdkAppId": APP, "StrRoomId": room, "UserId": "recorder", "Mode": "00", "Callback": callback}
        found |= {"UserSig": self.secret(f"UserSig of {room}")}
        return found | {"CosConfig": {"Region": REGION, "Bucket": BUCKET, "Path": "lessons", **self.cos}} | more

    def secret(self, where: str, *, encoded: bool = False) -> str:
        """A new marked secret."""
        made = self.marks.make(where)
        return quote(made, safe="") if encoded else made

    def wrong_keys(self, where: str) -> dict[str, Any]:
        """COS credentials that COS does not accept."""
        keys = {name: self.secret(f"{name} of {where}") for name in ("SecretId", "SecretKey", "Token")}
        return {"Region": REGION, "Bucket": BUCKET, "Path": "lessons", **keys}


@contextlib.asynccontextmanager
async def running(tmp_path: Path, loops: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SecretWorld]:
    """A world like that of the other tests, but with marked secrets everywhere and a record of the minted UserSigs."""
    marks = secret_markers.Planted()
    cos = {name: marks.make(f"{name} of the account") for name in ("SecretId", "SecretKey", "Token")}
    account = signature.Account(secret_id=cos["SecretId"], secret_key=cos["SecretKey"], token=cos["Token"])
    simulator = server.Simulator(folder=tmp_path / "tencent", content_folder=loops, accounts=[account], buckets=[BUCKET])
    await simulator.start()
    world = World(tmp_path, simulator, engine)
    made = SecretWorld(world, marks, marks.make("API_TOKENS"))
    made.cos = cos
    (tmp_path / "service").mkdir()
    world.backend = backends.make(engine, tmp_path / "service" / "data")
    service = world.service = service_process.ServiceProcess(
        tmp_path / "service", world.settings() | _secret_settings(made, world.backend) | QUICK
    )
    # Its command line and environment are looked at.
    service.fresh = True
    await service.start()
    keys = json.loads(service._environment["TRTC_CALLBACK_KEYS"])
    for app in (APP, MINTED, SIGNED):
        simulator.configure_app(app, callback_url=f"{service.url}/trtc/callbacks", callback_key=keys[str(app)])
    minting = json.loads(service._environment["TRTC_KEYS"])[str(MINTED)]
    simulator.configure_app(MINTED, user_sig_key=minting)
    _record_minted(made, monkeypatch)
    simulator.configure_app(SIGNED, user_sig_key=marks.make("TRTC's key of the application that verifies"))
    yield made
    await service.stop()
    await world.backend.remove(service.log)
    await simulator.stop()


def _record_minted(secrets: SecretWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the minted UserSigs when they reach the simulator: no other place may show them."""
    check = usersig.check

    def heard(user_sig: str, *, sdk_app_id: int, **more: Any) -> str:
        verdict = check(user_sig, sdk_app_id=sdk_app_id, **more)
        if sdk_app_id == MINTED:
            assert verdict == usersig.OK, "it was minted with the marked key"
            secrets.minted.add(user_sig)
        return verdict

    monkeypatch.setattr(usersig, "check", heard)


def learn_minted(secrets: SecretWorld) -> None:
    """Search for the minted UserSigs from now on, and for their signatures."""
    assert secrets.minted
    for number, user_sig in enumerate(sorted(secrets.minted)):
        secrets.marks.learn(f"a minted UserSig ({number})", user_sig)
        packed = base64.b64decode(user_sig.translate(str.maketrans("*-_", "+/=")))
        secrets.marks.learn(f"the signature in a minted UserSig ({number})", json.loads(zlib.decompress(packed))["TLS.sig"])
        assert secrets.marks.search("an address", f"…?usersig={quote(user_sig)}&remoteuserid=alice".encode())


def _secret_settings(secrets: SecretWorld, backend: backends.Backend) -> dict[str, str]:
    """Every setting that is a secret."""
    make = secrets.secret
    found = dict(backend.settings)
    found |= {
        "API_TOKENS": secrets.token,
        "CALLBACK_SECRET": "whsec_" + base64.b64encode(make("CALLBACK_SECRET").encode()).decode(),
        "TRTC_KEYS": json.dumps({str(MINTED): make("TRTC_KEYS")}),
        "TRTC_CALLBACK_KEYS": json.dumps({str(app): make(f"TRTC_CALLBACK_KEYS of {app}") for app in (APP, MINTED, SIGNED)}),
        "CLUSTER_TOKEN": make("CLUSTER_TOKEN"),
        "TENCENTCLOUD_SECRET_ID": make("TENCENTCLOUD_SECRET_ID"),
        "TENCENTCLOUD_SECRET_KEY": make("TENCENTCLOUD_SECRET_KEY"),
        "LOG_LEVEL": "debug",
    }
    if backend.engine == backends.DISTRIBUTED:
        key = secrets.secret("SECRET_KEYS").encode().ljust(32, b"!")[:32]
        password = make("password of AMQP_URL")
        rabbit.shared().add_user(f"{found['AMQP_PREFIX']}-marked", password, ".*", ".*", ".*")
        found |= {
            "SECRET_KEYS": base64.b64encode(key).decode(),
            "AMQP_URL": found["AMQP_URL"].replace(
                "recorder:recorder@", f"{found['AMQP_PREFIX']}-marked:{quote(password, safe='')}@"
            ),
            "DATABASE_URL": found["DATABASE_URL"].replace(
                "recorder@", f"recorder:{make('password of DATABASE_URL', encoded=True)}@"
            ),
        }
    return found
