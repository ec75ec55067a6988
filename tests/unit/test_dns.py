"""DNS look-ups of untrusted names run in threads of their own: slow name servers delay nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from machine import errors
from tests import waiting
from webhook import dns
from webhook import sender as sender_module

REAL = socket.getaddrinfo


class Slow:
    """Names under `.slow` block until `go`; the others resolve as usual."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, *args: Any, **named: Any) -> Any:
        if not host.endswith(".slow"):
            return REAL(host, *args, **named)
        self.asked.append(host)
        assert self.go.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """A system resolver that blocks for some names."""
    one = Slow()
    monkeypatch.setattr(socket, "getaddrinfo", one.getaddrinfo)
    yield one
    one.go.set()


async def test_slow_names_hold_up_nothing_else(slow: Slow) -> None:
    """Four times as many unresolvable URLs as threads all time out. Other threads keep working, and an abandoned look-up that has
    not started is skipped."""
    sender = sender_module.WebhookSender(timeout_s=0.2)

    async def send(number: int) -> str:
        with pytest.raises(errors.DeliveryFailed) as caught:
            await sender.send(f"http://n{number}.slow/", b"{}", webhook_id="1", now_s=1)
        return caught.value.reason

    sent = asyncio.gather(*(send(number) for number in range(4 * dns.THREADS)))
    reasons = await asyncio.wait_for(sent, waiting.limit_s(10))
    assert set(reasons) == {"timeout"}
    assert len(slow.asked) == dns.THREADS
    async with waiting.at_most(10):
        beside = await asyncio.gather(*(asyncio.to_thread(threading.get_ident) for _ in range(50)))
    assert all(beside)
    slow.go.set()
    # The threads are free again, and abandoned look-ups are skipped.
    with pytest.raises(errors.DeliveryFailed) as caught:
        await sender_module.WebhookSender(timeout_s=10).send("http://again.slow/", b"{}", webhook_id="1", now_s=1)
    assert caught.value.reason == "network"
    assert len(slow.asked) == dns.THREADS + 1


async def test_a_receiver_is_not_blamed_for_a_lookup_that_never_began(slow: Slow) -> None:
    """While the lookups of one receiver occupy all threads, another one is not tried: its failure says so."""
    sender = sender_module.WebhookSender(timeout_s=0.5)

    async def failure(host: str) -> errors.DeliveryFailed:
        with pytest.raises(errors.DeliveryFailed) as caught:
            await sender.send(f"http://{host}/", b"{}", webhook_id="1", now_s=1)
        return caught.value

    guilty = [asyncio.create_task(failure(f"n{number}.slow")) for number in range(dns.THREADS)]
    await waiting.until(lambda: len(slow.asked) == dns.THREADS, what="all threads")
    innocent = await failure("innocent.example")
    assert (innocent.reason, innocent.retry, innocent.tried) == ("timeout", True, False)
    assert "not tried" in innocent.detail
    async with waiting.at_most(10):
        assert [each.tried for each in await asyncio.gather(*guilty)] == [True] * dns.THREADS


async def test_a_name_leads_where_the_system_says() -> None:
    """Each address comes with its family, as numbers; a name without addresses, or an invalid one, is a network error."""
    resolver = dns.Resolver()
    found = await resolver.resolve("localhost", 80, socket.AF_INET)
    assert {(each["host"], each["port"], each["family"]) for each in found} == {("127.0.0.1", 80, socket.AF_INET)}
    for nowhere in ("nowhere.invalid", "a..b", "x" * 64 + ".example"):
        with pytest.raises(socket.gaierror):
            await resolver.resolve(nowhere, 80)


async def test_a_service_may_end_while_a_name_is_looked_up(slow: Slow) -> None:
    """An answer for a closed event loop is dropped; the thread continues, and keeps no process from ending."""
    resolver = dns.Resolver()

    def other() -> None:
        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(resolver.resolve("one.slow"), 0.05)

        asyncio.run(give_up())

    await asyncio.to_thread(other)
    slow.go.set()
    assert (await asyncio.wait_for(resolver.resolve("127.0.0.1"), waiting.limit_s(10)))[0]["host"] == "127.0.0.1"
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "resolving")
