"""Evidence that a service handled each message: a line in its log, and for an event its rows in the database.

Rule: a message that is not parked is not proven to be handled. Evidence is counted per name, because publishers reuse ids: of the
messages with one name, exactly as many must have been handled as are not parked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika

from bus import topology
from events import codec
from tests import rabbit, waiting
from tests.fuzz import messages as fuzz

MARK = "zz-fuzz"
"""The header with a message's number."""

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
USER_REQUESTS = ("start", "stop", "replay", "resend")
QUERIES = {
    "inbox": "SELECT event_id FROM inbox",
    "answers": "SELECT body FROM outbox WHERE channel = 'result' AND type IN ('session-accepted', 'session-refused')",
    "journal": "SELECT DISTINCT event_id FROM journal",
}
"""The rows that an event leaves in the database."""


def name_of(message: fuzz.Message) -> Name:
    """The name that the log uses for a message; () for a message that cannot be handled.

    An invalid request is answered: its type comes from the routing key, and its id, if the body has none, from the message."""
    type_ = message.key.split(".")[1] if message.key.startswith("event.") else ""
    if type_ in USER_REQUESTS:
        return (type_, _id_of_request(message))
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


def _id_of_request(message: fuzz.Message) -> str:
    found: tuple[Any, ...] = ()
    try:
        body = json.loads(message.body.removeprefix(b"\xef\xbb\xbf"))
        found = (body.get("id"),) if "specversion" in body else ()
    except (ValueError, RecursionError, AttributeError, TypeError):
        pass
    for id_ in (*found, message.properties.get("message_id")):
        if isinstance(id_, str) and 0 < len(id_) <= 256 and "\x00" not in id_ and not re.search("[\ud800-\udfff]", id_):
            return id_
    return ""


@dataclass(slots=True)
class Log:
    """A service's log, read incrementally: how each name was handled, each time, and the ids of the nodes."""

    path: Path
    ends: defaultdict[Name, list[str]] = field(default_factory=lambda: defaultdict(list))
    nodes: set[str] = field(default_factory=set)
    _offset: int = 0

    def read(self) -> None:
        """Read the lines that were added."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._add(json.loads(line))

    def _add(self, line: Mapping[str, Any]) -> None:
        match line["event"]:
            case "service.started":
                self.nodes.add(line["node"])
            case "event.decided" | "event.refused" | "event.answered_again" as end:
                self.ends[line["event_type"], line["event_id"]].append(ENDS[end])
            case "job.not_taken" as end:
                self.ends[COMMANDS[line["kind"]], line["owner"], str(line["epoch"])].append(ENDS[end])
            case "capture.stop_ignored" as end:
                self.ends["stop-capture", line["owner"], str(line["epoch"])].append(ENDS[end])


@dataclass(slots=True)
class Evidence:
    """The outcome of each message, by its number: its reasons for parking, or how it was handled. `over`: messages that were
    parked more than once, and names that were handled more often than they were sent."""

    parked: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    handled: dict[int, str] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)

    def update(self, log: Log, sent: Sequence[fuzz.Message]) -> None:
        """Compare the parked messages and the log with the messages that were sent."""
        log.read()
        self.handled.clear()
        self.over = [f"{number} is parked {len(why)} times: {why}" for number, why in self.parked.items() if len(why) > 1]
        named: defaultdict[Name, list[int]] = defaultdict(list)
        for message in sent:
            named[name_of(message)] += [message.n] if message.n not in self.parked else []
        for name, numbers in named.items():
            handled = log.ends.get(name, [])
            self.handled |= dict(zip(numbers, handled, strict=False))
            if len(handled) > len(numbers):
                self.over.append(f"{name} was handled {len(handled)} times, and {len(numbers)} of that name are not parked")

    def lost(self, sent: Sequence[fuzz.Message]) -> list[fuzz.Message]:
        """The messages that were neither parked nor handled."""
        return [message for message in sent if message.n not in self.parked and message.n not in self.handled]

    def ends(self) -> Counter[str]:
        """The number of messages with each outcome."""
        parked = [f"parked: {_kind(why)}" for each in self.parked.values() for why in each]
        return Counter([*parked, *(f"handled: {how}" for how in self.handled.values())])

    def missing_rows(self, rows: Mapping[str, Sequence[Mapping[str, Any]]], sent: Sequence[fuzz.Message]) -> list[str]:
        """The events that the log calls handled but the database does not show: absent from the inbox, or a request without an
        answer. `rows` is the result of `QUERIES`."""
        inbox, journal = ({row["event_id"] for row in rows[table]} for table in ("inbox", "journal"))
        answers = Counter(json.loads(row["body"])["correlationid"] for row in rows["answers"])
        types: defaultdict[str, list[str]] = defaultdict(list)
        for message in sent:
            if message.n in self.handled and message.channel == "event":
                type_, id_ = name_of(message)
                types[id_].append(type_)
        wrong = [f"{id_!r} is not in the inbox" for id_, kinds in types.items() if not _claims(id_, kinds) <= inbox]
        for id_, kinds in types.items():
            # A request under the id of an earlier, different event is a repeat and gets no answer.
            if set(kinds) == {"start"} and answers[id_] != len(kinds):
                wrong.append(f"{id_!r}: {len(kinds)} starts, {answers[id_]} answers")
            elif set(kinds) <= {"stop", "replay", "resend"} and not answers[id_] and id_ not in journal:
                wrong.append(f"{id_!r}: {kinds} were not answered and changed nothing")
        return wrong


def _claims(id_: str, types: Collection[str]) -> set[str]:
    """The inbox keys of an id: requests of users have a key of their own. An internal event that changes nothing keeps none."""
    claim = id_ and (f"bus-{id_}" if len(id_) <= 252 else f"bus-{hashlib.sha256(id_.encode()).hexdigest()}")
    return {claim if type_ in USER_REQUESTS else id_ for type_ in types if type_ not in codec.types("inside")}


def _kind(reason: str) -> str:
    """The kind of a reason, without its details."""
    if reason.startswith("no queue"):
        return reason
    return "refused" if reason.startswith("refused") else "invalid"


async def leftovers(prefix: str, nodes: set[str]) -> list[str]:
    """Our messages that are still in the queues of a service that has ended: waiting, or delivered and never acknowledged (the
    broker requeues these once the consumer is gone)."""
    names = topology.Topology(prefix)
    own = (queue for node in nodes for queue in names.node(node))
    queues = [queue.name for queue in (*names.queues(), *names.retries, *own)]
    found = []
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        for name in queues:

            async def unconsumed(name: str = name) -> bool:
                queue = await channel.declare_queue(name, passive=True)
                return not queue.declaration_result.consumer_count

            await waiting.until(unconsumed, what=f"no consumer of {name}", every_s=0.1)
            queue = await channel.get_queue(name, ensure=False)
            while (message := await queue.get(fail=False)) is not None:
                if MARK in message.headers:
                    found.append(f"message {message.headers[MARK]} is left in {name}")
    return found
