"""Slots of a worker by kind of job, as its heartbeat and its metrics report them."""

from __future__ import annotations

from pathlib import Path

import pytest

from assembly import slots
from config import settings
from machine import states


@pytest.mark.parametrize("follow", [False, True])
def test_followed_ends_count_as_transcodes(tmp_path: Path, follow: bool) -> None:
    """A worker that follows has more slots for transcodes; there is no kind of its own for the ends of followed recordings."""
    found = slots.by_kind(settings.load({"HOME": str(tmp_path), "TRANSCODES": "2", "FOLLOW": str(follow)}))
    assert found.keys() == {states.TRANSCODE, states.UPLOAD, states.DELIVERY}
    assert (found[states.TRANSCODE] > 2) == follow
