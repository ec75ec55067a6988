"""The connection to RabbitMQ. It reconnects whenever it ends.

Rule: every fault has one recovery. A closed connection, a closed channel, and a consumer that the broker cancelled or that went
deaf all end the session, and a new one is opened. Messages in progress are delivered again, and every handler is idempotent.
Errors of aio_pika leave this package as `errors.Unavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aio_pika
import structlog
from aio_pika import abc
from aio_pika import exceptions as amqp_errors
from yarl import URL

from bus import dead_letter_level
from bus import topology as topologies
from machine import errors, supervised_task

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 3.0
# The default notices a dead peer only after three minutes.
HEARTBEAT_S = 10
RECONNECT_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# After a session of this length the backoff starts over.
STABLE_AFTER_S = 30.0


class Unroutable(errors.Unavailable):
    """No queue is bound for this routing key."""


class QueueFull(errors.Unavailable):
    """The queue that a message is for has reached its limit."""


@contextlib.contextmanager
def translate_errors(action: str) -> Iterator[None]:
    """Raise the errors of aio_pika as Unavailable, with the `action` in the message.

    aiormq cancels the futures of a connection that ends. A cancellation that was not requested of this task therefore means that
    the connection ended."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise errors.Unavailable(f"RabbitMQ: the connection ended ({action}).") from None
    except amqp_errors.PublishError as error:
        raise Unroutable(f"RabbitMQ has no queue for it: {error} ({action}).") from error
    except amqp_errors.DeliveryError as error:
        raise QueueFull(f"RabbitMQ refused the message: its queue is full ({action}).") from error
    except TimeoutError as error:
        raise errors.Unavailable(f"RabbitMQ did not answer in time ({action}).") from error
    except amqp_errors.CONNECTION_EXCEPTIONS as error:
        raise errors.Unavailable(f"RabbitMQ: {type(error).__name__}: {str(error)[:500]} ({action}).") from error


async def connect(urls: str, name: str, limit_s: float = CONNECT_TIMEOUT_S) -> aio_pika.Connection:
    """Open a connection that the broker shows under `name`, with heartbeats that detect a dead peer within seconds. `urls` are
    separated by commas and tried in their order, within `limit_s` together."""
    *others, last = urls.split(",")
    for url in others:
        try:
            return await _connect(url, name, limit_s / (len(others) + 1))
        except (*amqp_errors.CONNECTION_EXCEPTIONS, TimeoutError) as error:
            log.info("bus.host_failed", host=URL(url).host, reason=type(error).__name__)
    return await _connect(last, name, limit_s / (len(others) + 1))


async def _connect(url: str, name: str, limit_s: float) -> aio_pika.Connection:
    connection = aio_pika.Connection(URL(url).update_query({"heartbeat": HEARTBEAT_S, "name": name}))
    try:
        async with asyncio.timeout(limit_s):
            await connection.connect()
    except BaseException:
        # Otherwise the garbage collector closes it, in the event loop that runs then.
        await connection.close()
        raise
    return connection


