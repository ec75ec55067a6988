"""The audit of one chaos run, a program of its own: `python -m tests.chaos.audit SCOPE.json` prints the figures as JSON.

Rule: its own code reads the database, the COS folder, the callback receiver, a subscriber's file and the process table. It trusts
no message of the recorder. Each lost, doubled or leftover thing is one line of text.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import open_captures
from tests.e2e import session_audit

Row = Mapping[str, Any]
MANIFEST = "manifest.json"
QUERIES = {
    "sessions": "SELECT task_id, state, revision FROM sessions",
    "recordings": "SELECT id, task_id, speaker, state, code, detail, url, output FROM recordings WHERE NOT awaited",
    "results": "SELECT task_id, revision, body FROM results ORDER BY task_id, revision",
    "jobs": "SELECT owner, kind, state FROM jobs WHERE state <> 'ended'",
    "messages": "SELECT seq, channel, type, body, sent_ms, parked FROM outbox",
    "deliveries": "SELECT task_id, revision, state FROM callbacks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The places to audit.

    database: URL for queries past the service
    prefix: the keys of this run's objects begin with it
    received: receiver's name → (webhook-id, body) of each POST
    expected: (TaskId, speaker) of every speaker that was live
    folder: only processes of this run have it in their arguments, environment or working folder
    pids: this run's nodes
    living: processes that may still run
    heard: the file of a bus subscriber, None without a bus
    manifests: every session was asked to write one
    strays: leftover captures that were found while the room was live
    """

    database: str
    bucket: Path
    uploads: Path
    prefix: str
    received: dict[str, list[tuple[str, str]]]
    expected: list[tuple[str, str]]
    folder: str
    pids: list[int]
    living: list[int] = field(default_factory=list)
    heard: Path | None = None
    manifests: bool = False
    strays: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The findings as text. Each is a fault, except three counts: `repeated_posts` and `repeated_deliveries` (the same body under
    the same id is allowed) and `heard` (the number of deliveries)."""

    lost_recordings: list[str]
    lost_results: list[str]
    doubled_results: list[str]
    doubled_objects: list[str]
    leaked_uploads: list[str]
    orphan_processes: list[str]
    repeated_posts: int
    repeated_deliveries: int
    heard: int


def audit(scope: Scope) -> Figures:
    """Compute every figure of a finished run."""
    found = session_audit.read(scope.database, QUERIES)
    posts = [(webhook_id, body) for received in scope.received.values() for webhook_id, body in received]
    written = [row for row in found["messages"] if row["channel"] == "result"]
    heard = session_audit.heard(scope.heard) if scope.heard else []
    unheard = session_audit.unheard(found["results"], written, heard) if scope.heard else []
    return Figures(
        lost_recordings=_lost_recordings(scope, found["recordings"]) + _changed_objects(scope, posts),
        lost_results=_lost_results(scope, found, posts) + unheard,
        doubled_results=[
            *_doubled_results(found, posts),
            *_doubled_sessions(scope, found["sessions"]),
            *session_audit.heard_doubled(written, heard),
        ],
        doubled_objects=_doubled_objects(scope, found["recordings"]),
        leaked_uploads=_leaked(scope),
        orphan_processes=scope.strays + _orphans(scope),
        repeated_posts=len(posts) - len(set(posts)),
        repeated_deliveries=len(heard) - len({each["Body"] for each in heard}),
        heard=len(heard),
    )


def settled(database: str, tasks: Sequence[str]) -> str:
    """The reason why a run is not over yet; "" once no work is left."""
    found = session_audit.read(database, QUERIES)
    states = {row["task_id"]: row["state"] for row in found["sessions"]}
    waiting = [f"{task} is {states.get(task, 'not known')}" for task in tasks if states.get(task) != "Finished"]
    waiting += [f"{row['kind']} of {row['owner']} is {row['state']}" for row in found["jobs"]]
    waiting += [f"{row['type']} is not sent" for row in found["messages"] if row["sent_ms"] is None]
    waiting += [
        f"{row['task_id']}#{row['revision']} is {row['state']}" for row in found["deliveries"] if row["state"] == "pending"
    ]
    return "; ".join(waiting)


def _lost_recordings(scope: Scope, recordings: Sequence[Row]) -> list[str]:
    known = {(row["task_id"], row["speaker"]) for row in recordings}
    lost = [f"{task}/{speaker} has no recording" for task, speaker in scope.expected if (task, speaker) not in known]
    for row in recordings:
        if row["state"] != "Done":
            lost.append(f"{row['id']} is {row['state']}: {row['code']} {row['detail']}")
            continue
        for url, output in _files(row):
            path = scope.bucket / _key(url)
            if not path.is_file():
                lost.append(f"{row['id']}: {path.name} is not in COS")
            elif path.stat().st_size != output["SizeBytes"] or str(session_audit.crc64(path.read_bytes())) != output["Crc64"]:
                lost.append(f"{row['id']}: the object {path.name} is not the file that was reported")
            elif output["DurationMs"] <= 0:
                lost.append(f"{row['id']}: the file {path.name} holds nothing")
    return lost


def _changed_objects(scope: Scope, posts: Sequence[tuple[str, str]]) -> list[str]:
    """Objects that are no longer what some delivered result says they are."""
    changed = []
    for entry in (entry for _, body in posts for entry in json.loads(body)["Files"] if entry["RecordFile"]):
        path = scope.bucket / _key(entry["RecordFile"])
        content = path.read_bytes() if path.is_file() else b""
        if (len(content), str(session_audit.crc64(content))) != (entry["Size"], entry["Crc64"]):
            changed.append(f"{path.name}: the object is not the one that was delivered")
    return changed


def _lost_results(scope: Scope, found: Mapping[str, Sequence[Row]], posts: Sequence[tuple[str, str]]) -> list[str]:
    lost = []
    bodies = [json.loads(body) for _, body in posts]
    newest = {row["task_id"]: json.loads(row["body"]) for row in found["results"]}
    sessions = {row["task_id"]: row for row in found["sessions"]}
    for task in sorted({task for task, _ in scope.expected}):
        session = sessions.get(task)
        if session is None or session["state"] != "Finished" or task not in newest:
            lost.append(f"{task} has no result")
        elif newest[task] not in bodies:
            lost.append(f"{task}: its newest result was not delivered")
        elif scope.manifests and _manifest(scope, task) != newest[task]:
            lost.append(f"{task}: its newest result is not in the manifest")
    announced = [json.loads(row["body"]).get("subject") for row in found["messages"] if row["type"] == "recording-done"]
    lost += [
        f"{row['id']} is Done and no message reports it"
        for row in found["recordings"]
        if row["state"] == "Done" and row["id"] not in announced
    ]
    lost += [f"message {row['seq']} {row['type']} was never sent" for row in found["messages"] if row["sent_ms"] is None]
    return lost + [f"message {row['seq']} {row['type']} is parked: {row['parked']}" for row in found["messages"] if row["parked"]]


def _manifest(scope: Scope, task: str) -> dict[str, Any]:
    """The result in a session's manifest; empty without one."""
    path = scope.bucket / scope.prefix / task / MANIFEST
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found.pop("Recordings", None)
    return found


