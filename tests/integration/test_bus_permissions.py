"""RabbitMQ's permissions of docs/bus.md: each kind of user can do its task and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aio_pika
import pytest
from aiormq import exceptions

from bus import topology
from events import codec
from store import store as stores
from tests import buses, engines, rabbit, waiting

ROOT = Path(__file__).parent.parent.parent
KINDS = ("recorder", "starts", "receives")


class Users:
    """One user for each row of the table, on the shared broker, under a prefix of the test's own."""

    def __init__(self, broker: rabbit.Broker) -> None:
        self.broker, self.prefix = broker, broker.prefix()
        rows = re.findall(
            r"(?m)^\| (?:the recorder|starts|receives).*\|$", (ROOT / "docs" / "bus.md").read_text(encoding="utf-8")
        )
        for kind, row in zip(KINDS, rows, strict=True):
            _, configure, write, read, publish, bind = self._cells(row)
            name = f"{self.prefix}-{kind}"
            broker.add_user(name, name, configure, write, read)
            broker.limit_topics(name, self.prefix, publish, bind)

    def _cells(self, row: str) -> list[str]:
        """The permissions of a row of the table: `the same` repeats the previous column, and names get the test's prefix."""
        cells: list[str] = []
        for cell in re.split(r"(?<!\\)\|", row)[1:-1]:
            cells.append(cells[-1] if cell.strip() == "the same" else cell.strip().strip("`").replace("\\|", "|"))
        return [re.sub(r"\^(recorder|lessons)", lambda m: f"^{self._name(m[1])}", cell) for cell in cells]

    def _name(self, name: str) -> str:
        return self.prefix if name == "recorder" else f"{self.prefix}-lessons"

    def url(self, kind: str) -> str:
        """The broker's address for the user of this kind."""
        name = f"{self.prefix}-{kind}"
        return self.broker.url.replace("recorder:recorder@", f"{name}:{name}@")

    async def may_publish(self, kind: str, key: str) -> bool:
        """Whether the user may publish under this key."""
        async with await aio_pika.connect(self.url(kind)) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(self.prefix)
            try:
                await exchange.publish(aio_pika.Message(b"{}"), key)
            except exceptions.ChannelAccessRefused:
                return False
            return True

    async def may_receive(self, kind: str, key: str) -> bool:
        """Whether the user may bind a queue of its own to this key."""
        async with await aio_pika.connect(self.url(kind)) as connection:
            channel = await connection.channel()
            name = f"{self.prefix}-lessons.x" if kind == "receives" else None
            queue = await channel.declare_queue(name, exclusive=True)
            try:
                await queue.bind(self.prefix, key)
            except exceptions.ChannelAccessRefused:
                return False
            return True

    async def may_publish_past_the_exchange(self, kind: str, queue: str) -> bool:
        """Whether the user may publish directly to a queue through the default exchange, which has no topics."""
        async with await aio_pika.connect(self.url(kind)) as connection:
            channel = await connection.channel()
            try:
                await channel.default_exchange.publish(aio_pika.Message(b"{}"), queue)
            except exceptions.ChannelAccessRefused:
                return False
            return True

    async def may_publish_by_an_exchange_of_its_own(self, kind: str, name: str) -> bool:
        """Whether the user may bind an exchange of its own, which has no topics, in front of the recorder's."""
        async with await aio_pika.connect(self.url(kind)) as connection:
            channel = await connection.channel()
            try:
                own = await channel.declare_exchange(name, "fanout", auto_delete=True)
                await (await channel.get_exchange(self.prefix)).bind(own)
                await own.publish(aio_pika.Message(b"{}"), "command.start-capture")
            except exceptions.ChannelAccessRefused:
                return False
            return True

    async def may_reach_the_exchange_of_retries(self, kind: str, names: topology.Topology) -> list[str]:
        """The ways in which the user gets a message to a consumer as a retry: by publishing to the exchanges, or by its own queue
        that dead-letters there."""
        done = []
        returning = {topology.RETRY_QUEUE: names.work[0].name}
        dead_lettering = {"x-message-ttl": 0, "x-dead-letter-exchange": names.retried}
        async with await aio_pika.connect(self.url(kind)) as connection:
            for name in (names.retried, *(level.name for level in names.retries)):
                channel = await connection.channel()
                message = aio_pika.Message(b"{}", headers=dict(returning), expiration=0.001)
                with contextlib.suppress(exceptions.ChannelAccessRefused):
                    await (await channel.get_exchange(name, ensure=False)).publish(message, "command.start-capture")
                    done.append(name)
            for own in (None, f"{self.prefix}-lessons.own"):
                channel = await connection.channel()
                with contextlib.suppress(exceptions.ChannelAccessRefused):
                    await channel.declare_queue(own, exclusive=True, arguments=dict(dead_lettering))
                    done.append(f"dead-lettering from {own}")
        return done

    async def declare_anew(self, names: topology.Topology) -> None:
        """The recorder's queues, empty."""
        async with await aio_pika.connect(self.url("recorder")) as connection:
            channel = await connection.channel()
            await topology.declare(channel, names)
            for queue in (names.parked, *(each.name for each in names.queues())):
                await channel.queue_delete(queue, if_unused=False)

    async def plant(self, way: str, message: aio_pika.Message) -> None:
        """Put a message under a key that the user may not publish to into a queue of commands, on a broker that permits it."""
        key = "command.start-capture"
        kind = "recorder" if way == "an exchange in front" else "starts"
        async with await aio_pika.connect(self.url(kind)) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(self.prefix)
            if way == "a copy":
                message.headers["CC"] = [key]
                await exchange.publish(message, "event.start")
            elif way == "dead-lettered":
                expiring = {"x-dead-letter-exchange": self.prefix, "x-dead-letter-routing-key": key, "x-message-ttl": 0}
                queue = await channel.declare_queue(None, exclusive=True, arguments=expiring)
                await queue.bind(exchange, "result.session-accepted")
                message.headers["CC"] = ["result.session-accepted"]
                await exchange.publish(message, "event.start")
            else:
                own = await channel.declare_exchange(f"{self.prefix}.own", "fanout", auto_delete=True)
                await exchange.bind(own)
                await own.publish(message, key)

    async def may_break(self, kind: str, name: str) -> list[str]:
        """The operations among delete, purge, declare and bind that the user may do to a queue and an exchange of this name."""
        done = []
        async with await aio_pika.connect(self.url(kind)) as connection:
            for what in ("purge", "declare", "bind", "delete", "exchange"):
                channel = await connection.channel()
                queue = await channel.get_queue(name, ensure=False)
                tries: dict[str, Callable[[], Awaitable[object]]] = {
                    "purge": queue.purge,
                    "declare": lambda channel=channel: channel.declare_queue(f"{name}.more", exclusive=True),
                    "bind": lambda queue=queue: queue.bind(self.prefix, "command.start-capture"),
                    "delete": lambda queue=queue: queue.delete(if_unused=False, if_empty=False),
                    "exchange": lambda channel=channel: channel.exchange_delete(self.prefix),
                }
                with contextlib.suppress(exceptions.ChannelAccessRefused):
                    await tries[what]()
                    done.append(what)
        return done

    async def may_take(self, kind: str, queue: str) -> bool:
        """Whether the user may consume from this queue."""
        async with await aio_pika.connect(self.url(kind)) as connection:
            channel = await connection.channel()
            try:
                await (await channel.declare_queue(queue, passive=True)).get(fail=False)
            except exceptions.ChannelAccessRefused:
                return False
            return True


