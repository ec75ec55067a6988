"""The values of decisions: a changed copy equals the one that dataclasses would make."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from machine import model
from tests import examples

VALUES = (
    (examples.recording(output=model.Output(duration_ms=1, size_bytes=2)), {"state": "Failed", "job": None, "present": False}),
    (examples.session(), {"state": "Closing", "closing_ms": 5}),
    (model.Delivery(task_id=examples.TASK, revision=1, url="http://x/", body="{}"), {"state": "failed", "failures": 3}),
)


@pytest.mark.parametrize(("value", "changes"), VALUES)
def test_a_changed_copy(value: Any, changes: dict[str, Any]) -> None:
    """`changed` equals dataclasses.replace, leaves the old value untouched, and refuses an unknown field."""
    before = dataclasses.asdict(value)
    assert model.changed(value, **changes) == dataclasses.replace(value, **changes)
    assert dataclasses.asdict(value) == before
    with pytest.raises(TypeError):
        model.changed(value, speed=1)
