"""Session audit: compares database, COS folder, delivered results and the messages that a subscriber received.

Rule: it uses code of its own and trusts no message. It knows the tables by name, uses SQL that SQLite and PostgreSQL both
understand, and computes its own CRC-64/XZ.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

_POLYNOMIAL = 0xC96C5795D7870F42
Row = Mapping[str, Any]
QUERIES = {
    "sessions": "SELECT task_id, state, revision FROM sessions",
    "recordings": "SELECT id, task_id, state, url, output FROM recordings WHERE NOT awaited",
    "results": "SELECT task_id, revision, body FROM results ORDER BY task_id, revision",
    "live_jobs": "SELECT owner FROM jobs WHERE state <> 'ended'",
}
"""The queries, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The faults found; all lists are empty if nothing was lost or doubled."""

    unfinished: list[str]
    not_done: list[str]
    doubled_results: list[str]
    wrong_objects: list[str]
    undelivered: list[str]

    @property
    def faults(self) -> list[str]:
        """All faults in one list."""
        return [*self.unfinished, *self.not_done, *self.doubled_results, *self.wrong_objects, *self.undelivered]


def read(url: str, queries: Mapping[str, str]) -> dict[str, list[Row]]:
    """The rows of each query, in one snapshot, from `sqlite:///file` or `postgresql://…` (with or without a driver's name)."""
    engine, rest = url.split("://", 1)
    if engine.startswith("sqlite"):
        return _read_sqlite(rest.removeprefix("/"), queries)
    with futures.ThreadPoolExecutor(1) as pool:  # a loop of its own: the caller may run inside another one
        return pool.submit(asyncio.run, _read_postgresql(f"postgresql://{rest}", queries)).result()


def _read_sqlite(file: str, queries: Mapping[str, str]) -> dict[str, list[Row]]:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        return {name: [dict(row) for row in connection.execute(query)] for name, query in queries.items()}


async def _read_postgresql(url: str, queries: Mapping[str, str]) -> dict[str, list[Row]]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return {name: [dict(row) for row in await connection.fetch(query)] for name, query in queries.items()}
    finally:
        await connection.close()


def audit(database: str, cos_folder: Path, received: dict[str, list[tuple[str, bytes]]]) -> Report:
    """Audit every session. `database`: a URL as for `read`. `received`: TaskId → (webhook-id, body) of each POST, in order."""
    found = read(database, QUERIES)
    sessions, recordings, results = found["sessions"], found["recordings"], found["results"]
    bodies: dict[str, set[bytes]] = {}
    for posts in received.values():
        for webhook_id, body in posts:
            bodies.setdefault(webhook_id, set()).add(body)
    unfinished = [f"{s['task_id']} is {s['state']}" for s in sessions if s["state"] != "Finished"]
    unfinished += [f"a job of {j['owner']} is left" for j in found["live_jobs"] if "#" not in j["owner"]]
    doubled = [f"{webhook_id} was posted with {len(seen)} bodies" for webhook_id, seen in bodies.items() if len(seen) > 1]
    numbers: dict[str, list[int]] = {}
    for row in results:
        numbers.setdefault(row["task_id"], []).append(row["revision"])
    doubled += [f"{t}: revisions {n}" for t, n in numbers.items() if n != list(range(1, len(n) + 1))]
    newest = {r["task_id"]: json.loads(r["body"]) for r in results}
    return Report(
        unfinished=unfinished,
        not_done=[f"{r['id']} is {r['state']}" for r in recordings if r["state"] != "Done"],
        doubled_results=doubled,
        wrong_objects=[fault for r in recordings for fault in _object_faults(r, cos_folder)],
        undelivered=[
            f"{t}: its result was not delivered" for t, body in newest.items() if not _delivered(body, received.get(t, []))
        ],
    )


def heard(path: Path) -> list[Row]:
    """The deliveries that a subscriber noted, a line of JSON each: {"Key", "Id", "Body"}."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unheard(results: Sequence[Row], messages: Sequence[Row], deliveries: Sequence[Row]) -> list[str]:
    """The rows of `results`, and the results in the outbox, that the subscriber did not receive or received with another body."""
    came: dict[str, set[str]] = {}
    for each in deliveries:
        came.setdefault(str(json.loads(each["Body"])["id"]), set()).add(each["Body"])
    missing = []
    for row in messages:
        id_ = json.loads(row["body"])["id"]
        if row["body"] not in came.get(id_, ()):
            missing.append(
                f"{row['type']} {id_} was heard with another body" if id_ in came else f"{row['type']} {id_} was not heard"
            )
    finished = [json.loads(each["Body"]) for each in deliveries if each["Key"] == "result.session-finished"]
    for row in results:
        if not any(event["type"] == "session-finished" and event["data"] == json.loads(row["body"]) for event in finished):
            missing.append(f"{row['task_id']}#{row['revision']} was not heard as session-finished")
    return missing


def heard_doubled(messages: Sequence[Row], deliveries: Sequence[Row]) -> list[str]:
    """Deliveries that a subscriber cannot deduplicate: a second id or body for one state of one thing, an AMQP message_id other
    than the event's id, and messages that were never written. The same message under the same id is allowed."""
    written = {json.loads(row["body"])["id"] for row in messages}
    seen: dict[str, set[tuple[str, str]]] = {}
    wrong = []
    for each in deliveries:
        event = json.loads(each["Body"])
        seen.setdefault(about(event), set()).add((event["id"], each["Body"]))
        if event["id"] not in written:
            wrong.append(f"{each['Key']} {event['id']} was heard and never written")
        if each["Id"] != event["id"]:
            wrong.append(f"{each['Key']} {event['id']} was heard under the message_id {each['Id']}")
    return wrong + [f"heard: {name}: {len(each)} times" for name, each in seen.items() if len(each) > 1]


def about(event: Row) -> str:
    """The subject of a result; each subject has exactly one message."""
    number = event["data"].get("Attempt") or event["data"].get("Revision") or event.get("correlationid")
    return f"{event['type']} {event.get('subject')} {number}"


def _object_faults(recording: Row, cos_folder: Path) -> list[str]:
    if recording["state"] != "Done":
        return []
    host, key = recording["url"].removeprefix("https://").split("/", 1)
    path = cos_folder / host.split(".")[0] / key
    if not path.exists():
        return [f"{recording['id']}: {path.name} is not in COS"]
    content, output = path.read_bytes(), json.loads(recording["output"])
    if len(content) != output["SizeBytes"] or str(crc64(content)) != output["Crc64"]:
        return [f"{recording['id']}: the object is not the file that was reported"]
    return []


def _delivered(body: dict[str, Any], posts: list[tuple[str, bytes]]) -> bool:
    return any(json.loads(posted) == body for _, posted in posts)


def crc64(content: bytes) -> int:
    """CRC-64/XZ, byte by byte from a table of its own."""
    value = 0xFFFFFFFFFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFFFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ _POLYNOMIAL if value & 1 else value >> 1
    return value


_TABLE = [_entry(n) for n in range(256)]
