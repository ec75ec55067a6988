"""API service for tests: the real HTTP application on a free port, over a real Decider and a database."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from ulid import ULID

from assembly import operations
from config import settings
from events import codec
from handlers import callback_intake, dispatch, unit_of_work
from machine import api_keys, job_key, model
from store import api_keys as api_keys_module
from store import attention, audit, backlog, overview, queries, store
from tencent import trtc_callbacks
from tests import engines, transactions
from web import app, attention_watch, http_server

SDK_APP_ID = 1400000001
CALLBACK_KEY = "callback-key"
CALLBACK_WINDOW_MS = 300_000


def now_ms() -> int:
    """Unix ms."""
    return int(time.time() * 1000)


def new_id() -> str:
    """A ULID."""
    return str(ULID())


def start_body(**more: Any) -> dict[str, Any]:
    """A valid start with marked secrets."""
    cos = {"Region": "ap-shanghai", "Bucket": "lessons-1250000000", "Path": "/a/b/", "SecretId": "PLANTED-ID"}
    cos["SecretKey"] = "PLANTED-KEY"
    body = {"SdkAppId": SDK_APP_ID, "RoomId": 8489, "UserId": "rec", "UserSig": "PLANTED-SIG", "Mode": "02", "CosConfig": cos}
    return body | more


@dataclass(kw_only=True)
class Service:
    """A running API with its store and bus. Tests set `not_ready`, `warnings`, `failure`, `draining`, `progress` and
    `clock_ahead_ms` (how far the API's clock is ahead), and start `watch` if it is to look without being asked."""

    url: str
    decider: dispatch.Decider
    store: store.Store
    http: aiohttp.ClientSession
    keys: api_keys_module.Keys
    audit: audit.Audit
    queries: overview.OverviewQueries
    token: str = ""
    not_ready: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    draining: bool = False
    progress: dict[job_key.RecordingKey, int] = field(default_factory=dict)
    listeners: list[Callable[[codec.Event], None]] = field(default_factory=list)
    clock_ahead_ms: int = 0
    application: Any = None
    watch: Any = None
    failure: Exception | None = None
    decided: list[codec.Event] = field(default_factory=list)
    taken: list[codec.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.intake = callback_intake.CallbackIntake(self.store.presence, self.decide)

    @property
    def document(self) -> dict[str, Any]:
        """The OpenAPI document of the application."""
        made: dict[str, Any] = self.application.openapi()
        return made

    @property
    def routes(self) -> list[Any]:
        """The routes of the application."""
        return list(self.application.routes)

    async def decide(self, event: codec.Event, by: model.Caller | None = None) -> dict[str, Any]:
        """The decider of the API: the real one, with a count of calls, or a failure."""
        if self.failure is not None:
            raise self.failure
        self.decided.append(event)
        return await self.decider.decide(event, by)

    async def take_callback(self, event: codec.Event) -> None:
        """The intake of the API's callbacks, with a count of calls."""
        self.taken.append(event)
        await self.intake.take(event)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        """Send one request with the right token; returns its status and its JSON."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= options.pop("headers", {})
        async with self.http.request(method, self.url + path, headers=headers, **options) as response:
            return response.status, await response.json()

    async def key(self, *scopes: str, quota: int = 0) -> tuple[str, str]:
        """Create a key with these scopes; returns its id and its text."""
        id_, text = api_keys.new()
        made = api_keys.ApiKey(id=id_, name="school", digest=api_keys.digest(text), scopes=scopes, quota=quota)
        await self.keys.add(made, model.Caller(name="cli test"))
        return id_, text

    async def open_session(self, **more: Any) -> str:
        """Start a session with the fields of `more`, and return its TaskId."""
        status, answer = await self.ask("POST", "/sessions", json=start_body(**more))
        assert status == 202, answer
        return str(answer["TaskId"])

    async def user_sig(self, task_id: str) -> str:
        """The stored UserSig of a session."""
        async with transactions.opened(self.store) as tx:
            return (await tx.read("secrets", task_id)).user_sig

    async def say(self, type_: str, **data: Any) -> None:
        """Decide an internal event, as if a worker or TRTC had sent it."""
        await self.decider.decide(codec.make(type_, id=new_id(), time_ms=now_ms(), data=data))

    async def failed_recording(self, task_id: str) -> None:
        """A session of a room that has ended, with one recording, alice/1, that failed in the upload."""
        room = {"SdkAppId": SDK_APP_ID, "RoomId": 8489}
        named = {"TaskId": task_id, "Speaker": "alice", "N": 1}
        owner = f"{task_id}/alice/1"
        await self.say("user-publishing", **room, UserId="alice", EventMs=now_ms(), Kind="audio")
        await self.store.leases.take(job_key.parse(owner), 1, "node", 30_000)
        await self.store.segments.register(job_key.parse(owner), 1, "node")
        await self.say("capture-started", **named, Epoch=1)
        await self.say("room-destroyed", **room, EventMs=now_ms())
        await self.say("ffmpeg-exit", **named, Epoch=1, Job="capture", Reason="stopped", MediaMs=5000, SizeBytes=4)
        await self.store.leases.take(job_key.parse(owner), 2, "node", 30_000)
        output = {"DurationMs": 5000, "SizeBytes": 3, "Crc64": "", "StartMs": 1, "EndMs": 2, "Gaps": []}
        await self.say("ffmpeg-exit", **named, Epoch=2, Job="transcode", Reason="ok", Output=output)
        await self.store.leases.take(job_key.parse(owner), 3, "node", 30_000)
        refused = {"Reason": "refused", "Detail": "The bucket refused the key (403).", "Retry": False}
        await self.say("upload-failed", **named, Epoch=3, **refused)


@asynccontextmanager
async def running(database: engines.Database, tokens: tuple[str, ...] = (), **more: Any) -> AsyncIterator[Service]:
    """Run a service on a database with the current schema. `more` are fields of the Api: requests_per_minute, quota, …"""
    opened = database.open(now_ms, new_id)
    decider = dispatch.Decider(opened, unit_of_work.Context(policy=model.Policy(), new_id=new_id))
    async with aiohttp.ClientSession() as http:
        options = {
            "keys": api_keys_module.Keys(opened.connections, clock=now_ms),
            "audit": audit.Audit(opened.connections, clock=now_ms),
            "queries": overview.OverviewQueries(opened.connections),
        }
        service = Service(url="", decider=decider, store=opened, http=http, token=tokens[0] if tokens else "", **options)
        api = app.Api(
            decide=service.decide,
            take_callback=service.take_callback,
            queries=queries.SessionQueries(opened.connections),
            ping=opened.connections.ping,
            ready=lambda: service.not_ready,
            new_id=new_id,
            clock=lambda: now_ms() + service.clock_ahead_ms,
            progress=lambda: service.progress,
            listeners=service.listeners,
            draining=lambda: service.draining,
            tokens=tokens,
            keys=service.keys.all,
            note_key_used=service.keys.note_used,
            audit=service.audit.add,
            knows_callbacks=lambda sdk_app_id: sdk_app_id == SDK_APP_ID,
            callback_window_ms=CALLBACK_WINDOW_MS,
            verify_callback=lambda app_id, raw, sign: app_id == SDK_APP_ID and trtc_callbacks.verify(CALLBACK_KEY, raw, sign),
            map_callback=trtc_callbacks.to_event,
            version="1.2.3",
            overview_queries=service.queries,
            backlog=backlog.BacklogQuery(opened.connections, clock=now_ms, alive_ms=60_000).read,
            operations=more.pop("operations", None) or _operations(opened),
            **{"warnings": lambda: service.warnings, "attention_queries": attention.AttentionQueries(opened.connections)} | more,
        )
        service.watch = attention_watch.AttentionWatch(api)
        application = app.create(api, watch=service.watch)
        service.application = application
        server = http_server.HttpServer(application, host="127.0.0.1", port=0)
        await server.start()
        service.url = f"http://127.0.0.1:{server.port}"
        try:
            yield service
        finally:
            await server.stop()
        await service.watch.stop()
    await opened.stop()


def _operations(opened: store.Store) -> operations.Operations:
    """The operations of a node among others: what a single node refuses is in its own test."""
    return operations.Operations(settings.load({"HOME": tempfile.gettempdir()}), opened.connections, alone=False, alive_ms=60_000)
