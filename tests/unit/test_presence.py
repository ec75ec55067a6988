"""Presence by TRTC's callbacks: the result depends on the set of reports, not on their order or number."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from machine import presence

TIMES = st.integers(1, 6)
REPORTS = st.one_of(
    st.builds(presence.switched, st.sampled_from(presence.KINDS), st.booleans(), TIMES),
    st.builds(presence.left, TIMES),
)


def all_of(reports: list[presence.Known]) -> presence.Known:
    """Reports, merged one after the other."""
    return functools.reduce(presence.merged, reports, presence.ABSENT)


@given(st.lists(REPORTS, max_size=8), st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(reports: list[presence.Known], chance: object) -> None:
    """Any order of the reports, with repeats, gives the same presence."""
    shuffled = reports * 2
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert all_of(shuffled) == all_of(reports)


@given(st.lists(REPORTS, max_size=8), st.integers(0, 8))
def test_parts_may_be_merged_first(reports: list[presence.Known], at: int) -> None:
    """Batches that were merged on their own, on any node, give the same presence together."""
    assert presence.merged(all_of(reports[:at]), all_of(reports[at:])) == all_of(reports)


@given(st.lists(REPORTS, max_size=8), st.sampled_from(presence.KINDS))
def test_a_track_is_on_if_nothing_ended_it_since(reports: list[presence.Known], kind: str) -> None:
    """A track is on if its newest report says so and the user has not left since, or at the same time."""
    about = [each for each in reports if each[f"{kind}_ms"]]
    newest_ms = max((each[f"{kind}_ms"] for each in about), default=0)
    left_ms = max((each["left_ms"] for each in reports), default=0)
    on = any(each[kind] for each in about if each[f"{kind}_ms"] == newest_ms)
    assert all_of(reports)[kind] == (on and newest_ms > left_ms)
