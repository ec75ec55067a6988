"""The distribution of a run over processes."""

from __future__ import annotations

import pytest

from tests import order


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 20, 23])
def test_every_share_begins_with_what_takes_long(shares: int, count: int) -> None:
    """No test is lost or doubled, equal parts have equally many long tests, and these come first."""
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


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_what_is_heavy_is_in_one_share(shares: int) -> None:
    """A heavy test comes first in its share, without other long tests; the other shares have equally many of those."""
    items = list(range(40))
    ordered = order.shared(items, shares, lambda item: item % 4 == 0, lambda item: item in (8, 11, 12))
    assert sorted(ordered) == items
    assert ordered[:3] == [8, 11, 12]
    begin, counts = 0, []
    for share in range(shares):
        end = begin + (len(items) - begin) // (shares - share)
        counts.append(sum(item % 4 == 0 and item not in (8, 12) for item in ordered[begin:end]))
        begin = end
    assert sum(counts) == 8
    assert shares == 1 or counts[0] == 0
    assert max(counts[1:], default=0) - min(counts[1:], default=0) <= 1
