"""The delivery's state machine: one result to one URL, pending until delivered, failed, or cancelled by a newer
revision. A user may have any of them posted again. A manifest is delivered to the bucket by the same machine.

Rules: pure and total. The backoff follows Standard Webhooks. Only a 2xx response is success; a refusal that no retry cures, such
as 410, ends the delivery. All manifests of a session are one object: a newer one is written when no worker writes an older one,
so that the newest is written last.
"""

from __future__ import annotations

from dataclasses import dataclass

from machine import effects, internal_events, model, states

PENDING, DELIVERED, FAILED, CANCELLED = "pending", "delivered", "failed", "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryDecision:
    """The delivery's new version and the effects; or the reason why the event is ignored."""

    delivery: model.Delivery
    effects: tuple[effects.Effect, ...] = ()
    ignored: str = ""


def decide(
    delivery: model.Delivery,
    event: str,
    *,
    now_ms: int,
    policy: model.Policy,
    outcome: internal_events.DeliveryOutcome | None = None,
) -> DeliveryDecision:
    """Apply `event` to `delivery`: send, resend, cancel, retry-due, or the type of `outcome`."""
    if event == "resend":
        return _resend(delivery)
    if delivery.state != PENDING:
        return DeliveryDecision(delivery=delivery, ignored=f"it is {delivery.state} already")
    if event == "send":
        return _queue(delivery)
    if event == "cancel":
        if delivery.is_manifest and delivery.is_leased:
            return DeliveryDecision(delivery=delivery, ignored="a worker writes it; the newer one follows")
        return _end(delivery, CANCELLED, "a newer revision took its place")
    if event == "retry-due":
        waits = delivery.job is not None and delivery.job.state == states.WAITING
        return _release(delivery) if waits else DeliveryDecision(delivery=delivery, ignored="no job waits")
    if outcome is None or outcome.epoch != delivery.epoch:
        return DeliveryDecision(delivery=delivery, ignored="the outcome has an older epoch")
    if not isinstance(outcome, internal_events.WorkerLost):
        delivery = model.changed(delivery, posts=delivery.posts + 1, tried_ms=now_ms)
    match outcome:
        case internal_events.DeliveryFinished():
            return _end(delivery, DELIVERED, "")
        case internal_events.WorkerLost():
            return _lost(delivery, now_ms, policy.delivery_lost_backoff_ms)
        case internal_events.DeliveryFailure():
            detail = outcome.detail or outcome.reason
            if not outcome.retry or delivery.failures >= len(policy.delivery_backoff_ms):
                return _end(delivery, FAILED, detail)
            return _wait(delivery, detail, now_ms + policy.delivery_backoff_ms[delivery.failures], failures=delivery.failures + 1)


def _queue(delivery: model.Delivery) -> DeliveryDecision:
    job = model.Job(kind=states.DELIVERY, state=states.QUEUED)
    queued = model.changed(delivery, epoch=delivery.epoch + 1, job=job)
    return DeliveryDecision(delivery=queued, effects=(effects.Disarm("retry"), effects.Command("send-callback")))


def _resend(delivery: model.Delivery) -> DeliveryDecision:
    """Post again from the beginning of the schedule: one that has ended, or one that waits for a retry."""
    if delivery.is_leased:
        return DeliveryDecision(delivery=delivery, ignored="it is being posted at this moment")
    return _queue(model.changed(delivery, state=PENDING, failures=0, detail=""))


def _lost(delivery: model.Delivery, now_ms: int, backoff_ms: tuple[int, ...]) -> DeliveryDecision:
    """Send again, at once after the first loss. Failed posts and losses raise the epoch, and only posts are counted."""
    losses = max(0, delivery.epoch - 1 - max(delivery.failures, delivery.posts))
    pause_ms = backoff_ms[min(losses, len(backoff_ms) - 1)]
    if not pause_ms:
        return _queue(delivery)
    return _wait(delivery, f"{losses + 1} workers were lost before it was posted", now_ms + pause_ms, failures=delivery.failures)


def _release(delivery: model.Delivery) -> DeliveryDecision:
    job = model.Job(kind=states.DELIVERY, state=states.QUEUED)
    return DeliveryDecision(delivery=model.changed(delivery, job=job), effects=(effects.Command("send-callback"),))


def _wait(delivery: model.Delivery, detail: str, at_ms: int, *, failures: int) -> DeliveryDecision:
    job = model.Job(kind=states.DELIVERY, state=states.WAITING)
    waiting = model.changed(delivery, epoch=delivery.epoch + 1, failures=failures, detail=detail, job=job)
    return DeliveryDecision(delivery=waiting, effects=(effects.Arm("retry", at_ms),))


def _end(delivery: model.Delivery, state: str, detail: str) -> DeliveryDecision:
    return DeliveryDecision(
        delivery=model.changed(delivery, state=state, detail=detail, job=None), effects=(effects.Disarm("retry"),)
    )
