"""Worlds: one run with nodes of the real service on either engine, one room with two speakers, the strikes of a plan, and the
outcome.

Rule: the run behaves like a customer. It repeats a request without a response and never reads a node's internals; the audit
judges the outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from concurrent import futures
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from machine import failpoints
from simulator import server
from simulator.cos import signature
from tests import backends, fork_server, subscriber, waiting
from tests.chaos import audit, cover, judgement, media, nodes, plans

REGION, BUCKET = "ap-shanghai", "recordings-1250000000"
ACCOUNT = signature.Account(secret_id="AKIDexample", secret_key="secret-key-example")
CALLBACK_KEY = "callback-key"
SPEAKERS = ("alice", "bob")
LEASE_S, LINGER_S = 3.0 * waiting.pace(), 2.0 * waiting.pace()
FROZEN_S = LEASE_S + 2.0
LIVE_S, AFTER_S = 3.5, 2.0
# Until COS has some parts of a file on a bounded spool, and their bytes are released.
RELEASED_S = 10.0
TOLD_S = 10.0
# A clock counts as off from a second on, as far as a round trip to the database can tell.
SURELY_OFF_MS = 1_200
AT_LEAST_S = 40.0
STOPPED_LIMIT_S = 10.0
# From a strike to the next pull: a frozen process is away for 5 s, a dead one for its lease, plus 15 s for messages that it had
# claimed.
TAKE_OVER_S = 25.0
# A frozen worker ends its captures when it wakes up; by then another worker has already taken them over.
STRAY_LIMIT_S = FROZEN_S + 5.0
# Generous: the duration is reported, and a machine that is busy with other work is no fault of the service.
END_LIMIT_S, END_LIMIT_PER_STRIKE_S = 120.0, 30.0
SETTINGS = {
    "LEASE": f"{LEASE_S:.1f}s",
    "LINGER": f"{LINGER_S:.1f}s",
    "JOIN_TIMEOUT": "60s",
    "NODE_RETURN": f"{40 * waiting.pace():.1f}s",
    "DRAIN": "3s",
    "CALLBACK_ALLOW": "127.0.0.1",
    "CALLBACK_SECRET": "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0",
    "MIN_FREE": "1MiB",
    "MAX_DURATION": "10m",
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of a run. `struck`: the records of the strikes that happened; `faults`: figure → sentences; `media_lost_s`: the
    media that each capture lost to the kill that took it along; `covers`: the judgement of each speaker's files; `followed`: for
    each transcode of a followed recording, whether its follower made the file; `files`: of each speaker, how many."""

    plan: plans.Plan
    folder: Path
    struck: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    repeated_posts: int = 0
    repeated_deliveries: int = 0
    heard: int = 0
    seconds_to_end: float | None = None
    media_lost_s: list[float] = field(default_factory=list)
    covers: list[cover.Cover] = field(default_factory=list)
    followed: list[bool] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything was lost, doubled or left over."""
        return any(self.faults.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Shared by all runs: the stand-in for Tencent, the fork server, and a process that decodes files."""

    simulator: server.Simulator
    forks: fork_server.ForkServer
    decoder: futures.Executor


