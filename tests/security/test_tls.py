"""TLS to RabbitMQ and PostgreSQL with real certificates: a server without the right one gets no password. And several hosts.

The tests concern the distributed engine; the embedded one has no connections.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy

from bus import broker_connection
from bus import topology as topologies
from machine import errors
from store import connections
from tests import ports, postgres, rabbit, waiting


@pytest.fixture(scope="module")
def broker() -> rabbit.Broker:
    return rabbit.shared()


async def outcome(url: str, prefix: str) -> str:
    """The outcome of a node's connection to the bus: "" when it is up, else its reported problem."""

    async def nothing(_: broker_connection.BrokerSession) -> None:
        return None

    connection = broker_connection.BrokerConnection(url, topologies.Topology(prefix), name="recorder test", on_session=nothing)
    before = connection.problem
    connection.task.start()
    try:
        await waiting.until(lambda: connection.problem != before, 20, "a connection or a reason")
        return connection.problem
    finally:
        await connection.task.stop()


async def test_the_bus_is_reached_by_tls(broker: rabbit.Broker) -> None:
    """amqps:// with the authority that signed the broker's certificate connects and declares the topology."""
    assert await outcome(broker.tls_url("127.0.0.1", broker.certificates.authority), broker.prefix()) == ""


async def test_a_broker_with_another_certificate_gets_no_password(broker: rabbit.Broker) -> None:
    """A certificate of another authority, of none but the system's authorities, or for another name is refused before a password
    is sent, and the reported problem does not contain the password."""
    for url in (
        broker.tls_url("127.0.0.1", broker.certificates.stranger),
        broker.tls_url("127.0.0.1", broker.certificates.authority).partition("?")[0],
        broker.tls_url("localhost", broker.certificates.authority),
    ):
        problem = await outcome(url, broker.prefix())
        assert "certificate" in problem.lower(), problem
        assert "recorder:recorder" not in problem


async def test_the_second_host_of_the_broker_is_used(broker: rabbit.Broker) -> None:
    """A host that is away, and one whose name does not resolve, are passed over; without any other the last one is the reason,
    and no password is shown."""
    away = f"amqp://recorder:PLANTED@127.0.0.1:{ports.free()}/"
    assert await outcome(f"{away},amqp://none.invalid/,{broker.url}", broker.prefix()) == ""
    problem = await outcome(f"amqp://none.invalid/,{away}", broker.prefix())
    assert "Connect call failed" in problem
    assert "PLANTED" not in problem


async def secure(url: str, host: str, trusted: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the store's connection is encrypted. Raises the error of the connection."""
    monkeypatch.setenv("PGSSLROOTCERT", str(trusted))
    database = connections.open_database(url.replace("127.0.0.1", host) + "?sslmode=verify-full")
    try:
        async with database.read() as connection:
            query = sqlalchemy.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            return bool((await connection.execute(query)).scalar())
    finally:
        await database.close()


async def test_the_database_is_reached_by_tls(broker: rabbit.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """`?sslmode=verify-full` and PGSSLROOTCERT encrypt the connection to the right server; another authority, another name or a
    server without TLS gives no connection."""
    server, made = postgres.shared(), broker.certificates
    url = server.create()
    with server.tls(made):
        await waiting.until(lambda: reaches(url, made.authority, monkeypatch), 10, "the server to have read its certificate")
        for host, trusted in (("127.0.0.1", made.stranger), ("localhost", made.authority)):
            with pytest.raises(Exception, match="certificate"):
                await secure(url, host, trusted, monkeypatch)

    async def refused() -> bool:
        return not await reaches(url, made.authority, monkeypatch)

    await waiting.until(refused, 10, "the server to be without TLS again")
    await asyncio.to_thread(server.drop, url)


async def reaches(url: str, trusted: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether an encrypted connection succeeds."""
    try:
        return await secure(url, "127.0.0.1", trusted, monkeypatch)
    except (OSError, sqlalchemy.exc.SQLAlchemyError, errors.DatabaseUnavailable):
        return False
