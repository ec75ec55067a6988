"""`recorder parked` as a real command, for dead letters in the outbox of either engine and in the broker's queue."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import pytest

from bus import broker_connection
from bus import topology as topologies
from cli import exits
from events import codec
from store import store as stores
from tests import buses, cli_runner, decider_harness, engines, rabbit

REASON = "invalid: UserSig=PLANTED-SIG is too short"
START = decider_harness.START | {"UserSig": "PLANTED-SIG"}


@dataclass(slots=True, kw_only=True)
class Place:
    """A place of dead letters: the outbox of an engine, or the broker's queue."""

    name: str
    database: engines.Database
    store: stores.Store
    environment: dict[str, str]
    topology: topologies.Topology

    async def park(self, id_: str) -> None:
        """Park a start of this id, with secrets in its body and in the reason."""
        if self.name == "queue":
            body, headers = json.dumps(START).encode(), {"x-reason": REASON, "x-parked-ms": 1_800_000_000_000}
            await buses.say(self.topology.parked, "event.start", body, message_id=id_, headers=headers)
            return
        await self.store.outbox.send("event", codec.make("start", id=id_, time_ms=engines.START_MS, data=START))
        (message,) = await self.store.outbox.unsent()
        await self.store.outbox.mark_sent(message.seq, parked=REASON)

    async def on_its_way(self) -> list[str]:
        """Take the waiting messages; returns their ids."""
        if self.name == "queue":
            return [str(m.message_id) for m in await buses.taken(self.topology.requests.name, 1)]
        return [codec.decode(m.body, now_ms=0).id for m in await self.store.outbox.unsent()]

    async def run(self, *words: str, **environ: str) -> cli_runner.Answer:
        """Run `recorder parked …` in this process."""
        return self._without_secrets(await cli_runner.inside(self.environment | environ, "parked", *words))

    async def process(self, *words: str, **environ: str) -> cli_runner.Answer:
        """Run `recorder parked …` in a new process."""
        return self._without_secrets(await cli_runner.process(self.environment | environ, "parked", *words))

    def _without_secrets(self, answer: cli_runner.Answer) -> cli_runner.Answer:
        assert "PLANTED" not in answer.out + answer.err
        return answer

    async def ids(self) -> list[str]:
        """The ids of all dead letters."""
        return [message["Id"] for message in (await self.run("list", "--json")).json["Messages"]]


@pytest.fixture(params=["outbox-sqlite", "outbox-postgresql", "queue"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, clock: engines.Clock) -> AsyncIterator[Place]:
    """An empty place. With PostgreSQL there is a broker, whose queue is another place of the same recorder."""
    kind = "sqlite" if request.param == "outbox-sqlite" else "postgresql"
    database = engines.fresh(kind, tmp_path)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DATABASE_URL": database.url, "DATA_DIR": str(tmp_path)}
    topology = topologies.Topology(rabbit.shared().prefix() if kind == "postgresql" else "none")
    if kind == "postgresql":
        environment |= {"AMQP_URL": rabbit.shared().url, "AMQP_PREFIX": topology.prefix, "CLUSTER_TOKEN": "t"}
        environment |= {"SECRET_KEYS": engines.SECRET_KEYS}
        async with await aio_pika.connect(rabbit.shared().url) as connection:
            await broker_connection.BrokerSession(connection, topology).open()
    store = database.open(clock)
    yield Place(name=request.param, database=database, store=store, environment=environment, topology=topology)
    await store.stop()


async def test_list_show_requeue_and_drop(place: Place) -> None:
    """Dead letters are listed with reasons, shown, requeued and dropped. The audit names the operator; secrets never reach the
    screen."""
    nothing = await place.run("list")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "Nothing is parked.\n")
    for id_ in ("a", "b", "c"):
        await place.park(id_)
    some = await place.run("list", "--limit", "2")
    table = some.out.splitlines()
    assert [len(line.split("\t")) for line in table] == [7, 7, 7]
    assert "1 newer messages are not listed: recorder parked list --limit 3" in some.err
    assert table[1].split("\t")[4] == "event.start"
    assert "UserSig=***" in table[1]
    first, second, third = await place.ids()
    shown = (await place.run("show", first)).out
    assert "Time: 2027-01-15 08:00:00+00:00" in shown
    assert '"RoomId": 88' in shown
    assert '"UserSig": "***"' in shown
    assert (await place.run("show", first, "--json")).json["Id"] == first
    assert (await place.run("requeue", first)).out == f"{first} event.start: requeued\n"
    assert await place.on_its_way() == ["a"]
    dropped = await place.run("drop", second, third, "--json")
    assert [json.loads(line)["Id"] for line in dropped.out.splitlines()] == [second, third]
    assert await place.ids() == []
    audit = (await cli_runner.inside(place.environment, "audit", "--json")).json["Audit"]
    said = [(line["Action"], line["Subject"], line["Outcome"]) for line in reversed(audit)]
    done = [("parked-requeue", first), ("parked-drop", second), ("parked-drop", third)]
    assert said == [(action, f"{id_} event.start", "ok") for action, id_ in done]
    assert all(line["Who"].startswith("cli ") for line in audit)


async def test_an_unknown_id(place: Place) -> None:
    """Every command ends with 4, also for a number that no database can hold."""
    for words in (("show", "x"), ("requeue", "row-7"), ("drop", "row-" + "9" * 30), ("drop", "0123456789ab")):
        answer = await place.run(*words)
        assert (answer.code, "no such" in answer.err.lower()) == (exits.NOT_FOUND, True), (words, answer.err)


async def test_exit_codes_of_failures(place: Place, tmp_path: Path) -> None:
    """Wrong settings end with 2, an unreachable broker or database with 3; no file is created and no password printed."""
    wrong = await place.run("list", DATABASE_URL="mysql://x")
    assert (wrong.code, "DATABASE_URL" in wrong.err) == (exits.USAGE, True)
    if place.name == "outbox-sqlite":
        away = await place.process("list", DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/none.db")
        assert not (tmp_path / "none.db").exists()
    elif place.name == "outbox-postgresql":
        away = await place.process("list", DATABASE_URL="postgresql+asyncpg://u:PLANTED@127.0.0.1:9/recorder")
    else:
        away = await place.process("list", AMQP_URL="amqp://u:PLANTED@127.0.0.1:9/")
    assert (away.code, away.out) == (exits.UNREACHABLE, "")
    assert len(away.err.splitlines()) == 1
