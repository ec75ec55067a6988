"""Latencies of a user's sessions next to a misbehaving user on the same node, on both engines.

    .venv/bin/python -m bench.neighbors --write
    .venv/bin/python -m bench.neighbors --engine embedded --seconds 2

Rule: the user's sessions are the same in every part: lives of six events, one after the other, published to the bus. A latency is
the time from publish to commit. Each part has a database of its own, so that no part inherits messages of another.

The misbehaving user, from its own many sessions or from one:

- *keyless starts*: starts whose check fails with an error that is retried.
- *slow checks*: starts whose bucket answers after the limit of the checks.
- *flapping stream*: a stream that ends thousands of times.
- *slow receiver*: results whose receiver never answers.
- *poison*: events whose handler fails with an error that is retried.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from ulid import ULID

from bench import arrivals, lives, noise
from events import codec
from handlers import dispatch, unit_of_work
from machine import changes, errors, model
from tests import postgres, rabbit, work_doubles
from worker import worker

STARTS, EXITS, DELIVERIES, POISON = 64, 2_000, 500, 200
CHECK_S = 2.0
LIMIT_MS = 1_000
ROLES = ("api", "machine", "worker")
URL = "https://slow.example/results"


class Shared(lives.OverBus):
    """A node that two users share. Its worker only delivers results, to a receiver that never answers."""

    _bus: Any
    share = 1.0
    """The part of the misbehaving user's work that is done."""

    def some(self, count: int) -> int:
        """As much of this work as is done."""
        return max(1, round(count * self.share))

    def begin(self) -> None:
        """Make the node's decider and worker."""
        context = unit_of_work.Context(policy=lives.POLICY, new_id=lambda: str(ULID()))
        self.decider = dispatch.Decider(self.store, context, self._inspect)
        work = work_doubles.RecordedWork()
        work.deliver = self._never_answers  # type: ignore[method-assign]
        self.worker = worker.Worker(self.store, work, node="n1", policy=lives.POLICY, clock=lives.now_ms)

    async def stop(self) -> None:
        """Stop the bus before the worker, which would take more commands from it, and both before the database."""
        await self._bus.stop()
        await self.worker.stop()
        await super().stop()

    async def on_event(self, event: codec.Event) -> None:
        """Decide an event of either user."""
        if event.id.startswith("poison"):
            raise errors.Unavailable("poison")
        if event.id in self._committing:
            await super().on_event(event)
        else:
            await self.decider.decide_from_bus(event)

    async def deliver(self, command: codec.Event) -> None:
        """Take the command of a delivery; nobody takes the others."""
        if command.type == "send-callback":
            await self.worker.send_callback(command)

    async def publish_many(self, events: list[codec.Event]) -> None:
        """Publish events of the misbehaving user in one transaction, as many publishers would at once."""
        written = changes.Changes()
        for event in events:
            written.send("event", event, str(event.data.get("TaskId", "")))
        await self.store.decisions.write(written)

    @staticmethod
    async def _inspect(data: codec.Data) -> tuple[str, ...]:
        if data["UserId"] == "keyless":
            raise errors.Unavailable("the role's service fails")
        if data["UserId"] == "slow":
            await asyncio.sleep(CHECK_S)
        return ()

    @staticmethod
    async def _never_answers(_: model.Delivery) -> None:
        await asyncio.Event().wait()


class OnLocal(Shared, lives.OverLocal):
    """Over the bus in the process."""

    async def _on_command(self, command: codec.Event) -> None:
        await self.deliver(command)


class OnRabbit(Shared, lives.OverRabbit):
    """Over RabbitMQ."""

    async def _on_command(self, command: codec.Event) -> None:
        await self.deliver(command)


def _event(type_: str, data: dict[str, Any], id_: str = "") -> codec.Event:
    return codec.make(type_, id=id_ or str(ULID()), time_ms=lives.now_ms(), data=data)


async def alone(_: Shared) -> None:
    """No neighbor."""


async def keyless_starts(node: Shared) -> None:
    """Starts that are retried."""
    await node.publish_many(
        [_event("start", lives.request(n) | {"UserId": "keyless"}) for n in range(10**6, 10**6 + node.some(STARTS))]
    )


async def slow_checks(node: Shared) -> None:
    """Starts whose check takes its whole limit."""
    await node.publish_many(
        [_event("start", lives.request(n) | {"UserId": "slow"}) for n in range(10**6, 10**6 + node.some(STARTS))]
    )


