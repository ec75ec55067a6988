"""Fuzz sender: sends messages to a running service, by the broker or into its outbox, and accounts for each of them.

Rule: a message is accounted for if it is parked with a reason, or if there is evidence that it was handled (evidence.py).
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
    """Publish all messages, each with a confirmation and its number in a header."""
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(prefix, ensure=False)
        for start in range(0, len(sent), AT_ONCE):
            batch = sent[start : start + AT_ONCE]
            await asyncio.gather(*(exchange.publish(_amqp(m), m.key, mandatory=False) for m in batch))


def with_id(message: fuzz.Message) -> fuzz.Message:
    """The message with an id of its own: the driver makes up one otherwise, and a wrong request is answered under it."""
    if message.properties.get("message_id"):
        return message
    return replace(message, properties=message.properties | {"message_id": f"own-{message.n}"})


def _amqp(message: fuzz.Message) -> aio_pika.Message:
    properties = {name: value for name, value in message.properties.items() if value is not None}
    headers = message.headers | {evidence.MARK: message.n}
    return aio_pika.Message(message.body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)


async def collect_from_broker(
    backend: backends.Backend, log: evidence.Log, sent: Sequence[fuzz.Message], timeout_s: float
) -> evidence.Evidence:
    """Wait until every message is accounted for; consumes the parked ones."""
    found = evidence.Evidence()
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        queue = await channel.get_queue(topology.Topology(backend.settings["AMQP_PREFIX"]).parked, ensure=False)

        async def all_found() -> bool:
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                number = int(str(message.headers[evidence.MARK]))
                # A message that no queue takes arrives by the alternate exchange without a reason.
                unbound = message.headers.get("x-queue") is None
                found.parked[number].append("no queue takes its routing key" if unbound else str(message.headers["x-reason"]))
            found.update(log, sent)
            return not found.lost(sent)

        # The caller reports the messages that are missing.
        with contextlib.suppress(AssertionError):
            await waiting.until(all_found, timeout_s, every_s=1.0)
    return found


# --- into the outbox ------------------------------------------------------------------------------------------------------
def as_text(message: fuzz.Message) -> fuzz.Message:
    """The message as a text column can hold it."""
    return replace(message, body=message.body.decode("utf-8", "replace").encode())


def insert(backend: backends.Backend, sent: Sequence[fuzz.Message]) -> dict[int, int]:
    """Write the messages into the outbox of a running service, past its codec, as damage would. Returns row → number."""
    rows: dict[int, int] = {}
    names = "channel, type, task_id, node, body, created_ms, claimed_until_ms, sent_ms, parked"
    with contextlib.closing(_sqlite(backend)) as connection, connection:
        for message in sent:
            type_ = message.key.partition(".")[2][:64]
            values = (message.channel, type_, "", "", message.body.decode(), 1, 0, None, "")
            row = connection.execute(f"INSERT INTO outbox ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            rows[int(row.lastrowid or 0)] = message.n
    return rows


async def collect_from_outbox(
    backend: backends.Backend, log: evidence.Log, rows: dict[int, int], sent: Sequence[fuzz.Message], timeout_s: float
) -> evidence.Evidence:
    """Account for every row, once the relay has handed all of them out."""

    def none_left() -> bool:
        return _query(backend, f"SELECT count(*) FROM outbox WHERE sent_ms IS NULL AND seq <= {max(rows)}") == [(0,)]

    await waiting.until(none_left, timeout_s, "the outbox to be handed out", every_s=0.2)
    found = evidence.Evidence()
    for seq, reason in _query(backend, "SELECT seq, parked FROM outbox WHERE parked <> ''"):
        if seq in rows:
            found.parked[rows[seq]].append(reason)
    found.update(log, sent)
    return found


def _sqlite(backend: backends.Backend) -> sqlite3.Connection:
    return sqlite3.connect(Path(backend.database.removeprefix("sqlite:///")), timeout=30)


def _query(backend: backends.Backend, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(_sqlite(backend)) as connection:
        return connection.execute(query).fetchall()
