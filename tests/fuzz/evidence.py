"""What a service left behind of each message that it handled: a line in its log, and for an event what it wrote with it.

Imports `bus.topology`. Rule: nothing is handled because it is not parked. Witnesses are counted: of messages that are told by
one name (publishers use ids again) as many must have been handled as are not parked, no fewer and no more.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika

from bus import topology
from tests import rabbit, waiting
from tests.fuzz import messages as fuzz

MARK = "zz-fuzz"
"""The header that carries a message's number."""

# Type and id of an event; type, owner and epoch of a command.
Name = tuple[str, ...]
ENDS = {
    "event.decided": "an event, decided",
    "event.refused": "an event, answered with session-refused",
    "event.answered_again": "an event, answered as the first time",
    "job.not_taken": "a command whose lease was refused",
    "capture.stop_ignored": "a command to stop what does not run",
}
COMMANDS = {"capture": "start-capture", "transcode": "start-transcode", "upload": "start-upload", "callback": "send-callback"}
ASKED = ("start", "stop", "replay")
QUERIES = {
    "inbox": "SELECT event_id FROM inbox",
    "answers": "SELECT body FROM outbox WHERE channel = 'result' AND type IN ('session-accepted', 'session-refused')",
    "journal": "SELECT DISTINCT event_id FROM journal",
}
"""What an event leaves in the database."""


def name_of(message: fuzz.Message) -> Name:
    """What the log calls a message; () for one that cannot be handled."""
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(body, dict):
        return ()
    if message.channel == "event":
        type_ = body.get("type") if "specversion" in body else message.key.partition(".")[2]
        return (str(type_), message.id())
    data = body.get("data")
    if not isinstance(data, dict):
        return ()
    owner = f"{data.get('TaskId')}/{data.get('Speaker')}/{data.get('N')}"
    if "Speaker" not in data:
        owner = f"{data.get('TaskId')}#{data.get('Revision')}"
    return (str(body.get("type")), owner, str(data.get("Epoch")))


@dataclass(slots=True)
class Log:
    """A service's log, read on as it grows: how often it says of whom that he was handled, and how; and the nodes' names."""

    path: Path
    said: defaultdict[Name, list[str]] = field(default_factory=lambda: defaultdict(list))
    nodes: set[str] = field(default_factory=set)
    _offset: int = 0

    def read(self) -> None:
        """Read what was added."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._hear(json.loads(line))

    def _hear(self, line: Mapping[str, Any]) -> None:
        match line["event"]:
            case "service.started":
                self.nodes.add(line["node"])
            case "event.decided" | "event.refused" | "event.answered_again" as end:
                self.said[line["event_type"], line["event_id"]].append(ENDS[end])
            case "job.not_taken" as end:
                self.said[COMMANDS[line["kind"]], line["owner"], str(line["epoch"])].append(ENDS[end])
            case "capture.stop_ignored" as end:
                self.said["stop-capture", line["owner"], str(line["epoch"])].append(ENDS[end])


@dataclass(slots=True)
class Found:
    """What became of each message, by its number: why it was parked (each time), or how it was handled. `over`: what was handled
    more often than it is there, or was handled and lies parked as well."""

    parked: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    handled: dict[int, str] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)

    def reckon(self, log: Log, sent: Sequence[fuzz.Message]) -> None:
        """Compare what is parked and what the log says with what was sent."""
        log.read()
        self.handled.clear()
        self.over = [f"{number} is parked {len(why)} times: {why}" for number, why in self.parked.items() if len(why) > 1]
        named: defaultdict[Name, list[int]] = defaultdict(list)
        for message in sent:
            named[name_of(message)] += [message.n] if message.n not in self.parked else []
        for name, numbers in named.items():
            ends = log.said.get(name, [])
            self.handled |= dict(zip(numbers, ends, strict=False))
            if len(ends) > len(numbers):
                self.over.append(f"{name} was handled {len(ends)} times, and {len(numbers)} of that name are not parked")

    def lost(self, sent: Sequence[fuzz.Message]) -> list[fuzz.Message]:
        """Those that are neither."""
        return [message for message in sent if message.n not in self.parked and message.n not in self.handled]

    def ends(self) -> Counter[str]:
        """How many ended in which way."""
        parked = [f"parked: {_kind(why)}" for each in self.parked.values() for why in each]
        return Counter([*parked, *(f"handled: {how}" for how in self.handled.values())])

    def unwritten(self, rows: Mapping[str, Sequence[Mapping[str, Any]]], sent: Sequence[fuzz.Message]) -> list[str]:
        """The events that the log calls handled and the database does not know: not in the inbox, or asked for and not answered.
        `rows` is what `QUERIES` gave."""
        inbox, journal = ({row["event_id"] for row in rows[table]} for table in ("inbox", "journal"))
        answers = Counter(json.loads(row["body"])["correlationid"] for row in rows["answers"])
        types: defaultdict[str, list[str]] = defaultdict(list)
        for message in sent:
            if message.n in self.handled and message.channel == "event":
                type_, id_ = name_of(message)
                types[id_].append(type_)
        wrong = [f"{id_!r} is not in the inbox" for id_, kinds in types.items() if not _claims(id_, kinds) <= inbox]
        for id_, asked in types.items():
            # Under an id that was taken for something else before, nothing is answered: it is a repeat.
            if set(asked) == {"start"} and answers[id_] != len(asked):
                wrong.append(f"{id_!r}: {len(asked)} starts, {answers[id_]} answers")
            elif set(asked) <= {"stop", "replay"} and not answers[id_] and id_ not in journal:
                wrong.append(f"{id_!r}: {asked} were not answered and changed nothing")
        return wrong


def _claims(id_: str, types: Collection[str]) -> set[str]:
    """Under what the inbox keeps an id: what users ask for is kept apart."""
    asked = id_ and (f"bus-{id_}" if len(id_) <= 252 else f"bus-{hashlib.sha256(id_.encode()).hexdigest()}")
    return {asked if type_ in ASKED else id_ for type_ in types}


def _kind(reason: str) -> str:
    """The kind of a reason, without what is its own case."""
    if reason.startswith("no queue"):
        return reason
    return "refused" if reason.startswith("refused") else "invalid"


async def left(prefix: str, nodes: set[str]) -> list[str]:
    """What of ours still lies in the queues of a service that has ended: waiting, or taken and never acknowledged (which waits
    again once the consumer is gone)."""
    names = topology.Topology(prefix)
    queues = [queue.name for queue in (*names.queues(), *map(names.node, nodes))]
    found = []
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        for name in queues:

            async def unheld(name: str = name) -> bool:
                told = await channel.declare_queue(name, passive=True)
                return not told.declaration_result.consumer_count

            await waiting.until(unheld, what=f"nobody to consume {name}", every_s=0.1)
            queue = await channel.get_queue(name, ensure=False)
            while (message := await queue.get(fail=False)) is not None:
                if MARK in message.headers:
                    found.append(f"message {message.headers[MARK]} is left in {name}")
    return found
