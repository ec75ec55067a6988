"""The connection to RabbitMQ, made anew whenever it ends. Imports `machine`.

Rule: there is one way back from any fault — a closed connection, a closed channel, a consumer that the broker cancelled or that
went deaf: the whole session is closed and a new one opened. What was under way is delivered again; every handler is harmless to
repeat. aio_pika's errors end here, as `errors.Unavailable`.
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

from bus import topology as topologies
from machine import errors, supervised_task

log = structlog.get_logger()

CONNECT_LIMIT_S = 10.0
CLOSE_LIMIT_S = 3.0
# The default notices a dead peer only after three minutes.
HEARTBEAT_S = 10
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# A session that lived this long was a good one: the next try comes at once.
GOOD_AFTER_S = 30.0


class Unroutable(errors.Unavailable):
    """No queue is bound for this routing key."""


@contextlib.contextmanager
def wrapped(what: str) -> Iterator[None]:
    """Turn what aio_pika raises into Unavailable, naming `what` was being done. aiormq cancels the futures of a connection that
    ends: a cancellation that nobody asked of this task is the connection's end, too."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise errors.Unavailable(f"RabbitMQ: the connection ended ({what}).") from None
    except amqp_errors.PublishError as error:
        raise Unroutable(f"RabbitMQ has no queue for it: {error} ({what}).") from error
    except TimeoutError as error:
        raise errors.Unavailable(f"RabbitMQ did not answer in time ({what}).") from error
    except amqp_errors.CONNECTION_EXCEPTIONS as error:
        raise errors.Unavailable(f"RabbitMQ: {type(error).__name__}: {str(error)[:500]} ({what}).") from error


async def connect(url: str, name: str) -> abc.AbstractConnection:
    """A connection that shows up under `name` on the broker and notices within seconds that the other side is gone."""
    connection = aio_pika.Connection(URL(url).update_query({"heartbeat": HEARTBEAT_S, "name": name}))
    try:
        await connection.connect()
    except BaseException:
        # Else it closes itself when it is collected, in whatever loop there is then.
        await connection.close()
        raise
    return connection


class Session:
    """One connection while it lives, with a channel to publish on and one to ask on."""

    def __init__(self, connection: abc.AbstractConnection, topology: topologies.Topology) -> None:
        self.topology = topology
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connection = connection
        # Kept here: the connection holds its channels weakly.
        self._channels: list[abc.AbstractChannel] = []
        self._nodes: set[str] = set()
        self.asking: abc.AbstractChannel
        self.exchange: abc.AbstractExchange
        self.parked: abc.AbstractExchange

    async def open(self) -> None:
        """Open the channels and declare the topology."""
        self._connection.close_callbacks.add(self._closed)
        self.asking = await self.channel()
        await topologies.declare(self.asking, self.topology)
        # Without on_return_raises an unroutable message comes back as a value, and as no error.
        publishing = await self.channel(publisher_confirms=True, on_return_raises=True)
        self.exchange = await publishing.get_exchange(self.topology.exchange, ensure=False)
        self.parked = await publishing.get_exchange(self.topology.parked, ensure=False)

    async def channel(self, **options: Any) -> abc.AbstractChannel:
        """Another channel; its end is the session's."""
        made = await self.loose_channel(**options)
        self.guard(made)
        return made

    async def loose_channel(self, **options: Any) -> abc.AbstractChannel:
        """A channel whose end is its user's matter, until it is guarded."""
        made = self._connection.channel(**({"publisher_confirms": False} | options))
        self._channels.append(made)
        await made
        return made

    def guard(self, channel: abc.AbstractChannel) -> None:
        """From now on the end of this channel is the session's."""
        channel.close_callbacks.add(self._closed)

    async def declare_node(self, node: str) -> None:
        """Make sure that a node has a queue, whether or not it runs: what is for it must wait there."""
        if node not in self._nodes:
            await topologies.declare_queue(self.asking, self.topology, self.topology.node(node))
            self._nodes.add(node)

    def end(self, reason: str) -> None:
        """Say that this session is of no more use; the link opens another."""
        if not self.over.done():
            self.over.set_result(reason)

    async def close(self) -> None:
        """Close the connection, in bounded time."""
        self.end("closed by us")
        with contextlib.suppress(errors.Unavailable), wrapped("closing"):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._connection.close()

    def _closed(self, _sender: object, error: BaseException | None = None, *_: object) -> None:
        self.end(f"closed by the broker: {type(error).__name__}: {error}" if error else "closed")


OnSession = Callable[[Session], Awaitable[None]]


class Link:
    """Keeps a session open. `on_session` is called with each new one, before anybody gets it: to begin consuming."""

    def __init__(self, url: str, topology: topologies.Topology, *, name: str, on_session: OnSession) -> None:
        self._url = URL(url)
        self._name = name
        self.topology = topology
        self._on_session = on_session
        self._session: Session | None = None
        self._up = asyncio.Event()
        self.problem = "The connection to RabbitMQ is not made yet."
        self.life = supervised_task.SupervisedTask("bus.broker_connection", self._run)

    async def session(self) -> Session:
        """The session, as soon as there is one: bound the wait."""
        while self._session is None:
            await self._up.wait()
        return self._session

    @property
    def present(self) -> Session | None:
        """The session, if there is one now."""
        return self._session

    async def _run(self) -> None:
        failures = 0
        while True:
            began_s = asyncio.get_running_loop().time()
            try:
                reason = await self._live()
            except errors.RecorderError as error:
                reason = error.message
            failures = 0 if asyncio.get_running_loop().time() - began_s > GOOD_AFTER_S else failures + 1
            self.problem = self._without_password(reason)
            log.warning("bus.disconnected", reason=self.problem, failures=failures)
            await supervised_task.pause(asyncio.Event(), RETRY_S[min(failures, len(RETRY_S) - 1)])

    async def _live(self) -> str:
        """One session from its beginning to its end; returns why it ended. Raises Unavailable when none could be opened."""
        with wrapped("connecting"):
            async with asyncio.timeout(CONNECT_LIMIT_S):
                connection = await connect(str(self._url), self._name)
        session = Session(connection, self.topology)
        try:
            with wrapped("declaring"):
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    await session.open()
                    await self._on_session(session)
            self._session, self.problem = session, ""
            self._up.set()
            log.info("bus.connected", host=self._url.host, port=self._url.port)
            return await asyncio.shield(session.over)
        finally:
            self._session = None
            self._up.clear()
            await session.close()

    def _without_password(self, text: str) -> str:
        password = self._url.password
        return text.replace(password, "***") if password else text
