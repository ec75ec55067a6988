"""Dead letters, roles and paused captures on RabbitMQ: each node takes its own messages, and a poison message is parked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus import attempts, dead_letter_envelope
from bus import rabbit as rabbit_bus
from events import codec
from machine import errors
from store import store as stores
from tests import buses, engines, rabbit, transactions, waiting
from tests.integration import rabbit_nodes
from tests.integration.rabbit_nodes import clock, database, prefix

__all__ = ["clock", "database", "prefix"]


@pytest.fixture
def hands() -> buses.Hands:
    return buses.Hands()


@pytest.fixture
async def bus(store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands) -> AsyncIterator[rabbit_bus.RabbitBus]:
    """A connected node of all roles."""
    made = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    async with rabbit_nodes.running(made):
        yield made


# --- invalid messages -------------------------------------------------------------------------------------------------------
REFUSED = [
    ("event.stop", b"not json", {}, "not JSON"),
    ("event.stop", b"\xff\xfe", {}, "not JSON"),
    ("event.stop", b"[]", {"message_id": "list"}, "object"),
    ("event.unknown", rabbit_nodes.BARE, {"message_id": "unknown"}, "unknown message type"),
    ("event", rabbit_nodes.BARE, {"message_id": "short"}, "routing key"),
    ("event.start", rabbit_nodes.BARE, {"message_id": "schema"}, "SdkAppId"),
    ("event.start-upload", json.dumps(buses.JOB).encode(), {"message_id": "command"}, "is no event"),
    ("event.replay", codec.encode(rabbit_nodes.stop("other")), {"message_id": "other"}, "does not belong"),
    ("command.start-capture", rabbit_nodes.BARE, {"message_id": "bare-command"}, "specversion"),
    ("event.start", b"x" * 20_000_000, {"message_id": "large"}, "20000000 bytes"),
]


async def test_an_invalid_message_is_parked_with_its_reason_while_traffic_goes_on(
    bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands
) -> None:
    """Invalid, unknown, misplaced and too large messages are parked whole with reason and origin, and the others are decided."""
    for number, (key, body, properties, _) in enumerate(REFUSED):
        await buses.say(prefix, key, body, headers={"mine": number}, **properties)
        await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id=f"good{number}", content_type="application/json")
    await waiting.until(lambda: len(hands.events) == len(REFUSED), timeout_s=20, what="the good ones")
    parked = {m.headers["mine"]: m for m in await buses.taken(f"{prefix}.parked", len(REFUSED))}
    for number, (key, body, properties, reason) in enumerate(REFUSED):
        assert reason in str(parked[number].headers["x-reason"])
        assert parked[number].headers["x-routing-key"] == key
        assert dead_letter_envelope.decrypt(parked[number].body, parked[number].headers, engines.keyring()).body == body
        assert parked[number].message_id == properties.get("message_id", parked[number].message_id)
    assert set(hands.events) == {f"good{number}" for number in range(len(REFUSED))}


async def test_properties_that_the_broker_acts_on_do_not_stop_a_message_from_being_parked(
    bus: rabbit_bus.RabbitBus, prefix: str
) -> None:
    """A sender's user id, an expiration, copies, and headers near the frame limit neither lose nor loop a message."""
    properties: dict[str, Any] = {"user_id": "recorder", "expiration": 3_600, "message_id": "odd", "priority": 3}
    headers = {"big": "x" * 100_000, "CC": ["event.also"], "when": None}
    await buses.say(prefix, "event.unknown", b"{}", headers=headers, **properties)
    parked = (await buses.taken(f"{prefix}.parked", 1))[0]
    assert parked.headers["x-reason"] == "invalid: type: unknown message type 'unknown'"
    assert (parked.message_id, parked.user_id, parked.expiration) == ("odd", None, None)


async def test_a_message_that_always_fails_is_parked(
    bus: rabbit_bus.RabbitBus, prefix: str, hands: buses.Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts are counted whatever the error, and other messages go on."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    hands.failures["poison"] = [RuntimeError("an internal failure")] * 1_000
    await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="poison")
    await buses.say(prefix, "event.stop", rabbit_nodes.BARE, message_id="good")
    parked = (await buses.taken(f"{prefix}.parked", 1))[0]
    assert "an internal failure" in str(parked.headers["x-reason"])
    assert hands.events.count("poison") == attempts.MAX_ATTEMPTS
    assert "good" in hands.events