async def flapping_stream(node: Shared) -> None:
    """The ends of thousands of runs, most of them stale."""
    request = lives.request(10**6) | {"UserId": "flapping", "SubscribeUserIds": [lives.SPEAKER]}
    task_id = (await node.decider.decide(_event("start", request)))["TaskId"]
    ended = lives.of(task_id) | {"Job": "capture", "Reason": "eof", "MediaMs": 10, "SizeBytes": 1}
    await node.publish_many([_event("ffmpeg-exit", ended | {"Epoch": 1 + n // 10}) for n in range(node.some(EXITS))])


async def slow_receiver(node: Shared) -> None:
    """Results of many sessions that nobody accepts."""
    for n in range(10**6, 10**6 + node.some(DELIVERIES)):
        task_id = (await node.decider.decide(_event("start", lives.request(n) | {"Callback": URL})))["TaskId"]
        await node.publish_many([_event("stop", {"TaskId": task_id})])


async def poison(node: Shared) -> None:
    """Events that fail."""
    gone = {"TaskId": str(ULID())}
    await node.publish_many([_event("stop", gone, f"poison-{n}") for n in range(node.some(POISON))])


NEIGHBORS: dict[str, Callable[[Shared], Awaitable[None]]] = {
    "alone": alone,
    "keyless starts": keyless_starts,
    "slow checks": slow_checks,
    "flapping stream": flapping_stream,
    "slow receiver": slow_receiver,
    "poison": poison,
}


@contextlib.asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[Callable[[], Shared]]:
    """Nodes on SQLite, each with a file of its own."""
    numbers = itertools.count()
    yield lambda: OnLocal(f"sqlite+aiosqlite:///{folder / str(next(numbers))}.db", lives.six_steps, lanes=2)


@contextlib.asynccontextmanager
async def distributed(_: Path) -> AsyncIterator[Callable[[], Shared]]:
    """Nodes on PostgreSQL and RabbitMQ, on servers of the benchmark's own, which sync to disk."""
    numbers = itertools.count()
    server, broker = postgres.Server(durable=True), rabbit.Broker()
    try:
        server.start()
        broker.start()
        yield lambda: OnRabbit(server.create(), broker.url, lives.six_steps, lanes=2, roles=ROLES, prefix=f"n{next(numbers)}")
    finally:
        broker.remove()
        server.remove()


ENGINES = {"embedded": embedded, "distributed": distributed}


async def measure(engine: str, folder: Path, seconds: float, share: float) -> dict[str, dict[str, float]]:
    """Run the user next to each neighbor; returns the figures of each: events, p50 and p99 in ms."""
    figures: dict[str, dict[str, float]] = {}
    async with ENGINES[engine](folder) as make:
        for name, misbehave in NEIGHBORS.items():
            node = make()
            node.share = share
            node.begin()
            await node.start()
            await node.worker.start()
            await node.recording()
            node.commits_s.clear()
            neighbor = asyncio.create_task(misbehave(node))
            await node.run(seconds)
            await neighbor
            await node.stop()
            times = {f"p{percent}_ms": round(arrivals.percentile(node.commits_s, percent) * 1000, 1) for percent in (50, 99)}
            figures[name] = {"events": len(node.commits_s)} | times
    return figures


def table(about: str, figures: dict[str, dict[str, float]]) -> str:
    """The figures as text."""
    lines = []
    for name, each in figures.items():
        added = each["p99_ms"] - figures["alone"]["p99_ms"]
        most = f"{added:+.0f}" + ("" if added <= LIMIT_MS else " !")
        lines.append([name, f"{each['events']}", f"{each['p50_ms']:.1f}", f"{each['p99_ms']:.1f}", most])
    return noise.table([about, "events", "p50 ms", "p99 ms", f"added ms (≤ {LIMIT_MS:,})"], lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), action="append", help="may be repeated; both without it")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each part")
    parser.add_argument("--share", type=float, default=1.0, help="how much of the misbehaving user's work")
    parser.add_argument("--folder", type=Path, default=Path("var"), help="on the disk that is measured; SQLite's alone")
    parser.add_argument("--write", action="store_true", help="write results/neighbors.json")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    given.folder.mkdir(parents=True, exist_ok=True)
    quiet, results = noise.Noise(), {}
    for engine in given.engine or list(ENGINES):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder.absolute()) as made:
            results[engine] = asyncio.run(measure(engine, Path(made), given.seconds, given.share))
        print(table(f"{engine}, {given.seconds:g} s each", results[engine]))
    print(quiet)
    if given.write:
        noise.write("neighbors", quiet, {"seconds": given.seconds} | results)


if __name__ == "__main__":
    main()
