"""What becomes of a message, decided without a broker; and how a parked one is shown without its secrets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from pamqp import encode

from bus import attempts, database_probe, delivery_policy, message_reader, publisher, redaction, topology
from events import codec
from events import errors as event_errors
from machine import errors, supervised_task

TASK = "01" + "0" * 23 + "1"
BARE = json.dumps({"TaskId": TASK}).encode()


class Pinged:
    """A database of which only the answer to a ping matters."""

    def __init__(self) -> None:
        self.away = 0

    async def ping(self) -> None:
        if self.away:
            self.away -= 1
            raise errors.Unavailable()


class Counted:
    """Counts of tries, kept while a test runs."""

    def __init__(self, **tries: int) -> None:
        self.tries = dict(tries)

    async def count(self, message: str) -> int:
        return self.tries.get(message, 0)

    async def add(self, message: str) -> int:
        self.tries[message] = self.tries.get(message, 0) + 1
        return self.tries[message]

    async def take_back(self, message: str) -> None:
        self.tries[message] -= 1

    async def forget(self, message: str) -> None:
        self.tries.pop(message, None)


M1 = attempts.key("event", "event.stop", "m1")


def policy(
    handler: Callable[[codec.Event], Awaitable[None]], store: Any = None, counts: Counted | None = None, **options: Any
) -> delivery_policy.DeliveryPolicy:
    tracker, probe = attempts.AttemptTracker(counts or Counted()), database_probe.DatabaseProbe((store or Pinged()).ping)
    reader = message_reader.MessageReader("event", clock=lambda: 5)
    return delivery_policy.DeliveryPolicy(reader.read, handler, tracker=tracker, probe=probe, **options)


def incoming(body: bytes = BARE, key: str = "event.stop", id_: str = "m1", again: bool = False) -> delivery_policy.Incoming:
    return delivery_policy.Incoming(key=key, body=body, message_id=id_, attempt_key=M1, redelivered=again)


def raising(*errors_: Exception) -> Callable[[codec.Event], Awaitable[None]]:
    left = list(errors_)

    async def handler(_: codec.Event) -> None:
        if left:
            raise left.pop(0)

    return handler


HEAD = {"specversion": "1.0", "id": "e1", "source": "s", "type": "start"}
EVENT = json.dumps(HEAD | {"data": {"SdkAppId": 1}}).encode()


@pytest.mark.parametrize(
    ("message", "type_", "id_"),
    [
        (incoming(b"{", key="event.start"), "start", "m1"),
        (incoming(b"\xff\xfe", key="event.replay"), "replay", "m1"),
        (incoming(b'{"UserId": 5}', key="event.start"), "start", "m1"),
        (incoming(EVENT, key="event.start"), "start", "e1"),
        (incoming(EVENT, key="event.start", id_=""), "start", "e1"),
        (incoming(EVENT, key="event.stop"), "stop", "e1"),
        (incoming(json.dumps(HEAD | {"id": "\ud800"}).encode(), key="event.start"), "start", "m1"),
        (incoming(b" " * (message_reader.MAX_FOREIGN_BYTES + 1), key="event.start"), "start", "m1"),
        (incoming(b"{", key="event.start", id_=""), "", ""),
        (incoming(EVENT.replace(b'"e1"', b"7"), key="event.start", id_=""), "", ""),
        (incoming(b"{", key="event.user-left"), "", ""),
        (incoming(b"{", key="event.ffmpeg-exit"), "", ""),
        (incoming(b"{", key="command.start-capture"), "", ""),
    ],
)
async def test_an_invalid_request_is_answered_if_it_has_an_id(message: delivery_policy.Incoming, type_: str, id_: str) -> None:
    """A request that is invalid is refused under the id of its body, or else of its message; everything else is parked."""
    refused: list[codec.Event] = []

    async def refuse(request: codec.Event, _: event_errors.InvalidEvent) -> None:
        refused.append(request)

    answering = message_reader.refusing(refuse, by_message_id=True, clock=lambda: 5)
    disposition = await policy(raising(AssertionError("handled")), refuse=answering).handle(message)
    assert [(each.type, each.id) for each in refused] == ([(type_, id_)] if id_ else [])
    assert disposition.kind == ("done" if id_ else "park")


async def test_a_refusal_that_cannot_be_written_is_retried() -> None:
    """An invalid request is neither lost nor parked while the database does not take its refusal."""

    async def refuse(*_: Any) -> None:
        raise errors.Unavailable()

    answering = message_reader.refusing(refuse, by_message_id=True, clock=lambda: 5)
    assert (await policy(raising(), refuse=answering).handle(incoming(b"{"))).kind == "requeue"


async def test_bare_json_takes_type_and_id_from_the_envelope() -> None:
    """A publisher need not know CloudEvents: routing key and message_id say the rest."""
    seen: list[codec.Event] = []

    async def handler(event: codec.Event) -> None:
        seen.append(event)

    assert await policy(handler).handle(incoming()) == delivery_policy.DONE
    assert [(e.id, e.type, e.time_ms, dict(e.data)) for e in seen] == [("m1", "stop", 5, {"TaskId": TASK})]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (incoming(id_=""), "message_id"),
        (incoming(b"x" * (message_reader.MAX_FOREIGN_BYTES + 1)), "are allowed"),
        (incoming(b"x" * (message_reader.MAX_BODY_BYTES + 1), key="event.ffmpeg-exit"), "are allowed"),
        (incoming(key="event.stop.now"), "unknown message type"),
        (incoming(key="event.session-finished"), "invalid"),
        (incoming(codec.encode(codec.make("stop", id="1", time_ms=0, data={"TaskId": TASK})), key="event.start"), "belong"),
    ],
    ids=["no id", "too large", "too large even for us", "key with a tail", "a result", "another key"],
)
async def test_what_is_wrong_is_parked_with_the_reason(message: delivery_policy.Incoming, reason: str) -> None:
    """A message that no retry cures is parked at once, and its handler never sees it."""
    disposition = await policy(raising(AssertionError("handled"))).handle(message)
    assert disposition.kind == "park"
    assert reason in disposition.reason


async def test_only_the_messages_own_failures_count() -> None:
    """Tries are counted by message; while the database is away, or this worker full, none is; the end forgets them."""
    store, counts = Pinged(), Counted()
    fault = RuntimeError("ours")
    tried = policy(raising(*[fault] * 3, errors.Unavailable(), errors.WorkerFull("no room"), *[fault] * 22), store, counts)
    assert (await tried.handle(incoming())).backoff_s == attempts.BACKOFF_S[0]
    pauses = [(await tried.handle(incoming(again=True))).backoff_s for _ in range(2)]
    assert pauses == list(attempts.BACKOFF_S[1:3])
    store.away = 2
    assert await tried.handle(incoming(again=True)) == delivery_policy.Disposition(
        kind="requeue", reason="the database was away", database_failed=True
    )
    full = delivery_policy.Disposition(kind="requeue", reason="no room", backoff_s=delivery_policy.FULL_BACKOFF_S, full=True)
    assert await tried.handle(incoming(again=True)) == full
    assert counts.tries == {M1: 3}
    dispositions = [await tried.handle(incoming(again=True)) for _ in range(22)]
    assert [d.kind for d in dispositions] == ["requeue"] * 21 + ["park"]
    assert "25 times" in dispositions[-1].reason
    assert counts.tries == {}
    assert await tried.handle(incoming()) == delivery_policy.DONE


async def test_a_refusal_of_the_database_counts_against_no_message() -> None:
    """A database that answers a ping and refuses the work of a message, as on a disk that is nearly full: the message comes back
    after a pause, any number of times, and is never parked."""
    counts = Counted()
    refused = errors.DatabaseUnavailable("The disk of the database is full.", refused=True)
    tried = policy(raising(*[refused] * (attempts.MAX_ATTEMPTS + 5)), Pinged(), counts)
    for number in range(attempts.MAX_ATTEMPTS + 5):
        disposition = await tried.handle(incoming(again=number > 0))
        assert (disposition.kind, disposition.database_failed) == ("requeue", True)
        assert disposition.backoff_s == attempts.BACKOFF_S[0]
    assert not any(counts.tries.values())
    assert await tried.handle(incoming(again=True)) == delivery_policy.DONE


async def test_a_first_try_that_ends_well_is_not_counted() -> None:
    """Nothing is written for a message that is handled at once, and nothing is left of one that comes again and is."""

    class Untouched(Counted):
        async def add(self, message: str) -> int:
            raise AssertionError(message)

    assert await policy(raising(), counts=Untouched()).handle(incoming()) == delivery_policy.DONE
    counts = Counted()
    assert await policy(raising(), counts=counts).handle(incoming(again=True)) == delivery_policy.DONE
    assert counts.tries == {}


async def test_what_workers_say_may_be_larger_than_what_others_may() -> None:
    """A worker's outcome with the gaps of a day exceeds the size limit of a start."""
    gaps = [{"AtMs": n, "DurationMs": 1_000} for n in range(20_000)]
    output = {"DurationMs": 5, "SizeBytes": 9, "Crc64": "1", "StartMs": 1, "EndMs": 2, "Gaps": gaps}
    done = {"TaskId": TASK, "Speaker": "al", "N": 1, "Epoch": 1, "Job": "transcode", "Reason": "ok", "Output": output}
    body = codec.encode(codec.make("ffmpeg-exit", id="1", time_ms=0, data=done))
    assert len(body) > message_reader.MAX_FOREIGN_BYTES
    assert await policy(raising()).handle(incoming(body, key="event.ffmpeg-exit")) == delivery_policy.DONE