# --- roles and captures -------------------------------------------------------------------------------------------------------
async def test_each_role_takes_its_own(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """A node with the role machine decides, one with the role worker executes, and one with the role api only relays."""
    made = {role: buses.Hands() for role in ("api", "machine", "worker")}
    nodes = [
        buses.node(store, clock, prefix, on_event=h.on_event, on_command=h.on_command, name=role, roles=[role])
        for role, h in made.items()
    ]
    async with rabbit_nodes.running(*nodes):
        await store.outbox.send("event", rabbit_nodes.stop("e1"))
        await store.outbox.send("command", codec.make("start-upload", id="c1", time_ms=0, data=buses.JOB))
        await waiting.until(lambda: made["machine"].events and made["worker"].commands, what="event and command")
    assert made == {
        "api": buses.Hands(),
        "machine": buses.Hands(events=["e1"]),
        "worker": buses.Hands(commands=["c1"]),
    }


async def test_a_full_worker_leaves_captures_to_others_and_still_uploads(
    store: stores.Store, clock: engines.Clock, prefix: str
) -> None:
    """A paused node gets no new capture, even after a reconnection, but gets uploads, and a resumed one gets captures again."""
    full, free = buses.Hands(), buses.Hands()
    first = buses.node(store, clock, prefix, on_event=full.on_event, on_command=full.on_command, name="n1", roles=["worker"])
    second = buses.node(store, clock, prefix, on_event=free.on_event, on_command=free.on_command, name="n2", roles=["worker"])

    async def captures(*ids: str) -> None:
        for id_ in ids:
            await store.outbox.send("command", codec.make("start-capture", id=id_, time_ms=0, data=buses.JOB))

    async with rabbit_nodes.running(first):
        await first.pause("start-capture")
        await first.pause("start-capture")
        old = first.connection.current
        assert old is not None
        old.end("broken by the test")
        await rabbit_nodes.connected_anew(first, old)
        await captures("c1", "c2", "c3")
        await store.outbox.send("command", codec.make("start-upload", id="u1", time_ms=0, data=buses.JOB))
        await waiting.until(lambda: full.commands == ["u1"], what="the upload alone")
        async with rabbit_nodes.running(second):
            await waiting.until(lambda: sorted(free.commands) == ["c1", "c2", "c3"], what="the other worker to take them")
        await captures("c4")
        await first.resume("start-capture")
        await waiting.until(lambda: full.commands == ["u1", "c4"], what="the capture that waited")


async def test_a_full_worker_leaves_its_own_transcodes_to_others_too(
    store: stores.Store, clock: engines.Clock, prefix: str
) -> None:
    """On a shared spool a transcode that was offered to one worker first goes on to any, if that one has no slot: also while
    it is paused, and also to itself. A worker with a spool of its own keeps what only it can do."""
    asked: dict[str, list[str]] = {"n1": [], "n2": [], "alone": []}

    def worker(name: str, *, shared: bool = True) -> rabbit_bus.RabbitBus:
        async def on_command(command: codec.Event) -> None:
            asked[name].append(command.id)
            if name != "n2" and asked[name].count(command.id) == 1:
                raise errors.WorkerFull("no slot")

        return buses.node(
            store, clock, prefix, on_event=buses.Hands().on_event, on_command=on_command, name=name, roles=["worker"],
            shared_spool=shared,
        )  # fmt: skip

    async def offer(id_: str, node: str) -> None:
        async with transactions.opened(store) as tx:
            tx.send("command", codec.make("start-transcode", id=id_, time_ms=0, data=buses.JOB), buses.TASK, node)

    first, second, alone = worker("n1"), worker("n2"), worker("alone", shared=False)
    async with rabbit_nodes.running(first):
        await offer("mine", "n1")
        await waiting.until(lambda: asked["n1"] == ["mine", "mine"], 20, "the only worker to get it again")
        await first.pause("start-transcode")
        async with rabbit_nodes.running(second):
            await offer("given", "n1")
            await waiting.until(lambda: asked["n2"] == ["given"], 20, "the other worker to take it")
        assert asked["n1"] == ["mine", "mine", "given"]
    async with rabbit_nodes.running(alone):
        await alone.pause("start-transcode", but_own=True)
        await offer("kept", "alone")
        await offer("any", "")
        await waiting.until(lambda: asked["alone"] == ["kept", "kept"], 20, "its own transcode again")
        await alone.resume("start-transcode")
        await waiting.until(lambda: "any" in asked["alone"], 20, "that of any worker after the pause")


async def test_a_leaving_node_hands_over_and_still_sends(store: stores.Store, clock: engines.Clock, prefix: str) -> None:
    """After `stop_consuming` a node takes no message, even when resumed, and its own messages still go out."""
    leaving, staying = buses.Hands(), buses.Hands()
    first = buses.node(store, clock, prefix, on_event=leaving.on_event, on_command=leaving.on_command, name="n1")
    second = buses.node(store, clock, prefix, on_event=staying.on_event, on_command=staying.on_command, name="n2")
    async with rabbit_nodes.running(first):
        await first.stop_consuming()
        await first.resume("start-capture")
        await rabbit_nodes.send_many(store, ["e1"])
        await rabbit_nodes.emptied(store)
        async with rabbit_nodes.running(second):
            await waiting.until(lambda: staying.events == ["e1"], what="the other node to decide it")
    assert leaving == buses.Hands()


async def test_a_bus_starts_before_its_broker(store: stores.Store, clock: engines.Clock, prefix: str, hands: buses.Hands) -> None:
    """Without a broker a node starts, reports the problem and keeps its messages, and wrong credentials are reported without the
    password."""
    nowhere = buses.node(
        store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, url="amqp://recorder:wrongpass@127.0.0.1:1/"
    )
    await nowhere.start()
    await waiting.until(lambda: "not made yet" not in nowhere.connection.problem, what="the first try to fail")
    refused = rabbit.shared().url.replace("recorder:recorder", "recorder:wrongpass")
    wrong = buses.node(store, clock, prefix, on_event=hands.on_event, on_command=hands.on_command, url=refused)
    await wrong.start()
    await waiting.until(lambda: "ACCESS_REFUSED" in wrong.connection.problem, what="the refusal")
    assert "wrongpass" not in nowhere.connection.problem + wrong.connection.problem
    # /readyz is public.
    assert nowhere.problems() == wrong.problems() == ["RabbitMQ is not connected; this node's log says why (bus.disconnected)."]
    await nowhere.stop()
    await wrong.stop()
