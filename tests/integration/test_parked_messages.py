"""RabbitMQ's queue of dead letters: listing loses none, and an action on one affects no other."""

from __future__ import annotations

import json

import aio_pika
import pytest

from bus import dead_letter_envelope, dead_letters
from bus import topology as topologies
from machine import encryption, errors
from store import store as stores
from tests import buses, engines, rabbit, waiting

SECRET = {"UserSig": "PLANTED-sig", "CosConfig": {"SecretKey": "PLANTED-key", "Bucket": "b-12345"}, "Room": 7}


@pytest.fixture
async def topology() -> topologies.Topology:
    """Exchanges and queues of one test, declared."""
    made = topologies.Topology(rabbit.shared().prefix())
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        await topologies.declare(channel, made)
    return made


@pytest.fixture
def messages(topology: topologies.Topology) -> dead_letters.DeadLetterQueue:
    return dead_letters.DeadLetterQueue(rabbit.shared().url, keyring=engines.keyring(), prefix=topology.prefix)


async def park(topology: topologies.Topology, number: int, **headers: object) -> None:
    headers = {"x-reason": f"reason {number}", "x-parked-ms": number, "mine": number} | headers
    body = json.dumps(SECRET | {"Number": number}).encode()
    await buses.say(topology.parked, "event.start", body, message_id=f"m{number}", headers=headers)


async def test_listing_keeps_every_message_in_order(
    messages: dead_letters.DeadLetterQueue, topology: topologies.Topology
) -> None:
    """After any number of listings the queue has every message in its first order."""
    for number in range(5):
        await park(topology, number)
    for _ in range(30):
        found, total = await messages.list(3)
        assert total == 5
        assert [(m.message_id, m.reason, m.parked_ms, m.key) for m in found] == [
            (f"m{n}", f"reason {n}", n, "event.start") for n in range(3)
        ]


async def test_a_shown_message_has_its_secrets_masked(
    messages: dead_letters.DeadLetterQueue, topology: topologies.Topology
) -> None:
    """Body and headers are shown, and the secrets in them are masked."""
    await park(topology, 1, Token="PLANTED-token")
    (found,), _ = await messages.list()
    shown = await messages.show(found.id)
    assert "PLANTED" not in f"{shown.body}{shown.headers}"
    assert json.loads(shown.body)["CosConfig"] == {"SecretKey": "***", "Bucket": "b-12345"}
    assert shown.headers["mine"] == 1


async def test_a_requeued_message_goes_to_its_original_key(
    messages: dead_letters.DeadLetterQueue, topology: topologies.Topology
) -> None:
    """A requeued message is published complete with its secrets, without the headers added when it was parked, and the others
    stay."""
    for number in range(3):
        await park(topology, number)
    found, _ = await messages.list()
    await messages.requeue(found[1].id)
    again = (await buses.taken(topology.requests.name, 1))[0]
    assert json.loads(again.body) == SECRET | {"Number": 1}
    assert (again.routing_key, again.message_id) == ("event.start", "m1")
    assert {name for name in again.headers if name != "x-delivery-count"} == {"mine"}
    assert {m.message_id for m in (await messages.list())[0]} == {"m0", "m2"}


async def park_encrypted(topology: topologies.Topology, keyring: encryption.Keyring) -> None:
    """Park a message as a consumer does."""
    original = dead_letter_envelope.Original(
        key="event.start",
        body=json.dumps(SECRET | {"Kennwort": "PLANTED-word", "Callback": "https://x.com/PLANTED-path"}).encode(),
        properties={"message_id": "m1", "content_type": "application/json"},
        headers={"mine": 1, "Authorization": "PLANTED-header", "deep": {"a": ["PLANTED-deep"]}},
    )
    ours = {"x-reason": "invalid: UserSig=PLANTED-sig", "x-parked-ms": 5, "x-routing-key": original.key}
    made = dead_letter_envelope.encrypt(original, keyring, ours)
    await buses.say(topology.parked, made.key, made.body, headers=dict(made.headers), **made.properties)


