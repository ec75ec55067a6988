"""A burst of TRTC's callbacks: thousands of signed ones, most of them about rooms that nobody records.

    .venv/bin/python -m bench.intake
    .venv/bin/python -m bench.intake --engine embedded --quick
    .venv/bin/python -m bench.intake --forward --callbacks 10000
    .venv/bin/python -m bench.intake --forward --callbacks 10000 --down 60

Rule: the burst has half the rate that a bare endpoint (`bench/bare_endpoint.py`) has just sustained on the same server, database
and machine. The sender has a process of its own (`bench/callback_burst.py`). Every commit is synced to disk, and the log is
written as by the service. At the end the database is read: each user's presence, each recorded speaker, each decided callback.
With `--forward` a second burst of the same rate follows, whose callbacks are also forwarded to a receiver that is down for the
first half (`bench/down_receiver.py`); with `--down`, for so many seconds, and both bursts last twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulid import ULID

from assembly import logs
from bench import bare_endpoint, callback_burst, down_receiver, noise
from cli import serve
from events import codec
from handlers import callback_intake, dispatch, unit_of_work
from machine import encryption, model
from store import connections, queries
from store import store as stores
from tencent import trtc_callbacks
from tests import postgres
from web import app, http_server
from webhook import forwarder, sender

KEY = "callback-key"
USERS = 20
FULL, QUICK = 30_000, 600
# One room of so many is recorded.
RECORDED_EVERY = 100
COS = {"Region": "ap-shanghai", "Bucket": "bench-1250000000", "Path": "p", "SecretId": "id", "SecretKey": "key"}
ENGINES = ("embedded", "distributed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run. `missing` counts expected rows that the database does not have. `forwarded` and `dropped` count callbacks for the
    application's own receiver, and `received` those that it took."""

    bare_per_s: float
    rate: float
    sent: int
    answered: int
    p50_ms: float
    p99_ms: float
    longest_ms: float
    cpu_ms: float
    bare_cpu_ms: float
    missing: int
    forwarded: int = 0
    dropped: int = 0
    received: int = 0
    tenths_ms: Sequence[float] = ()
    """p99 of each tenth of the burst."""


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A ULID."""
    return str(ULID())


@contextlib.asynccontextmanager
async def serving(application: Any) -> AsyncIterator[int]:
    """The service's HTTP server; yields its port."""
    server = http_server.HttpServer(application, host="127.0.0.1", port=0)
    await server.start()
    yield server.port
    await server.stop()