@pytest.fixture
def database(tmp_path: Path) -> engines.Database:
    """The engine of the database does not matter: the broker is under test."""
    return engines.fresh("sqlite", tmp_path)


@pytest.fixture(scope="module")
def users() -> Users:
    return Users(rabbit.shared())


def _queues(names: topology.Topology) -> list[str]:
    """Every queue of the recorder: dead letters, events, and commands, including those for one node."""
    assert {queue.name for queue in names.queues()} == {
        names.requests.name,
        names.machines.name,
        *(each.name for each in names.work),
        names.unheard.name,
    }
    own = (names.requests, names.machines, *names.work, *names.retries, *names.node("n1"))
    return [names.parked, *(queue.name for queue in own)]


async def test_each_user_may_do_its_task_and_no_more(users: Users) -> None:
    """The recorder can declare its whole topology, an application that starts sessions can publish three events and receive their
    answers, one that subscribes can receive all results, and neither can publish commands, consume events or read dead letters.
    """
    names = topology.Topology(users.prefix)
    async with await aio_pika.connect(users.url("recorder")) as connection:
        channel = await connection.channel()
        await topology.declare(channel, names)
        await topology.declare_queues(channel, names, names.node("n1"))
    for key in ("event.start", "command.start-capture", "command.start-capture.n1", "result.session-finished"):
        assert await users.may_publish("recorder", key)
    assert await users.may_receive("recorder", "result.#")
    for queue in _queues(names):
        assert await users.may_take("recorder", queue), queue
    for key, allowed in {
        "event.start": True,
        "event.stop": True,
        "event.replay": True,
        "event.resend": True,
        "event.user-left": False,
    }.items():
        assert await users.may_publish("starts", key) == allowed, key
        assert not await users.may_publish("receives", key), key
    for kind in ("starts", "receives"):
        for key in ("command.start-capture", "command.start-capture.n1", "command.stop-capture", "result.session-finished"):
            assert not await users.may_publish(kind, key), (kind, key)
        for key in ("#", "event.#", "event.start", "command.#", "command.*.n1", "command.stop-capture"):
            assert not await users.may_receive(kind, key), (kind, key)
        for queue in _queues(names):
            assert not await users.may_take(kind, queue), (kind, queue)
    for key, allowed in {"result.session-accepted": True, "result.session-finished": True, "result.#": False}.items():
        assert await users.may_receive("starts", key) == allowed, key
        assert await users.may_receive("receives", key), key


