"""Warnings of a start leave `show` as soon as something disproves them."""

from __future__ import annotations

from typing import Any

import pytest

from machine import model, start_warnings
from tests.unit.test_results import DONE, SESSION

PENDING = model.Delivery(task_id=DONE.task_id, revision=1, url="https://x", body="{}")
KEPT = "The result will be posted unsigned: the service has no CALLBACK_SECRET."
BEGUN = model.changed(DONE, state="Recording", first_packet_ms=5, url="")
CASES: list[tuple[str, dict[str, Any], list[model.Recording], list[model.Delivery]]] = [
    (start_warnings.NO_CALLBACKS, {"published": True}, [], []),
    (start_warnings.EXPIRED_USER_SIG, {}, [BEGUN], []),
    (start_warnings.BUCKET_HIDDEN, {}, [DONE], []),
    (start_warnings.BUCKET_UNCHECKED, {}, [DONE], []),
    (start_warnings.CALLBACK, {}, [], [model.changed(PENDING, state="delivered")]),
]


@pytest.mark.parametrize(("beginning", "changes", "recordings", "deliveries"), CASES)
def test_a_warning_holds_until_it_is_disproved(
    beginning: str, changes: dict[str, Any], recordings: list[model.Recording], deliveries: list[model.Delivery]
) -> None:
    """It is there while nothing speaks against it, also while its own subject is under way, and gone afterwards; others stay."""
    session = model.changed(SESSION, warnings=(f"{beginning} …", KEPT))
    waiting = [model.changed(BEGUN, first_packet_ms=None)]
    assert start_warnings.holding(session, waiting, [PENDING]) == [f"{beginning} …", KEPT]
    assert start_warnings.holding(model.changed(session, **changes), recordings, deliveries) == [KEPT]