async def test_what_ends_the_process_while_it_is_read_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that comes again is counted before its body is looked at."""
    counts = Counted()

    def deadly(*_: object, **__: object) -> codec.Event:
        raise SystemExit

    monkeypatch.setattr(codec, "decode", deadly)
    with pytest.raises(SystemExit):
        await policy(raising(), counts=counts).handle(incoming(again=True))
    assert counts.tries == {M1: 1}


async def test_what_never_ended_is_parked_unhandled() -> None:
    """A message that was begun as often as is allowed is parked, and its handler never sees it again."""
    counts = Counted(**{M1: attempts.MAX_ATTEMPTS})
    disposition = await policy(raising(AssertionError("handled")), counts=counts).handle(incoming(again=True))
    assert (disposition.kind, "never ended" in disposition.reason, counts.tries) == ("park", True, {})


def test_what_is_handled_beside_a_deadly_message_is_not_parked_for_it() -> None:
    """It is handled alone long before it has been tried as often as is allowed."""
    assert attempts.ISOLATE_FROM * 2 < attempts.MAX_ATTEMPTS


def test_every_backoff_fits_a_queue_of_retries() -> None:
    """A pause varies, so that failures of one moment do not return together, and no queue cuts it short."""
    pauses = [supervised_task.jittered_s(backoff_s) * 1000 for backoff_s in attempts.BACKOFF_S * 20]
    assert len(set(pauses)) > len(attempts.BACKOFF_S)
    assert max(pauses) <= topology.RETRY_MS[-1]


async def test_counts_that_cannot_be_kept_are_no_fault_of_the_message() -> None:
    """When the count cannot be written, the message waits and comes again."""

    class Broken(Counted):
        async def add(self, message: str) -> int:
            raise OSError("the database is away")

    disposition = await policy(raising(AssertionError("handled")), counts=Broken()).handle(incoming(again=True))
    assert disposition.kind == "requeue"


async def test_a_handler_that_hangs_is_ended() -> None:
    """A handler that hangs is cancelled and retried, like any internal failure."""

    async def hang(_: codec.Event) -> None:
        await asyncio.Event().wait()

    assert (await policy(hang, timeout_s=0.01).handle(incoming())).kind == "requeue"


def test_routing_keys_and_properties_of_what_goes_out() -> None:
    """A command for a node carries its name; a result may go unheard; ids are those of the event."""
    job = {"TaskId": TASK, "Speaker": "al", "N": 1, "Epoch": 1}
    body = codec.encode(codec.make("stop-capture", id="c1", time_ms=0, data=job, correlation_id="r9"))
    made = publisher.outgoing("command", "stop-capture", "n1", body)
    assert (made.key, made.node, made.mandatory) == ("command.stop-capture.n1", "n1", True)
    assert made.properties["message_id"] == "c1"
    assert made.properties["correlation_id"] == "r9"
    assert made.properties["content_type"] == "application/cloudevents+json"
    assert publisher.outgoing("command", "stop-capture", "", body).key == "command.stop-capture"
    assert not publisher.outgoing("result", "session-accepted", "", body).mandatory


@pytest.mark.parametrize("id_", ["x" * 256, "名" * 86, "x" * 255])
def test_an_id_that_amqp_has_no_room_for_is_a_digest_there(id_: str) -> None:
    """What a publisher may call its event can go out again: the message id fits, is text, and is the same each time."""
    body = codec.encode(codec.make("session-refused", id=id_, time_ms=0, data={"Code": "x", "Message": "x", "RequestId": "x"}))
    made, again = (publisher.outgoing("result", "session-refused", "", body).properties["message_id"] for _ in range(2))
    assert made == again
    assert len(made.encode()) <= 255
    assert (made == id_) == (len(id_.encode()) <= 255)


def test_halves_of_characters_do_not_keep_a_message_from_being_parked() -> None:
    """JSON can encode text that no header can hold: the shown part of such a body, and headers made from it, can be sent."""
    shown = redaction.body(b'{"TaskId": "\\ud800", "Speaker": ["\\udfff"]}')
    assert "\\ud800" in shown
    for headers in ({"x-shown": shown}, {"x-reason": "\ud800"}, {"\udfff": "x"}):
        assert encode.field_table(publisher.sendable(headers))


ODD_HEADERS = [{"odd": object()}, {"big": "x" * 200_000}, {"n": 2**80}]


@pytest.mark.parametrize("headers", ODD_HEADERS, ids=["kind", "size", "number"])
def test_headers_that_cannot_be_sent_again_are_sent_as_text(headers: dict[str, Any]) -> None:
    """What another client put there does not keep a message from being parked."""
    assert all(isinstance(value, str) and len(value) <= 1_000 for value in publisher.sendable(headers).values())


NAMES = ["UserSig", "user_sig", "SecretKey", "secret-id", "Token", "x-cos-security-token", "password"]


@hypothesis.given(strategies.sampled_from(NAMES), strategies.integers(0, 6), strategies.booleans())
def test_no_secret_is_shown_at_any_depth(name: str, depth: int, broken: bool) -> None:
    """A secret is masked wherever its field stands, also in a body that is cut off in the middle."""
    body: Any = {name: "PLANTED/secret+value=="}
    for level in range(depth):
        body = {"in": [body]} if level % 2 else {"in": body, "other": 1}
    raw = json.dumps(body).encode()
    shown = redaction.body(raw[:-1] if broken else raw)
    assert "PLANTED" not in shown


@pytest.mark.parametrize(
    "raw",
    [
        b"UserSig=PLANTEDabc&x=1",
        b"user_sig: PLANTED-abc",
        b"key AKIDPLANTED1234567890abcdef end",
        b'{"Callback": "https://a/b?token=PLANTED&x=1"}',
        b'{"inner": "{\\"SecretKey\\": \\"PLANTED\\"}"}',
        b'["SecretKey", {"SecretKey": "PLANTED"}',
        b"\xff\xfe" + b"SecretKey=PLANTED",
    ],
)
def test_text_that_looks_like_a_key_is_masked(raw: bytes) -> None:
    """In text without fields, a named secret and text that looks like a key are masked."""
    assert b"PLANTED" not in redaction.body(raw).encode()


def test_long_bodies_are_cut() -> None:
    """A body of megabytes is not poured onto a screen."""
    assert len(redaction.body(b"word " * 1_000_000)) < 1_000
    assert len(redaction.body(json.dumps({"a": "word " * 1_000_000}).encode())) < 70_000