class BrokerSession:
    """One open connection, with two channels for publishing and one for declarations."""

    def __init__(self, connection: abc.AbstractConnection, topology: topologies.Topology) -> None:
        self.topology = topology
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connection = connection
        # The connection refers to its channels weakly.
        self._channels: list[abc.AbstractChannel] = []
        self._counting: abc.AbstractChannel | None = None
        self._nodes: set[str] = set()
        self.declaring: abc.AbstractChannel
        self.parked_limited = True
        # The exchanges that the recorder publishes to, by name.
        self.exchanges: dict[str, abc.AbstractExchange] = {}
        # The exchange of results, on a channel of its own: RabbitMQ holds up a channel that publishes to a queue without a
        # leader, and the queues of subscribers are not the recorder's.
        self.results: abc.AbstractExchange

    async def open(self) -> None:
        """Open the channels and declare the topology."""
        self._connection.close_callbacks.add(self._closed)
        self.parked_limited = await self._declare_parked()
        self.declaring = await self.channel()
        await topologies.declare(self.declaring, self.topology, parked_limited=self.parked_limited)
        # Without on_return_raises an unroutable message is a return value and no error.
        publishing = await self.channel(publisher_confirms=True, on_return_raises=True)
        for name in (self.topology.exchange, self.topology.parked, *(level.name for level in self.topology.retries)):
            self.exchanges[name] = await publishing.get_exchange(name, ensure=False)
        results = await self.channel(publisher_confirms=True, on_return_raises=True)
        self.results = await results.get_exchange(self.topology.exchange, ensure=False)

    async def _declare_parked(self) -> bool:
        """Declare the dead letter queue; returns whether it has its limit. A refused declaration closes its channel."""
        channel = await self.unguarded_channel()
        try:
            await topologies.declare_parked(channel, self.topology)
        except amqp_errors.ChannelPreconditionFailed:
            return False
        await channel.close()
        return True

    async def channel(self, **options: Any) -> abc.AbstractChannel:
        """Open another channel, which ends the session when it closes."""
        channel = await self.unguarded_channel(**options)
        self.guard(channel)
        return channel

    async def unguarded_channel(self, **options: Any) -> abc.AbstractChannel:
        """Open a channel that may close without ending the session, until it is guarded."""
        channel = self._connection.channel(**({"publisher_confirms": False} | options))
        self._channels.append(channel)
        await channel
        return channel

    async def unguarded_counting(self) -> abc.AbstractChannel:
        """The channel for counts, which may close without ending the session; opened again when it has."""
        if self._counting is None or self._counting.is_closed:
            self._counting = await self.unguarded_channel()
        return self._counting

    def guard(self, channel: abc.AbstractChannel) -> None:
        """End the session when this channel closes."""
        channel.close_callbacks.add(self._closed)

    async def declare_node(self, node: str) -> None:
        """Declare a node's queues, whether or not the node runs: its commands must wait there."""
        if node not in self._nodes:
            await topologies.declare_queues(self.declaring, self.topology, self.topology.node(node))
            self._nodes.add(node)

    def end(self, reason: str) -> None:
        """Mark this session as ended, so that the connection opens another."""
        if not self.ended.done():
            self.ended.set_result(reason)

    async def close(self) -> None:
        """Close the connection within `CLOSE_TIMEOUT_S`."""
        self.end("closed by us")
        with contextlib.suppress(errors.Unavailable), translate_errors("closing"):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._connection.close()

    def _closed(self, _sender: object, error: BaseException | None = None, *_: object) -> None:
        self.end(f"closed by the broker: {type(error).__name__}: {error}" if error else "closed")


OnSession = Callable[[BrokerSession], Awaitable[None]]


class BrokerConnection:
    """Keeps a session open. `on_session` prepares each new session, such as its consumers, before any other user gets it."""

    def __init__(self, urls: str, topology: topologies.Topology, *, name: str, on_session: OnSession) -> None:
        """`urls` as in `connect`."""
        self._urls = urls
        self._name = name
        self.topology = topology
        self._on_session = on_session
        self.dead_letters = dead_letter_level.DeadLetterLevel(topology.parked)
        self._session: BrokerSession | None = None
        self._connected = asyncio.Event()
        self.problem = "The connection to RabbitMQ is not made yet."
        self.task = supervised_task.SupervisedTask("bus.connection", self._run)

    async def session(self) -> BrokerSession:
        """Wait for a session and return it. The wait has no limit of its own."""
        while self._session is None:
            await self._connected.wait()
        return self._session

    @property
    def current(self) -> BrokerSession | None:
        """The session, or None while there is none."""
        return self._session

    async def _run(self) -> None:
        failures = 0
        while True:
            began_s = asyncio.get_running_loop().time()
            try:
                reason = await self._run_session()
            except errors.RecorderError as error:
                reason = error.message
            failures = 0 if asyncio.get_running_loop().time() - began_s > STABLE_AFTER_S else failures + 1
            self.problem = self._without_password(reason)
            log.warning("bus.disconnected", reason=self.problem, failures=failures)
            pause_s = RECONNECT_BACKOFF_S[min(failures, len(RECONNECT_BACKOFF_S) - 1)]
            # Jittered: all nodes lose the same broker at the same time.
            await supervised_task.pause(asyncio.Event(), supervised_task.jittered_s(pause_s))

    async def _run_session(self) -> str:
        """Open a session and wait for its end; returns the reason. Raises Unavailable when it cannot be opened."""
        with translate_errors("connecting"):
            connection = await connect(self._urls, self._name)
        session = BrokerSession(connection, self.topology)
        try:
            with translate_errors("declaring"):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await session.open()
                    await self._on_session(session)
            self._session, self.problem = session, ""
            self.dead_letters.limited = session.parked_limited
            self._connected.set()
            log.info("bus.connected", host=connection.url.host, port=connection.url.port)
            return await asyncio.shield(session.ended)
        finally:
            self._session = None
            self._connected.clear()
            await session.close()

    def _without_password(self, text: str) -> str:
        for url in self._urls.split(","):
            if password := URL(url).password:
                text = text.replace(password, "***")
        return text
