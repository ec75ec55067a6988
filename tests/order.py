"""The order of a parallel test run: tests that wait for live rooms come first in each process's share.

Rule: a process that has run its share takes half of another's rest, from its end. The tests there should be short, or the last
process has minutes of work while the others are idle. Tests that load the whole machine are in one share, one after the other,
because two at once would measure each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def shared(
    items: Sequence[Item], shares: int, is_long: Callable[[Item], bool], is_heavy: Callable[[Item], bool] = lambda _: False
) -> list[Item]:
    """`items` so that each of `shares` equal parts begins with as many of the long ones, but the first with the heavy ones and
    none else of the long ones; the rest keeps its order."""
    heavy = [item for item in items if is_heavy(item)]
    long = [item for item in items if is_long(item) and item not in heavy]
    short = [item for item in items if item not in heavy and item not in long]
    without = 1 if heavy and shares > 1 else 0
    ordered: list[Item] = []
    for share in range(shares):
        size = (len(items) - len(ordered)) // (shares - share)
        mine = [] if share < without else long[share - without :: shares - without]
        mine = [*heavy, *mine] if share == 0 else mine
        taken = max(0, size - len(mine))
        ordered += [*mine, *short[:taken]]
        short = short[taken:]
    return [*ordered, *short]


def processes() -> int:
    """How many processes share the run (pytest-xdist says so to each of them)."""
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