async def send(order: callback_burst.Order) -> callback_burst.Met:
    """Run the sender."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.callback_burst", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate(json.dumps(dataclasses.asdict(order)).encode())
    return callback_burst.Met(**json.loads(printed))


class Intake:
    """The service's route for callbacks, on a database; a session is Open in every `RECORDED_EVERY`th room. `receiver` is where
    callbacks are forwarded to; "": nowhere."""

    def __init__(self, url: str, receiver: str = "") -> None:
        database = connections.open_database(url)
        self.store = stores.Store(database, clock=now_ms, keyring=encryption.Keyring([encryption.new_key()]))
        self._decider = dispatch.Decider(self.store, unit_of_work.Context(policy=model.Policy(), new_id=new_id))
        intake = callback_intake.CallbackIntake(self.store.presence, self._decider.decide)
        webhooks = sender.WebhookSender(allow=["127.0.0.1"])
        receivers = {callback_burst.APP: receiver} if receiver else {}
        self.forwarder = forwarder.CallbackForwarder(webhooks, receivers, busy=lambda: intake.busy)
        self.application = app.create(
            app.Api(
                decide=self._decider.decide,
                take_callback=intake.take,
                forward_callback=self.forwarder.take,
                queries=queries.SessionQueries(database),
                ping=database.ping,
                ready=list,
                new_id=new_id,
                clock=now_ms,
                verify_callback=lambda app_id, raw, sign: trtc_callbacks.verify(KEY, raw, sign),
                map_callback=trtc_callbacks.to_event,
                version="bench",
            )
        )

    async def start(self, rooms: Sequence[int]) -> None:
        """Migrate the database, and open a session in these rooms."""
        await self.store.start()
        await self.forwarder.start()
        for room in rooms:
            data = {
                "SdkAppId": callback_burst.APP,
                "RoomId": room,
                "UserId": "rec",
                "UserSig": "s",
                "CosConfig": COS,
                "Mode": "02",
            }
            await self._decider.decide(codec.make("start", id=new_id(), time_ms=now_ms(), data=data))

    async def missing(self, sent: Sequence[tuple[int, dict[str, Any]]], recorded: Sequence[int]) -> int:
        """How many expected rows the database does not have: a track of a user, a speaker's recording, a decided callback."""
        by_room: dict[int, set[tuple[str, str]]] = {}
        kinds = {201: "video", 203: "audio"}
        for room, body in sent:
            if body["EventType"] in kinds:
                by_room.setdefault(room, set()).add((body["EventInfo"]["UserId"], kinds[body["EventType"]]))
        found = {"presence": 0, "recordings": 0, "inbox": 0}
        for name, query in (
            ("presence", "SELECT sum(CASE WHEN audio THEN 1 ELSE 0 END) + sum(CASE WHEN video THEN 1 ELSE 0 END) FROM presence"),
            ("recordings", "SELECT count(DISTINCT task_id || speaker) FROM recordings"),
            ("inbox", "SELECT count(*) FROM inbox WHERE event_id LIKE 'trtc-%'"),
        ):
            async with self.store.connections.read() as connection:
                found[name] = int((await connection.exec_driver_sql(query)).scalar() or 0)
        expected = {
            "presence": sum(len(tracks) for tracks in by_room.values()),
            "recordings": sum(len({user for user, _ in by_room.get(room, ())}) for room in recorded),
            "inbox": sum(room in recorded for room, _ in sent),
        }
        return sum(abs(expected[name] - found[name]) for name in expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line asks for. `down_s`: how long the receiver is down; 0: for half of a burst."""

    count: int
    seconds: float
    forward: bool
    down_s: float


async def measure(log: bare_endpoint.Log, urls: Sequence[str], given: Given, *, turned: bool) -> list[Figures]:
    """A run on one engine, and another one with forwarding on the second database; `turned`: that one first."""
    count, seconds = given.count, given.seconds
    endpoint = bare_endpoint.BareEndpoint(KEY, log)
    async with serving(endpoint) as port:
        used_s = time.process_time()
        bare = await send(callback_burst.Order(port=port, key=KEY, count=count, users=USERS, seconds=seconds))
        bare_cpu_s = time.process_time() - used_s
    await log.close()
    bare_done = sum(bare.statuses.values())
    rate = count / given.down_s / 2 if given.down_s else bare_done / bare.took_s / 2
    found = []
    for number, url in sorted(enumerate(urls), reverse=turned):
        with contextlib.nullcontext(None) if number == 0 else down_receiver.running(count / rate / 2) as receiver:
            measured = await _burst(Intake(url, receiver.url if receiver else ""), count, rate)
        bare_figures = {"bare_per_s": bare_done / bare.took_s, "bare_cpu_ms": bare_cpu_s / bare_done * 1000}
        found.append(dataclasses.replace(measured, **bare_figures, received=receiver.took if receiver else 0))
    return found[::-1] if turned else found


async def _burst(intake: Intake, count: int, rate: float) -> Figures:
    sent = callback_burst.callbacks(count, USERS)
    recorded = [room for room in sorted({room for room, _ in sent}) if room % RECORDED_EVERY == 1]
    await intake.start(recorded)
    # As in the service: a full collection does not search what lives until the end. Here it would take 100 ms and more, because
    # this process also holds the benchmark, its callbacks and the runs before.
    gc.collect()
    gc.freeze()
    try:
        async with serving(intake.application) as port:
            used_s = time.process_time()
            met = await send(callback_burst.Order(port=port, key=KEY, count=count, users=USERS, rate=rate))
            cpu_s = time.process_time() - used_s
        missing = await intake.missing(sent, recorded)
        await intake.forwarder.idle()
    finally:
        await intake.forwarder.stop()
        await intake.store.stop()
    return Figures(
        bare_per_s=0.0,
        rate=rate,
        sent=len(sent),
        answered=met.statuses.get("200", 0),
        p50_ms=met.p50_ms,
        p99_ms=met.p99_ms,
        longest_ms=met.longest_ms,
        cpu_ms=cpu_s / len(sent) * 1000,
        bare_cpu_ms=0.0,
        missing=missing,
        forwarded=intake.forwarder.forwarded,
        dropped=intake.forwarder.dropped,
        tenths_ms=met.tenths_ms,
    )


async def embedded(folder: Path, given: Given, *, turned: bool) -> list[Figures]:
    """On SQLite."""
    log = bare_endpoint.LogFile(folder / "bare.db")
    urls = [f"sqlite+aiosqlite:///{folder / f'{n}.db'}" for n in range(1 + given.forward)]
    return await measure(log, urls, given, turned=turned)


async def distributed(folder: Path, given: Given, *, turned: bool) -> list[Figures]:
    """On PostgreSQL."""
    server = postgres.Server(durable=True)
    try:
        server.start()
        log = await bare_endpoint.LogServer.open(server.create())
        return await measure(log, [server.create() for _ in range(1 + given.forward)], given, turned=turned)
    finally:
        server.remove()


RUNS: dict[str, Callable[..., Any]] = {"embedded": embedded, "distributed": distributed}


def table(found: dict[str, list[Figures]]) -> str:
    """The figures of all runs."""
    heads = ["engine", "bare/s", "sent/s", "answered", "missing", "p50 ms", "p99 ms", "longest ms", "CPU ms", "bare CPU ms"]
    heads += ["forwarded", "dropped", "received"]
    lines = [
        [
            engine, f"{each.bare_per_s:,.0f}", f"{each.rate:,.0f}", f"{each.answered:,} of {each.sent:,}", f"{each.missing}",
            f"{each.p50_ms:,.1f}", f"{each.p99_ms:,.1f}", f"{each.longest_ms:,.0f}", f"{each.cpu_ms:.2f}",
            f"{each.bare_cpu_ms:.2f}", f"{each.forwarded:,}", f"{each.dropped:,}", f"{each.received:,}",
        ]
        for engine, runs in found.items() for each in runs
    ]  # fmt: skip
    return noise.table(heads, lines)


def tenths(runs: Sequence[Figures]) -> str:
    """The median of all runs for each tenth of a burst."""
    return " ".join(f"{statistics.median(each):.1f}" for each in zip(*(run.tenths_ms for run in runs), strict=True))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, action="append", help="may be repeated; both without it")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--callbacks", type=int, default=FULL)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long the bare endpoint is measured")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    parser.add_argument("--forward", action="store_true", help="a second burst whose callbacks are also forwarded")
    parser.add_argument("--down", type=float, default=0.0, help="seconds for which the receiver is down")
    parser.add_argument("--quick", action="store_true", help="a run of few callbacks, to see that everything works")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    count, seconds = (QUICK, 0.3) if given.quick else (given.callbacks, given.seconds)
    asked = Given(count=count, seconds=seconds, forward=given.forward, down_s=given.down)
    gc.set_threshold(serve.YOUNG_OBJECTS)  # as in the service, for the bare endpoint too
    quiet = noise.Noise()
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as made, Path(made, "log").open("w") as log:
        logs.configure(form="json", stream=log)
        for engine in given.engine or ENGINES:
            found[engine] = []
            for number in range(given.rounds):
                (within := Path(made) / f"{engine}-{number}").mkdir()
                # The second burst of a process is the slower one, so both kinds take turns.
                turned = number % 2 == 1
                found[engine] += asyncio.run(RUNS[engine](within, asked, turned=turned))
    print(table(found))
    if given.forward:
        for engine, runs in found.items():
            plain, forwarded = (statistics.median(each.p99_ms for each in runs[kind::2]) for kind in (0, 1))
            for name, kind in (("without", 0), ("with", 1)):
                print(f"{engine}, {name} forwarding, median p99 of each tenth, ms: {tenths(runs[kind::2])}")
            print(f"{engine}: median p99 {forwarded:.1f} ms with forwarding, {plain:.1f} ms without: {forwarded / plain:.2f}")
    print(quiet)


if __name__ == "__main__":
    main()