def _doubled_results(found: Mapping[str, Sequence[Row]], posts: Sequence[tuple[str, str]]) -> list[str]:
    """Two bodies or two ids for one (TaskId, Revision), in posts or messages; and a session with other revisions than 1."""
    seen: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for webhook_id, body in posts:
        result = json.loads(body)
        seen[f"posted {result['TaskId']}#{result['Revision']}"].add((webhook_id, body))
    for row in found["messages"]:
        if row["channel"] == "result":
            event = json.loads(row["body"])
            seen[session_audit.about(event)].add((event["id"], row["body"]))
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for row in found["results"]:
        numbers[row["task_id"]].append(row["revision"])
    doubled = [f"{name}: {len(each)} times" for name, each in seen.items() if len(each) > 1]
    return doubled + [f"{task}: revisions {got}" for task, got in numbers.items() if got != [1]]


def _doubled_sessions(scope: Scope, sessions: Sequence[Row]) -> list[str]:
    """A repeated start that opened another session of the room."""
    returned = {task for task, _ in scope.expected}
    return [
        f"{row['task_id']} is a session whose TaskId no caller received" for row in sessions if row["task_id"] not in returned
    ]


def _doubled_objects(scope: Scope, recordings: Sequence[Row]) -> list[str]:
    """Objects that belong to no recording, and keys that two recordings share."""
    keys = [_key(url) for row in recordings if row["url"] for url, _ in _files(row)]
    there = [path.relative_to(scope.bucket).as_posix() for path in scope.bucket.glob(f"{scope.prefix}/**/*") if path.is_file()]
    doubled = [f"{key} belongs to no recording" for key in there if key not in keys and not key.endswith(MANIFEST)]
    return doubled + [f"{key} belongs to {keys.count(key)} recordings" for key in set(keys) if keys.count(key) > 1]