class Run:
    """One plan, carried out in a folder of its own against a simulator that other runs use too."""

    def __init__(self, plan: plans.Plan, tools: Tools, folder: Path, number: int) -> None:
        self.plan = plan
        self.simulator = tools.simulator
        self._forks = tools.forks
        self.folder = folder
        self.app = 1_400_000_001 + number
        self.prefix = f"run-{number}"
        self.room = tools.simulator.create_room(self.app, f"room-{number}")
        self.nodes: dict[str, nodes.Node] = {}
        self.backend: backends.Backend
        self.task_id = ""
        self.ended_s = 0.0
        self._subscriber: subscriber.Subscriber | None = None
        self._strays: list[str] = []
        self._decoder = tools.decoder
        self._lives: dict[str, media.Live] = {}

    async def carry_out(self) -> Outcome:
        """Run the plan, from an empty folder to the figures of the audit."""
        outcome = Outcome(plan=self.plan, folder=self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "strikes").mkdir(parents=True)
        self.backend = backends.make(self.plan.engine, self.folder / "node" / "data")
        waker = asyncio.create_task(self._wake_frozen())
        try:
            await self._start_nodes()
            await self._live()
            await self._end_room()
            outcome.faults["unfinished"] = await self._until_over()
            outcome.seconds_to_end = None if outcome.faults["unfinished"] else round(time.monotonic() - self.ended_s, 2)
        except AssertionError as error:
            outcome.faults["unfinished"] = [str(error)]
        finally:
            waker.cancel()
            codes = await asyncio.gather(*(node.stop() for node in self.nodes.values()))
            if self._subscriber is not None:
                await self._subscriber.stop()
        # SIGTERM may reach a node that has just restarted before it installs the handler, or a strike may hit just then.
        killed = {strike["Pid"] for strike in self.struck() if strike["Act"] == plans.KILL}
        ended = [
            (name, code) for (name, node), code in zip(self.nodes.items(), codes, strict=True) if node.pids[-1] not in killed
        ]
        wrong = {name: code for name, code in ended if code not in (0, -signal.SIGTERM)}
        outcome.faults["exit_codes"] = [f"{name} ended with {code}" for name, code in wrong.items()]
        outcome.faults["clocks"] = self._untold_clocks()
        await self._judge(outcome)
        await self._remove()
        return outcome

    # --- the world --------------------------------------------------------------------------------------------------------
    async def _start_nodes(self) -> None:
        simulator = self.simulator
        environment = SETTINGS | self.backend.settings | {"CAPTURE": self.plan.capture, "FOLLOW": str(self.plan.follow)}
        environment["SPOOL_POLICY"] = "bounded" if self.plan.bounded else "keep"
        environment |= {"PULL_ADDRESS": simulator.pull_template, "COS_ENDPOINT": simulator.url}
        environment |= {"TRTC_CALLBACK_KEYS": json.dumps({str(self.app): CALLBACK_KEY})}
        if self.plan.engine == plans.EMBEDDED:
            self.nodes["node"] = nodes.Node(self._forks, self.folder / "node", environment)
        else:
            if self.plan.shared:
                environment |= {"CFS_PATH": str(self.folder / "cfs"), "SPOOL_SHARED": "true"}
            url, prefix = (self.backend.settings[name] for name in ("AMQP_URL", "AMQP_PREFIX"))
            self._subscriber = subscriber.Subscriber(url, prefix, self.folder / "heard.jsonl")
            await self._subscriber.start()
            self.nodes["control"] = nodes.Node(self._forks, self.folder / "control", environment, roles="api,machine")
            for name in plans.NODES[1:]:
                self.nodes[name] = nodes.Node(
                    self._forks, self.folder / name, environment, roles="worker", away_s=self.plan.away_s
                )
        for name, node in self.nodes.items():
            kind = name.rstrip("12")
            strikes = self.plan.strikes if kind == "node" else self._armed(kind)
            node.arm(self.folder / "strikes", strikes, self.plan.skews.get(name, ()))
            await node.start()
        self.api = next(iter(self.nodes.values()))
        self.simulator.configure_app(self.app, callback_url=f"{self.api.url}/trtc/callbacks", callback_key=CALLBACK_KEY)

    def _armed(self, kind: str) -> tuple[plans.Strike, ...]:
        return tuple(
            strike if kind in strike.roles else plans.Strike(point="-", hit=1, act=plans.KILL) for strike in self.plan.strikes
        )

    async def _live(self) -> None:
        started = await self._call("POST", "/sessions", self._request())
        self.task_id = started["TaskId"]
        for number, name in enumerate(SPEAKERS):
            speaker = await self.room.join(name, number=number)
            first = round(speaker.stream.started_s) % 64 * media.RATE
            self._lives[name] = media.Live(began_s=speaker.stream.started_s, first_frame=first)
            self._lives[name].watch(speaker.stream)
        await waiting.until(self._all_pulled, 40, "both speakers to be pulled", every_s=0.1)
        await nodes.pass_time(RELEASED_S if self.plan.bounded else LIVE_S)
        # After a strike while live, the room stays live until the service has recovered. Otherwise the run would show neither the
        # size of the gap nor whether it ends.
        quiet_s = 0.0
        while quiet_s < AFTER_S and time.monotonic() < self._patient_until_s():
            await nodes.pass_time(0.25)
            quiet = not self._awaited() and (not self.struck() or await self._calm())
            quiet_s = quiet_s + 0.25 if quiet else 0.0
        # Checked now and not only at the end: an orphaned capture ends with its stream, after a recording that no node knows.
        with contextlib.suppress(AssertionError):
            await waiting.until(self._no_strays, STRAY_LIMIT_S, every_s=0.5)

    def _awaited(self) -> bool:
        """Whether a strike is to come that comes only while files grow."""
        struck = {strike["Point"] for strike in self.struck()}
        return any(each.point in failpoints.BOUNDED_ONLY and each.point not in struck for each in self.plan.strikes)

    def _patient_until_s(self) -> float:
        begun_s = min(live.began_s for live in self._lives.values())
        struck_s: list[float] = [strike["MonotonicS"] for strike in self.struck()]
        return max([begun_s + AT_LEAST_S, *(each_s + _take_over_s() + AFTER_S for each_s in struck_s)])

    async def _no_strays(self) -> bool:
        living = {node.pids[-1] for node in self.nodes.values()}
        self._strays = await asyncio.to_thread(audit.strays, str(self.folder), living)
        return not self._strays

    async def _calm(self) -> bool:
        ready = await asyncio.gather(*(node.is_ready() for node in self.nodes.values()))
        return all(ready) and self._all_pulled()

    def _all_pulled(self) -> bool:
        return all(speaker.viewers for speaker in self.room.speakers.values())

    def _any_pulled(self) -> bool:
        return any(speaker.viewers for speaker in self.room.speakers.values())

    async def _end_room(self) -> None:
        self.ended_s = time.monotonic()
        if self.plan.ending == plans.STOP:
            await self._call("POST", f"/sessions/{self.task_id}/stop", {})
            # The room goes on, so that the stop ends the captures, and not the end of the streams just after it.
            with contextlib.suppress(AssertionError):
                await waiting.until(lambda: not self._any_pulled(), STOPPED_LIMIT_S, every_s=0.1)
        elif self.plan.ending == plans.LEAVE:
            for speaker in list(self.room.speakers.values()):
                await speaker.leave()
        await self.room.dismiss()

    async def _until_over(self) -> list[str]:
        last = ""
        cleaned = self.plan.bounded or any(strike.point.startswith("cleanup") for strike in self.plan.strikes)

        async def over() -> bool:
            nonlocal last
            last = await asyncio.to_thread(audit.settled, self.backend.database, [self.task_id])
            if not last and cleaned and self._spool_has_files():
                last = "files are left on the spool"
            return not last

        with contextlib.suppress(AssertionError):
            limit_s = END_LIMIT_S + END_LIMIT_PER_STRIKE_S * len(self.plan.strikes)
            await waiting.until(over, limit_s, "everything to be over", every_s=0.4)
        return [last] if last else []

    def _spool_has_files(self) -> bool:
        return any(self.folder.glob(f"**/{self.task_id}/*/*"))

    async def _wake_frozen(self) -> None:
        """Wake each process that the harness froze, after its lease has expired."""
        woken: set[int] = set()
        while True:
            await nodes.pass_time(0.2)
            for number, strike in enumerate(self.struck()):
                frozen = strike["Act"] == plans.FREEZE and number not in woken
                if frozen and time.monotonic() > strike["MonotonicS"] + FROZEN_S:
                    woken.add(number)
                    self.api.wake(strike["Pid"])

    def _untold_clocks(self) -> list[str]:
        """The nodes whose clock is off, and whose log did not tell it within TOLD_S of their start."""
        found = []
        for name, skews in self.plan.skews.items():
            if abs(skews[0][1]) < SURELY_OFF_MS:
                continue
            lines = [json.loads(line) for line in self.nodes[name].log.read_text().splitlines() if line.startswith("{")]
            times = {line["event"]: datetime.fromisoformat(line["time"]).timestamp() for line in reversed(lines)}
            if times.get("node.clock_off", math.inf) - times.get("service.started", 0) > waiting.limit_s(TOLD_S):
                found.append(f"{name} does not tell that its clock is off: {skews}")
        return found

    def struck(self) -> list[dict[str, Any]]:
        """The strikes that have happened, in the order of their numbers."""
        read = [path.read_text(encoding="utf-8") for path in sorted((self.folder / "strikes").glob("struck-*.json"))]
        return [json.loads(text) for text in read if text]

    # --- the customer -------------------------------------------------------------------------------------------------------
    def _request(self) -> dict[str, Any]:
        keys = {"SecretId": ACCOUNT.secret_id, "SecretKey": ACCOUNT.secret_key}
        return {
            "SdkAppId": self.app,
            "StrRoomId": self.room.room,
            "UserId": "recorder",
            "UserSig": "any",
            "Mode": "02",
            "Manifest": True,
            "CosConfig": {"Region": REGION, "Bucket": BUCKET, "Path": self.prefix} | keys,
            "Callback": self.simulator.receiver_url(self.prefix),
        }

    async def _call(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """Send a request, and repeat it while there is no response or only a 5xx."""
        response: Any = None

        async def succeeded() -> bool:
            nonlocal response
            try:
                url = f"{self.api.url}{path}"
                async with (
                    waiting.at_most(15),
                    aiohttp.ClientSession() as http,
                    http.request(method, url, json=body) as http_response,
                ):
                    response = await http_response.json()
                    return http_response.status < 300
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                return False

        await waiting.until(succeeded, 60, f"an answer to {method} {path}, at last {response}", every_s=0.3)
        return response

    # --- the outcome --------------------------------------------------------------------------------------------------------
    async def _judge(self, outcome: Outcome) -> None:
        outcome.struck = self.struck()
        outcome.followed = [made for node in self.nodes.values() for made in media.followed(node.log)]
        posts = [(r.headers["webhook-id"], r.body.decode()) for r in self.simulator.receiver.received[self.prefix]]
        scope = audit.Scope(
            database=self.backend.database,
            bucket=self.simulator.folder / "cos" / BUCKET,
            uploads=self.simulator.folder / "cos-uploads",
            prefix=self.prefix,
            received={self.prefix: posts},
            expected=[(self.task_id, speaker) for speaker in SPEAKERS],
            folder=str(self.folder),
            pids=[pid for node in self.nodes.values() for pid in node.pids],
            heard=self._subscriber.path if self._subscriber else None,
            manifests=True,
            strays=self._strays,
        )
        path = self.folder / "scope.json"
        path.write_text(json.dumps(asdict(scope), default=str))
        found = await _audited(path)
        for figure in ("repeated_posts", "repeated_deliveries", "heard"):
            setattr(outcome, figure, found.pop(figure))
        outcome.faults |= found
        await self._judge_media(outcome, scope.bucket)

    async def _judge_media(self, outcome: Outcome, bucket: Path) -> None:
        results = [received.json() for received in self.simulator.receiver.received[self.prefix]]
        events = cover.Events(
            ended_s=self.ended_s,
            strikes=[strike["MonotonicS"] for strike in outcome.struck],
            take_over_s=_take_over_s(),
            lost_s=cover.LOST_S[self.plan.capture],
        )
        run = judgement.Run(
            objects=bucket / self.prefix / self.task_id,
            entries=results[-1]["Files"] if results else [],
            kills=cover.kills(outcome.struck),
            events=events,
        )
        for speaker, live in self._lives.items():
            work = asyncio.get_running_loop().run_in_executor(self._decoder, judgement.speaker, run, speaker, live.copied())
            found = await work
            outcome.faults.setdefault("media", []).extend(f"{speaker}: {fault}" for fault in found.faults)
            outcome.media_lost_s += found.lost_s
            outcome.covers += [found.cover] if found.cover else []
            outcome.files.append(found.files)

    async def _remove(self) -> None:
        whole = self.folder / "whole.log"
        whole.write_bytes(b"".join(node.log.read_bytes() for node in self.nodes.values() if node.log.exists()))
        with contextlib.suppress(ValueError):
            await self.backend.remove(whole)


def _take_over_s() -> float:
    return TAKE_OVER_S * waiting.patience()


async def _audited(path: Path) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos.audit", str(path),
        cwd=fork_server.ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    found: dict[str, Any] = json.loads(out)
    return found
