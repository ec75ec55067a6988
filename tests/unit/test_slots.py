"""Slots of a worker, from its settings."""

from __future__ import annotations

import pytest

from assembly import slots
from config import settings as settings_module


@pytest.mark.parametrize(("follow", "transcodes"), [("true", 3 + slots.FOLLOWED_PER_CPU * 2), ("false", 3)])
def test_operators_see_each_kind_of_job_once(monkeypatch: pytest.MonkeyPatch, follow: str, transcodes: int) -> None:
    """The ends of followed recordings count among the transcodes, and only where recordings are followed."""
    monkeypatch.setattr("worker.cpu_usage.usable", lambda: 2.0)
    given = {"HOME": "/home/op", "TRANSCODES": "3", "UPLOADS": "5", "DELIVERIES": "7", "FOLLOW": follow}
    assert slots.by_kind(settings_module.load(given)) == {"transcode": transcodes, "upload": 5, "callback": 7}