def _leaked(scope: Scope) -> list[str]:
    opened = [json.loads(path.read_text(encoding="utf-8")) for path in scope.uploads.glob("*/upload.json")]
    return [f"{each['key']}: {len(each['parts'])} parts" for each in opened if each["key"].startswith(f"{scope.prefix}/")]


def strays(folder: str, nodes: set[int]) -> list[str]:
    """Leftover captures while the room is live: of no living node of the run, itself or as the parent, or a second one of the
    same recording. A capture is recognized by the FLV file below `folder` that it writes."""
    processes = {int(entry.name): entry for entry in Path("/proc").glob("[0-9]*")}
    parents, captures = dict[int, int](), list[tuple[int, Path]]()
    for pid, entry in processes.items():
        try:
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            files = open_captures.named(entry) | open_captures.written(entry)
        except OSError:
            continue
        if state != "Z":
            parents[pid] = int(parent)
            captures += [(pid, Path(file)) for file in sorted(files) if file.startswith(f"{folder}/")]
    living = nodes & {*parents}
    found = [f"{pid} captures {file.name} for no node" for pid, file in captures if not {pid, parents[pid]} & living]
    recorded = Counter(file.parts[-3:-1] for _, file in captures)
    return found + [f"{pid} captures {file}, and not alone" for pid, file in captures if recorded[file.parts[-3:-1]] > 1]


def _orphans(scope: Scope) -> list[str]:
    """Nodes of the run that have not ended, and processes whose arguments, environment or working folder name its folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            process = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            process += os.fsencode((entry / "cwd").readlink()) + b"/"
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        known = f"{scope.folder}/".encode() in process or int(entry.name) in scope.pids
        if known and int(entry.name) not in {os.getpid(), *scope.living} and state != "Z":
            found.append(f"{entry.name}: {process[:120].replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def _files(row: Row) -> list[tuple[str, Any]]:
    """The address and the description of each file of a recording that is Done; several on a bounded spool."""
    output = json.loads(row["output"])
    return [*((file["Url"], file["Output"]) for file in output.get("Earlier", ())), (row["url"], output)]


def _key(url: str) -> str:
    return url.removeprefix("https://").split("/", 1)[1] if url else ""


def main() -> None:
    """Read the scope from the file that is named and print the figures."""
    fields = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    fields |= {name: Path(fields[name]) for name in ("bucket", "uploads", "heard") if fields[name]}
    sys.stdout.write(json.dumps(asdict(audit(Scope(**fields)))) + "\n")


if __name__ == "__main__":
    main()
