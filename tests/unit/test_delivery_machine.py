"""The delivery of a result: its states, its schedule, and its cancellation by a newer revision."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine import delivery, effects, internal_events, model

NOW_MS = 1_800_000_000_000
POLICY = model.Policy()
EVENTS = ("send", "resend", "cancel", "retry-due", "callback-finished", "callback-failed", "worker-lost")
HOUR_S = 3_600
SCHEDULE_S = (5, 300, 1_800, *(h * HOUR_S for h in (2, 5, 10, 14, 20, 24)))
Outcome = internal_events.DeliveryOutcome
PLAIN = model.Delivery(task_id="T", revision=2, url="https://x/", body="{}", epoch=4)


def _outcome(event: str, epoch: int, reason: str = "status", detail: str = "", retry: bool = True) -> Outcome | None:
    match event:
        case "callback-finished":
            return internal_events.DeliveryFinished(epoch=epoch)
        case "callback-failed":
            return internal_events.DeliveryFailure(epoch=epoch, reason=reason, retry=retry, detail=detail)
        case "worker-lost":
            return internal_events.WorkerLost(owner="T#2", epoch=epoch, node="n1")
    return None


def _decide(value: model.Delivery, event: str, **values: Any) -> delivery.DeliveryDecision:
    outcome = _outcome(event, **{"epoch": value.epoch, **values})
    return delivery.decide(value, event, now_ms=NOW_MS, policy=POLICY, outcome=outcome)


def _with_job(state: str, **changes: Any) -> model.Delivery:
    return dataclasses.replace(PLAIN, job=model.Job(kind="callback", state=state), **changes)


def test_the_schedule_is_the_standard_one() -> None:
    """A delivery is sent immediately, then retried after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h, then fails:
    each try under a new epoch."""
    value = _decide(dataclasses.replace(PLAIN, epoch=0), "send").delivery
    pauses_s, epochs = [], [value.epoch]
    while value.state == "pending":
        got = _decide(value, "callback-failed", reason="status", detail="500")
        pauses_s += [(e.at_ms - NOW_MS) // 1_000 for e in got.effects if isinstance(e, effects.Arm)]
        value = got.delivery
        if value.state == "pending":
            released = _decide(value, "retry-due")
            assert released.effects == (effects.Command("send-callback"),)
            value = released.delivery
            epochs.append(value.epoch)
    assert tuple(pauses_s) == SCHEDULE_S
    assert epochs == sorted(set(epochs))
    assert (value.state, value.detail, value.job) == ("failed", "500", None)


def test_success_ends_it() -> None:
    """After a success the delivery is delivered, and no retry is armed."""
    got = _decide(_with_job("leased", failures=3), "callback-finished")
    assert (got.delivery.state, got.delivery.job, got.effects) == ("delivered", None, (effects.Disarm("retry"),))


def test_a_refusal_for_good_ends_it() -> None:
    """A fatal refusal (410) fails the delivery immediately, with the reason."""
    got = _decide(_with_job("leased"), "callback-failed", reason="gone", retry=False)
    assert (got.delivery.state, got.delivery.detail) == ("failed", "gone")


@pytest.mark.parametrize("job", ["waiting", "queued", "leased"])
def test_a_newer_revision_cancels_it(job: str) -> None:
    """An undelivered older revision is cancelled, whatever the state of its job."""
    got = _decide(_with_job(job), "cancel")
    assert (got.delivery.state, got.delivery.job) == ("cancelled", None)


def test_a_lost_worker_costs_no_try() -> None:
    """After the sender died, the delivery is sent again immediately under a new epoch, and the schedule keeps its place."""
    got = _decide(_with_job("leased", failures=PLAIN.epoch - 1), "worker-lost")
    assert (got.delivery.failures, got.delivery.epoch) == (PLAIN.epoch - 1, PLAIN.epoch + 1)
    assert effects.Command("send-callback") in got.effects


def test_repeated_losses_back_off() -> None:
    """A delivery that loses one worker after the other waits longer each time, but it never fails for that, and the schedule of
    failed posts keeps its place."""
    value = _decide(dataclasses.replace(PLAIN, epoch=0), "send").delivery
    failed = _decide(value, "callback-failed").delivery
    value = _decide(failed, "retry-due").delivery
    pauses_s = []
    for _ in range(20):
        got = _decide(value, "worker-lost")
        pauses_s += [(e.at_ms - NOW_MS) // 1_000 for e in got.effects if isinstance(e, effects.Arm)] or [0]
        assert (got.delivery.state, got.delivery.failures) == ("pending", 1)
        value = _decide(got.delivery, "retry-due").delivery if pauses_s[-1] else got.delivery
    assert pauses_s == [0, 5, 30, *(300,) * 17]
    after = _decide(value, "callback-failed", reason="status")
    assert [(e.at_ms - NOW_MS) // 1_000 for e in after.effects if isinstance(e, effects.Arm)] == [SCHEDULE_S[1]]


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(("delivered", "failed", "cancelled"), [e for e in EVENTS if e != "resend"]))
)
def test_what_is_over_stays_over(state: str, event: str) -> None:
    """No event but a resend moves a delivery that has ended."""
    value = dataclasses.replace(PLAIN, state=state)
    got = _decide(value, event)
    assert got.ignored
    assert (got.delivery, got.effects) == (value, ())


@pytest.mark.parametrize("event", ["callback-finished", "callback-failed", "worker-lost"])
def test_an_older_epoch_is_ignored(event: str) -> None:
    """Outcomes of a superseded sender are ignored."""
    value = _with_job("leased")
    got = _decide(value, event, epoch=value.epoch - 1)
    assert got.ignored
    assert got.delivery == value


@given(
    st.sampled_from(EVENTS),
    st.sampled_from(("pending", "delivered", "failed", "cancelled")),
    st.none() | st.sampled_from(("waiting", "queued", "leased")),
    st.integers(0, 20),
    st.integers(3, 5),
    st.text(max_size=5),
    st.booleans(),
)
def test_a_decision_is_pure_and_never_raises(
    event: str, state: str, job: str | None, failures: int, epoch: int, reason: str, retry: bool
) -> None:
    """Any event gives a decision, the same one twice; an ended delivery has no job; epochs only grow."""
    value = dataclasses.replace(_with_job(job) if job else PLAIN, state=state, failures=failures)
    outcome = _outcome(event, epoch, reason, retry=retry)
    got = delivery.decide(value, event, now_ms=NOW_MS, policy=POLICY, outcome=outcome)
    assert delivery.decide(value, event, now_ms=NOW_MS, policy=POLICY, outcome=outcome) == got
    assert got.delivery.epoch >= value.epoch
    assert got.delivery.state == "pending" or got.delivery.job is None or got.ignored


@pytest.mark.parametrize("state", ["delivered", "failed", "cancelled", "pending"])
def test_a_resend_begins_the_schedule_again(state: str) -> None:
    """Whatever became of a delivery, it is posted under a new epoch, with all retries, unless it is being posted already."""
    value = dataclasses.replace(_with_job("waiting"), state=state, failures=9, posts=10, detail="500")
    got = _decide(value, "resend")
    assert (got.delivery.state, got.delivery.epoch, got.delivery.failures) == ("pending", 5, 0)
    assert effects.Command("send-callback") in got.effects
    again = _decide(got.delivery, "callback-failed", detail="502")
    assert (again.delivery.state, again.delivery.posts, again.delivery.tried_ms) == ("pending", 11, NOW_MS)
    assert _decide(_with_job("leased"), "resend").ignored
