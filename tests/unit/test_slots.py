"""Slots of a worker, from its settings and from the CPUs that it may use."""

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


@pytest.mark.parametrize(
    ("cpus", "transcodes", "uploads", "deliveries"),
    [(0.5, 1, 4, 64), (1.0, 1, 4, 64), (2.5, 3, 6, 96), (16.0, 16, 32, 512)],
)
def test_unset_slots_follow_from_the_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: float, transcodes: int, uploads: int, deliveries: int
) -> None:
    """A worker whose slots are not set takes one transcode for each CPU, and a part of a CPU counts as a whole one. It takes two
    uploads and 32 deliveries for each CPU, and never fewer than 4 and 64."""
    monkeypatch.setattr("worker.cpu_usage.usable", lambda: cpus)
    settings = settings_module.load({"HOME": "/home/op", "FOLLOW": "false"})
    assert slots.by_kind(settings) == {"transcode": transcodes, "upload": uploads, "callback": deliveries}
    assert slots.whole(settings) == transcodes
