"""Dead letters of RabbitMQ's queue and of the outbox, as the operator's commands and the API need them.

Rule: secrets are redacted in everything that this module returns, reasons included.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator
from typing import Any

import store.audit
import store.connections
import store.dead_letters
from assembly import database, encryption_keys
from assembly.identity import clock, operator
from bus import redaction
from config import settings as settings_module
from machine import errors, model

# Prefix of the ids of outbox rows; the queue's ids are hexadecimal.
ROW = "row-"
Json = dict[str, Any]


@contextlib.asynccontextmanager
async def opened(settings: settings_module.Settings) -> AsyncIterator[DeadLetters]:
    """The dead letters of these settings. Raises Unavailable."""
    async with database.opened(settings) as connections:
        yield DeadLetters(settings, connections)


class DeadLetters:
    """The dead letters of one recorder: those of its outbox, and with AMQP_URL those of the broker's queue. Returned objects are
    printed as they are with --json."""

    def __init__(self, settings: settings_module.Settings, connections: store.connections.Connections) -> None:
        self._connections = connections
        self._rows = store.dead_letters.DeadLetterRows(connections)
        self._queue: Any = None
        url = settings.amqp_url.get_secret_value()
        if url:
            from bus import dead_letters  # the embedded engine loads no AMQP

            self._queue = dead_letters.DeadLetterQueue(
                url, keyring=encryption_keys.keyring(settings), prefix=settings.amqp_prefix
            )

    async def list(self, limit: int) -> Json:
        """The oldest `limit` of each place, and the number of all. Every method raises Unavailable."""
        rows, count = await self._rows.list(limit)
        found = [_of_row(row) for row in rows]
        if self._queue is not None:
            messages, more = await self._queue.list(limit)
            found += [_of_message(message) for message in messages]
            count += more
        return {"Messages": found, "Count": count}

    async def show(self, id_: str) -> Json:
        """One dead letter with its headers and body. Raises NotFound."""
        if id_.startswith(ROW):
            row = await self._rows.show(_seq(id_))
            return _of_row(row) | {"Headers": {}, "Body": redaction.body(row.body.encode())}
        shown = await self._messages().show(id_)
        return _of_message(shown.dead_letter) | {"Headers": dict(shown.headers), "Body": shown.body}

    async def requeue(self, id_: str, by: model.Caller | None = None) -> Json:
        """Publish it again; `by` is the caller for the audit, by default who typed the command. Raises NotFound, Refused."""
        by = by or operator()
        if id_.startswith(ROW):
            return _of_row(await self._rows.requeue(_seq(id_), by, clock()))
        return await self._audited(by, "parked-requeue", await self._messages().requeue(id_))

    async def drop(self, id_: str, by: model.Caller | None = None) -> Json:
        """Delete it; `by` as for `requeue`. Raises NotFound."""
        by = by or operator()
        if id_.startswith(ROW):
            return _of_row(await self._rows.drop(_seq(id_), by, clock()))
        return await self._audited(by, "parked-drop", await self._messages().drop(id_))

    async def _audited(self, by: model.Caller, action: str, message: Any) -> Json:
        """Add an entry to the audit, after the fact: broker and database share no transaction."""
        done = _of_message(message)
        await store.audit.Audit(self._connections, clock=clock).add(by, action, f"{done['Id']} {done['Key']}")
        return done

    def _messages(self) -> Any:
        if self._queue is None:
            raise errors.NotFound("There is no such parked message; `recorder parked list` shows them.")
        return self._queue


def _seq(id_: str) -> int:
    number = id_.removeprefix(ROW)
    if not (number.isdecimal() and len(number) <= 18):
        raise errors.NotFound("There is no such parked message; `recorder parked list` shows them.")
    return int(number)


def _of_row(row: store.dead_letters.DeadLetterRow) -> Json:
    place = {"Id": f"{ROW}{row.seq}", "In": "outbox", "Key": f"{row.channel}.{row.type}", "MessageId": ""}
    return place | _description(row.parked_ms, len(row.body.encode()), row.reason)


def _of_message(message: Any) -> Json:
    place = {"Id": message.id, "In": "queue", "Key": message.key, "MessageId": message.message_id}
    return place | _description(message.parked_ms, message.size_bytes, message.reason)


def _description(parked_ms: int, size_bytes: int, reason: str) -> Json:
    since = datetime.datetime.fromtimestamp(parked_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")
    return {"Time": since if parked_ms else "", "Size": size_bytes, "Reason": redaction.masked(reason)}
