"""Throws messages at a running service, by the broker or into its outbox, and finds every one of them again.

Rule: a message is accounted for if it lies parked with a reason, or if there is a witness that it was handled (witnesses.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aio_pika

from bus import topology
from tests import backends, rabbit, waiting
from tests.fuzz import evidence
from tests.fuzz import messages as fuzz

AT_ONCE = 200


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
    headers = message.headers | {evidence.MARK: message.n}
    return aio_pika.Message(message.body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)


async def by_broker(foot: backends.Backend, log: evidence.Log, sent: Sequence[fuzz.Message], timeout_s: float) -> evidence.Found:
    """Find every message again, waiting for those that are still on their way; takes what is parked."""
    found = evidence.Found()
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        queue = await channel.get_queue(topology.Topology(foot.settings["AMQP_PREFIX"]).parked, ensure=False)

        async def all_found() -> bool:
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                number = int(str(message.headers[evidence.MARK]))
                # What no queue takes comes by the alternate exchange, and its reason is its key.
                unbound = message.headers.get("x-queue") is None
                found.parked[number].append("no queue takes its routing key" if unbound else str(message.headers["x-reason"]))
            found.reckon(log, sent)
            return not found.lost(sent)

        # Those that are not found are told by the caller.
        with contextlib.suppress(AssertionError):
            await waiting.until(all_found, timeout_s, every_s=1.0)
    return found


# --- into the outbox ------------------------------------------------------------------------------------------------------
def as_text(message: fuzz.Message) -> fuzz.Message:
    """The message as a column of text can hold it."""
    return replace(message, body=message.body.decode("utf-8", "replace").encode())


def insert(foot: backends.Backend, sent: Sequence[fuzz.Message]) -> dict[int, int]:
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


async def by_outbox(
    foot: backends.Backend, log: evidence.Log, rows: dict[int, int], sent: Sequence[fuzz.Message], timeout_s: float
) -> evidence.Found:
    """Find every row again, once nothing of them waits any more."""

    def none_left() -> bool:
        return _ask(foot, f"SELECT count(*) FROM outbox WHERE sent_ms IS NULL AND seq <= {max(rows)}") == [(0,)]

    await waiting.until(none_left, timeout_s, "the outbox to be handed out", every_s=0.2)
    found = evidence.Found()
    for seq, reason in _ask(foot, "SELECT seq, parked FROM outbox WHERE parked <> ''"):
        if seq in rows:
            found.parked[rows[seq]].append(reason)
    found.reckon(log, sent)
    return found


def _sqlite(foot: backends.Backend) -> sqlite3.Connection:
    return sqlite3.connect(Path(foot.database.removeprefix("sqlite:///")), timeout=30)


def _ask(foot: backends.Backend, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(_sqlite(foot)) as connection:
        return connection.execute(query).fetchall()
