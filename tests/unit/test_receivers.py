"""Turns of deliveries: fair order, a share of the slots for each receiver, and the circuit breaker."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests import waiting
from worker import receivers

SLOTS = 16


class Posts:
    """Posts that last until the test answers them, and the order in which they began."""

    def __init__(self, turns: receivers.Receivers) -> None:
        self._turns = turns
        self.began: list[str] = []
        self.running: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._answers: dict[str, list[asyncio.Future[bool]]] = {}

    def send(self, name: str, times: int = 1) -> list[asyncio.Task[None]]:
        """Send this many deliveries to a receiver."""
        return [asyncio.create_task(self._send(name)) for _ in range(times)]

    async def _send(self, name: str) -> None:
        async with self._turns.turn(name) as turn:
            if turn.open:
                self.refused[name] += 1
                return
            self.began.append(name)
            self.running[name] += 1
            answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._answers.setdefault(name, []).append(answer)
            try:
                turn.answered = await answer
            finally:
                self.running[name] -= 1
                if answer.cancelled():
                    self._answers[name].remove(answer)

    def posting(self, name: str) -> int:
        """The number of posts to a receiver that wait for an answer."""
        return len(self._answers.get(name, ()))

    def answer(self, name: str, *, answered: bool = True) -> None:
        """End the oldest post to a receiver."""
        self._answers[name].pop(0).set_result(answered)


async def quiet() -> None:
    """Let all tasks run that can."""
    await waiting.passed(0.01)


async def cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel deliveries."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_slow_receiver_delays_no_other_one() -> None:
    """While thousands of deliveries wait for a receiver that never answers, those of 30 other users each begin at once."""
    posts = Posts(receivers.Receivers(SLOTS))
    slow = posts.send("slow", 3_000)
    await quiet()
    assert posts.running["slow"] == SLOTS // receivers.SHARE
    for number in range(30):
        (sent,) = posts.send(f"user-{number}")
        await quiet()
        posts.answer(f"user-{number}")
        await sent
    assert posts.running["slow"] == SLOTS // receivers.SHARE
    await cancelled(slow)


async def test_receivers_take_turns() -> None:
    """When all slots are taken, a freed one goes to the receivers in turn, however long their lines are."""
    posts = Posts(receivers.Receivers(receivers.SHARE))
    sent = [task for number in range(receivers.SHARE) for task in posts.send(f"slow-{number}", 50)]
    await quiet()
    sent += posts.send("late") + posts.send("later")
    await quiet()
    posts.began.clear()
    for number in range(2):
        posts.answer(f"slow-{number}")
        await quiet()
    assert posts.began == ["late", "later"]
    await cancelled(sent)


async def test_a_cancelled_delivery_leaves_the_line() -> None:
    """A delivery that is cancelled while it waits, or as it gets its slot, leaves the slot to the next."""
    posts = Posts(receivers.Receivers(1))
    (first,) = posts.send("a")
    await quiet()
    second, third, fourth = posts.send("a", 3)
    await quiet()
    second.cancel()
    posts.answer("a")
    await first
    third.cancel()
    await quiet()
    await waiting.until(lambda: posts.posting("a") == 1, what="the last delivery")
    posts.answer("a")
    await fourth
    (other,) = posts.send("b")
    await quiet()
    posts.answer("b")
    await other


async def test_many_cancelled_at_once_give_nothing_twice() -> None:
    """All deliveries of several receivers are cancelled in one turn of the event loop, as a stop or lost leases do: afterwards
    there are as many slots as before, and each receiver still has its share."""
    posts = Posts(receivers.Receivers(SLOTS))
    sent = [task for number in range(6) for task in posts.send(f"r{number}", 20)]
    await quiet()
    await cancelled(sent)
    assert [task for task in sent if not task.cancelled()] == []
    again = [task for number in range(12) for task in posts.send(f"r{number}", 5)]
    await quiet()
    assert sum(posts.running.values()) == SLOTS
    assert max(posts.running.values()) == SLOTS // receivers.SHARE
    await cancelled(again)


async def test_a_line_whose_only_delivery_is_cancelled_takes_no_turn() -> None:
    """A receiver waits for a slot, and its one waiting delivery is cancelled: the next free slot goes to another receiver."""
    posts = Posts(receivers.Receivers(receivers.SHARE))
    running = [task for number in range(receivers.SHARE) for task in posts.send(f"r{number}")]
    await quiet()
    (gone,) = posts.send("waits")
    (other,) = posts.send("other")
    await quiet()
    await cancelled([gone])
    posts.answer("r0")
    await quiet()
    assert posts.running["other"] == 1
    await cancelled([*running[1:], other])
    assert running[0].exception() is None


@pytest.fixture
def now() -> list[float]:
    """The time of the circuit breakers."""
    return [1_000.0]


async def test_a_receiver_that_does_not_answer_is_left_alone(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """After several failures in a row its deliveries fail without a connection; after a pause one tries again, and a longer pause
    follows. One answer closes the circuit."""
    monkeypatch.setattr(receivers, "FAILS_EVERY_S", 0.0)
    posts = Posts(receivers.Receivers(64, clock_s=lambda: now[0]))

    async def fail(times: int) -> None:
        for _ in range(times):
            (sent,) = posts.send("a")
            await waiting.until(lambda: posts.posting("a"), what="the post")
            posts.answer("a", answered=False)
            await sent

    async def refused(times: int = 1) -> None:
        before = posts.refused["a"]
        await asyncio.gather(*posts.send("a", times))
        assert posts.refused["a"] == before + times

    await fail(receivers.OPENS_AFTER)
    await refused(100)
    now[0] += receivers.OPEN_S * 1.3
    await fail(1)
    now[0] += receivers.OPEN_S * 1.3
    await refused()
    now[0] += receivers.OPEN_S * 2
    line = posts.send("a", 10)
    await waiting.until(lambda: posts.posting("a"), what="the next try")
    await quiet()
    assert posts.running["a"] == 1
    posts.answer("a")
    await waiting.until(lambda: posts.posting("a") > 1, what="the others, after the answer")
    for _ in range(9):
        await waiting.until(lambda: posts.posting("a"), what="each of them")
        posts.answer("a")
    await asyncio.gather(*line)
    assert "b" not in posts.refused


async def test_only_so_many_failures_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who names a new host that does not exist each time fills no memory."""
    monkeypatch.setattr(receivers, "MAX_REMEMBERED", 10)
    turns = receivers.Receivers(SLOTS)
    for number in range(100):
        async with turns.turn(f"host-{number}") as turn:
            turn.answered = False
    assert sum(map(len, (turns._failing, turns._receivers, turns._ready))) == 10
