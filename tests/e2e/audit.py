"""The audit: what became of every session, read from database, COS folder and callback receiver with code of its own.

Imports nothing of the recorder. Rule: it knows the tables by name, computes its own CRC-64/XZ, and believes no message.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLYNOMIAL = 0xC96C5795D7870F42


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Faults found; all empty when nothing was lost or doubled."""

    unfinished: list[str]
    not_done: list[str]
    doubled_results: list[str]
    wrong_objects: list[str]
    undelivered: list[str]

    @property
    def faults(self) -> list[str]:
        """All of them."""
        return [*self.unfinished, *self.not_done, *self.doubled_results, *self.wrong_objects, *self.undelivered]


def audit(database: Path, cos_folder: Path, received: dict[str, list[tuple[str, bytes]]]) -> Report:
    """`received`: TaskId → (webhook-id, body) of each POST, in order."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        sessions = connection.execute("SELECT task_id, state, revision FROM sessions").fetchall()
        recordings = connection.execute("SELECT id, task_id, state, url, output FROM recordings WHERE NOT awaited").fetchall()
        results = connection.execute("SELECT task_id, revision, body FROM results ORDER BY task_id, revision").fetchall()
        live_jobs = connection.execute("SELECT owner FROM jobs WHERE state <> 'ended'").fetchall()
    connection.close()
    bodies: dict[str, set[bytes]] = {}
    for posts in received.values():
        for webhook_id, body in posts:
            bodies.setdefault(webhook_id, set()).add(body)
    unfinished = [f"{s['task_id']} is {s['state']}" for s in sessions if s["state"] != "Finished"]
    unfinished += [f"a job of {j['owner']} is left" for j in live_jobs if "#" not in j["owner"]]
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


def _object_faults(recording: sqlite3.Row, cos_folder: Path) -> list[str]:
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
    """CRC-64/XZ, bit by bit from a table of our own."""
    value = 0xFFFFFFFFFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFFFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ _POLYNOMIAL if value & 1 else value >> 1
    return value


_TABLE = [_entry(n) for n in range(256)]
