"""Level of the dead letter queue: how full it is, for `/readyz`, `recorder doctor` and the log.

Rule: the queue has a limit, because a publisher of invalid messages must not fill the broker's disk. At the limit the broker
refuses further dead letters, and nothing is dropped: a refused message is retried or stays in its queue. A queue that an earlier
version declared has no limit, and only a policy of the broker can add one.
"""

from __future__ import annotations

import asyncio

from bus import topology as topologies

WARN_FROM = topologies.PARKED_MESSAGES * 8 // 10
REFUSAL_COUNTS_S = 300.0


class DeadLetterLevel:
    """What a node knows of the queue. `limited` is None until its declaration, `count` until its first check."""

    def __init__(self, name: str, *, limited: bool | None = None, count: int | None = None) -> None:
        self._name = name
        self.limited = limited
        self.count = count
        self._refused_s: float | None = None

    def note_refusal(self) -> None:
        """Note that the broker refused a dead letter: the queue is full."""
        self._refused_s = asyncio.get_running_loop().time()

    @property
    def refused(self) -> bool:
        """Whether the broker refused a dead letter lately."""
        return self._refused_s is not None and asyncio.get_running_loop().time() - self._refused_s < REFUSAL_COUNTS_S

    def warnings(self, *, refused: bool) -> list[str]:
        """What the operator must do, each with its command; [] if nothing."""
        found, limit = [], topologies.PARKED_MESSAGES
        if refused or (self.limited and self.count is not None and self.count >= limit):
            found.append(f"{self._name} is full: messages that cannot be handled come back and take slots. {_CLEAR}")
        elif self.count is not None and self.count >= WARN_FROM:
            found.append(f"{self._name} holds {self.count} messages, {limit} are allowed. {_CLEAR}")
        if self.limited is False:
            found.append(
                f"{self._name} has no limit of its own: an earlier version declared it. {policy(self._name)} The warning stays"
                " until the queue is emptied and deleted; the next start declares it with its limit."
            )
        return found


_CLEAR = "`recorder parked list` shows them, `recorder parked requeue` and `drop` remove them."


def policy(name: str) -> str:
    """How to limit a queue that exists."""
    definition = f'{{"max-length-bytes": {topologies.PARKED_BYTES}, "overflow": "reject-publish"}}'
    pattern = "^" + name.replace(".", r"\.") + "$"
    return f"Limit it: rabbitmqctl set_policy --apply-to queues {name} '{pattern}' '{definition}'"