async def test_a_parked_message_is_encrypted(messages: dead_letters.DeadLetterQueue, topology: topologies.Topology) -> None:
    """The broker holds no secret of a parked message; it is shown masked without any key, and requeued exactly as it was
    published."""
    await park_encrypted(topology, engines.keyring())
    keyless = dead_letters.DeadLetterQueue(
        rabbit.shared().url, keyring=encryption.Keyring([encryption.new_key()]), prefix=topology.prefix
    )
    (found,), _ = await keyless.list()
    assert (found.key, found.message_id, found.reason) == ("event.start", "m1", "invalid: UserSig=***")
    assert found.key_id == engines.keyring().key_id
    shown = await keyless.show(found.id)
    assert "PLANTED" not in f"{shown.body}{shown.headers}"
    body = json.loads(shown.body)
    assert (body["Kennwort"], body["Callback"], body["Room"]) == ("***", "https://x.com/…", 7)
    with pytest.raises(errors.DecryptionFailed, match=found.key_id):
        await keyless.requeue(found.id)
    await messages.requeue(found.id)
    again = (await buses.taken(topology.requests.name, 1))[0]
    assert json.loads(again.body) == SECRET | {"Kennwort": "PLANTED-word", "Callback": "https://x.com/PLANTED-path"}
    assert (again.routing_key, again.message_id, again.content_type) == ("event.start", "m1", "application/json")
    assert {n: v for n, v in again.headers.items() if n != "x-delivery-count"} == {
        "mine": 1,
        "Authorization": "PLANTED-header",
        "deep": {"a": ["PLANTED-deep"]},
    }
    assert await messages.list() == ([], 0)


async def test_a_message_that_bypassed_the_permissions_is_not_requeued(
    messages: dead_letters.DeadLetterQueue, topology: topologies.Topology, store: stores.Store, clock: engines.Clock
) -> None:
    """A parked message that its sender did not publish under its key is not requeued, because it would become the recorder's own
    message; a message that our own queues dead-lettered is."""
    hands = buses.Hands()
    node = buses.node(store, clock, topology.prefix, on_event=hands.on_event, on_command=hands.on_command)
    foreign = {"x-death": [{"queue": "a-queue-of-theirs", "reason": "expired", "count": 1}]}
    ours = {"x-death": [{"queue": topology.requests.name, "reason": "delivery_limit", "count": 1}]}
    await node.start()
    await buses.say(topology.exchange, "event.stop", b"by a consumer", headers=foreign)
    (found,) = await waiting.until(lambda: _listed(messages, 1), 20, "the message to be parked")
    await node.stop()
    await buses.say(topology.parked, "event.stop", b"by the broker", headers=foreign)
    await buses.say(topology.parked, "event.stop", b"ours", headers=ours)
    listed = {m.id for m in (await messages.list())[0]}
    (own,) = [id_ for id_ in listed if (await messages.show(id_)).body == "ours"]
    for id_ in listed - {own}:
        with pytest.raises(errors.Refused, match="came past the broker's permissions"):
            await messages.requeue(id_)
    await messages.requeue(own)
    assert {m.id for m in (await messages.list())[0]} == listed - {own}
    assert found.id in listed
    assert [m.body for m in await buses.taken(topology.requests.name, 1)] == [b"ours"]
    assert hands.events == []


async def _listed(messages: dead_letters.DeadLetterQueue, count: int) -> list[dead_letters.DeadLetter]:
    found, total = await messages.list()
    return found if total == count else []


async def test_drop_removes_one_message(messages: dead_letters.DeadLetterQueue, topology: topologies.Topology) -> None:
    """One of several messages is dropped, and an unknown one is an error."""
    for number in range(3):
        await park(topology, number)
    found, _ = await messages.list()
    await messages.drop(found[0].id)
    assert {m.message_id for m in (await messages.list())[0]} == {"m1", "m2"}
    for act in (messages.drop, messages.requeue, messages.show):
        with pytest.raises(errors.NotFound):
            await act(found[0].id)


async def test_the_brokers_own_reasons_are_shown(messages: dead_letters.DeadLetterQueue, topology: topologies.Topology) -> None:
    """A message that the broker dead-lettered has no reason from the recorder; it is derived from the broker's headers."""
    await buses.say(topology.exchange, "evnet.start", b"{}")
    death = [{"reason": "delivery_limit", "queue": topology.requests.name}]
    await buses.say(topology.parked, "event.stop", b"{}", headers={"x-death": death})
    found, _ = await messages.list()
    assert [m.reason for m in found] == [
        "no queue is bound for its routing key",
        f"dead-lettered by the broker: delivery_limit in {topology.requests.name}",
    ]


async def test_an_unreachable_broker_is_an_error() -> None:
    """An unreachable broker gives our own error, not the library's traceback."""
    with pytest.raises(errors.Unavailable):
        await dead_letters.DeadLetterQueue("amqp://127.0.0.1:1/", keyring=engines.keyring()).list()
