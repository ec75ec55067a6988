"""Throws messages at a running service, by the broker or into its outbox, and finds every one of them again.

Rule: a message is accounted for if it lies parked with a reason, or if the database shows that it was handled: its id is in the
inbox, its refusal among the results, or it was a command in good order, which a worker without that lease has nothing to do with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg

from bus import topology
from events import codec, errors
from tests import footing, rabbit, waiting
from tests.fuzz import messages as fuzz

AT_ONCE = 200
MARK = "zz-fuzz"


@dataclass(slots=True)
class Found:
    """What became of each message, by its number: why it was parked, or how it was handled."""

    parked: dict[int, str] = field(default_factory=dict)
    handled: dict[int, str] = field(default_factory=dict)

    def lost(self, sent: Sequence[fuzz.Message]) -> list[fuzz.Message]:
        """Those that are neither."""
        return [message for message in sent if message.n not in self.parked and message.n not in self.handled]

    def ends(self) -> Counter[str]:
        """How many ended in which way."""
        return Counter(
            [f"parked: {_kind(why)}" for why in self.parked.values()] + [f"handled: {how}" for how in self.handled.values()]
        )


def _kind(reason: str) -> str:
    """The kind of a reason, without what is its own case."""
    if reason.startswith("no queue"):
        return reason
    return "refused" if reason.startswith("refused") else "invalid"


# --- by the broker --------------------------------------------------------------------------------------------------------
async def publish(prefix: str, sent: Sequence[fuzz.Message]) -> None:
    """Publish them all, each confirmed; every one carries its number in a header."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(prefix, ensure=False)
        for start in range(0, len(sent), AT_ONCE):
            batch = sent[start : start + AT_ONCE]
            await asyncio.gather(*(exchange.publish(_amqp(m), m.key, mandatory=False) for m in batch))


def _amqp(message: fuzz.Message) -> aio_pika.Message:
    properties = {name: value for name, value in message.properties.items() if value is not None}
    headers = message.headers | {MARK: message.n}
    return aio_pika.Message(message.body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)


async def by_broker(foot: footing.Footing, sent: Sequence[fuzz.Message], timeout_s: float) -> Found:
    """Find every message again, waiting for those that are still on their way; takes what is parked."""
    found = Found()
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        queue = await channel.get_queue(topology.Topology(foot.settings["AMQP_PREFIX"]).parked, ensure=False)

        async def all_found() -> bool:
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                number = int(str(message.headers[MARK]))
                # What no queue takes comes by the alternate exchange, and its reason is its key.
                unbound = message.headers.get("x-queue") is None
                found.parked[number] = "no queue takes its routing key" if unbound else str(message.headers["x-reason"])
            await _handled(foot, found, sent)
            return not found.lost(sent)

        # Those that are not found are told by the caller.
        with contextlib.suppress(AssertionError):
            await waiting.until(all_found, timeout_s, every_s=1.0)
    return found


# --- into the outbox ------------------------------------------------------------------------------------------------------
def as_text(message: fuzz.Message) -> fuzz.Message:
    """The message as a column of text can hold it."""
    return replace(message, body=message.body.decode("utf-8", "replace").encode())


def insert(foot: footing.Footing, sent: Sequence[fuzz.Message]) -> dict[int, int]:
    """Write them into the outbox of a service that runs, past its codec, as damage would; number by row."""
    rows: dict[int, int] = {}
    names = "channel, type, task_id, node, body, created_ms, claimed_until_ms, sent_ms, parked"
    with contextlib.closing(_sqlite(foot)) as connection, connection:
        for message in sent:
            type_ = message.key.partition(".")[2][:64]
            values = (message.channel, type_, "", "", message.body.decode(), 1, 0, None, "")
            row = connection.execute(f"INSERT INTO outbox ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            rows[int(row.lastrowid or 0)] = message.n
    return rows


async def handed_out(foot: footing.Footing, rows: dict[int, int], timeout_s: float) -> None:
    """Wait until nothing of them waits any more."""

    async def none_left() -> bool:
        last = f"SELECT count(*) FROM outbox WHERE sent_ms IS NULL AND seq <= {max(rows)}"
        return await _ask(foot, last) == [(0,)]

    await waiting.until(none_left, timeout_s, "the outbox to be handed out", every_s=0.2)


async def by_outbox(foot: footing.Footing, rows: dict[int, int], sent: Sequence[fuzz.Message]) -> Found:
    """Find every row again."""
    found = Found()
    for seq, reason in await _ask(foot, "SELECT seq, parked FROM outbox WHERE parked <> ''"):
        if seq in rows:
            found.parked[rows[seq]] = reason
    await _handled(foot, found, sent)
    return found


# --- both -----------------------------------------------------------------------------------------------------------------
async def _handled(foot: footing.Footing, found: Found, sent: Sequence[fuzz.Message]) -> None:
    decided = {str(id_) for (id_,) in await _ask(foot, "SELECT event_id FROM inbox")}
    bodies = await _ask(foot, "SELECT body FROM outbox WHERE channel = 'result' AND type = 'session-refused'")
    refused = {json.loads(body)["correlationid"] for (body,) in bodies}
    # What looked handled at an earlier look may have been on its way to be parked.
    found.handled.clear()
    for message in sent:
        if message.n in found.parked:
            continue
        id_ = message.id()
        if message.channel == "event" and id_ in decided:
            found.handled[message.n] = "an event, decided"
        elif message.channel == "event" and id_ in refused:
            found.handled[message.n] = "an event, answered with session-refused"
        elif message.channel == "command" and _is_command(message):
            found.handled[message.n] = "a command without a job"


def _is_command(message: fuzz.Message) -> bool:
    with contextlib.suppress(errors.InvalidEvent):
        return codec.decode(message.body, now_ms=1).type in codec.types("command")
    return False


def _sqlite(foot: footing.Footing) -> sqlite3.Connection:
    return sqlite3.connect(Path(foot.database.removeprefix("sqlite:///")), timeout=30)


async def _ask(foot: footing.Footing, query: str) -> list[tuple[Any, ...]]:
    if foot.engine == footing.EMBEDDED:
        with contextlib.closing(_sqlite(foot)) as connection:
            return connection.execute(query).fetchall()
    connection = await asyncpg.connect(foot.database.replace("+asyncpg", ""))
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()
