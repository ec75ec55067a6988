"""How a run is shared among processes."""

from __future__ import annotations

import pytest

from tests import order


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 20, 23])
def test_every_share_begins_with_what_takes_long(shares: int, count: int) -> None:
    """Nothing is lost or doubled, equal parts hold equally many of the long ones, and they come first."""
    items = list(range(count))
    ordered = order.shared(items, shares, lambda item: item % 4 == 0)
    assert sorted(ordered) == items
    begin = 0
    for share in range(shares):
        end = begin + (count - begin) // (shares - share)
        long = [item % 4 == 0 for item in ordered[begin:end]]
        assert long == sorted(long, reverse=True)
        assert abs(sum(long) - sum(item % 4 == 0 for item in items) / shares) <= 1
        begin = end