async def test_no_application_bypasses_the_exchange_or_breaks_a_queue(users: Users) -> None:
    """No application can publish directly to a queue, or delete, purge or declare the recorder's queues and exchanges; the
    recorder's own user can, as a control."""
    names = topology.Topology(users.prefix)
    async with await aio_pika.connect(users.url("recorder")) as connection:
        channel = await connection.channel()
        await topology.declare(channel, names)
        await topology.declare_queues(channel, names, names.node("n1"))
    for kind in ("starts", "receives"):
        for queue in (*_queues(names), names.unheard.name):
            assert not await users.may_publish_past_the_exchange(kind, queue), (kind, queue)
            assert await users.may_break(kind, queue) == [], (kind, queue)
        for own in ("amq_own", "amq.gen-own", f"{users.prefix}-lessons.own", f"{users.prefix}.own", "own"):
            assert not await users.may_publish_by_an_exchange_of_its_own(kind, own), (kind, own)
        assert await users.may_reach_the_exchange_of_retries(kind, names) == [], kind
    assert len(await users.may_reach_the_exchange_of_retries("recorder", names)) == len(names.retries) + 2
    assert await users.may_publish_by_an_exchange_of_its_own("recorder", f"{users.prefix}.own")
    assert await users.may_break("recorder", names.unheard.name) == ["purge", "declare", "bind", "delete", "exchange"]


async def test_the_examples_need_no_more(users: Users) -> None:
    """publish_start.py works with the permissions of a user that starts sessions: its message is accepted and the answer
    received."""
    names = topology.Topology(users.prefix)
    async with await aio_pika.connect(users.url("recorder")) as connection:
        channel = await connection.channel()
        await topology.declare(channel, names)
        requests = await channel.get_queue(names.requests.name)
        await requests.purge()
        received: asyncio.Future[aio_pika.abc.AbstractIncomingMessage] = asyncio.get_running_loop().create_future()

        async def hear(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            received.set_result(message)

        await requests.consume(hear, no_ack=True)
        program = await asyncio.create_subprocess_exec(
            sys.executable, ROOT / "docs" / "examples" / "publish_start.py", "-",
            env={"AMQP_URL": users.url("starts"), "AMQP_PREFIX": users.prefix},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        telling = asyncio.create_task(program.communicate(b'{"a": 1}'))
        async with waiting.at_most(30):
            message = await received
        assert (message.routing_key, message.body) == ("event.start", b'{"a": 1}')
        body = json.dumps({"data": {"TaskId": "one"}}).encode()
        answer = aio_pika.Message(body, correlation_id=message.message_id)
        await (await channel.get_exchange(users.prefix)).publish(answer, "result.session-accepted")
        async with waiting.at_most(30):
            output, faults = await telling
    assert (program.returncode, json.loads(output), faults) == (0, {"TaskId": "one"}, b"")


PARKED = {
    "a copy": "does not belong under the routing key 'event.start'",
    "dead-lettered": "a queue dead-lettered it",
    "an exchange in front": "it was published to the exchange",
}


@pytest.mark.parametrize("way", PARKED)
async def test_a_command_that_bypassed_the_permissions_is_parked(
    users: Users, way: str, store: stores.Store, clock: engines.Clock
) -> None:
    """A worker executes no command that bypassed the permissions: RabbitMQ before 4 checks only the routing key, so copies to
    other keys, dead-lettering from an own queue and a bound exchange pass."""
    names, hands = topology.Topology(users.prefix), buses.Hands()
    await users.declare_anew(names)
    node = buses.node(store, clock, users.prefix, on_event=hands.on_event, on_command=hands.on_command, drain_s=0.2)
    await node.start()
    try:
        await waiting.until(lambda: not node.problems(), timeout_s=30, what="the node to be connected")
        command = codec.make("start-capture", id=f"bypassed {way}", time_ms=engines.START_MS, data=buses.JOB, subject=buses.TASK)
        await users.plant(way, aio_pika.Message(codec.encode(command), message_id=command.id))
        parked = await buses.taken(names.parked, 1 if way == "an exchange in front" else 2)
        assert PARKED[way] in next(str(m.headers["x-reason"]) for m in parked if m.headers["x-queue"] == names.work[0].name)
        assert hands.commands == hands.events == []
        honest = codec.make("start-capture", id=f"honest {way}", time_ms=engines.START_MS, data=buses.JOB, subject=buses.TASK)
        await buses.say(users.prefix, "command.start-capture", codec.encode(honest), message_id=honest.id)
        await waiting.until(lambda: hands.commands == [honest.id], what="the same command, published")
    finally:
        await node.stop()
