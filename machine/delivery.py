"""The delivery of one result to one URL: pending until delivered, failed for good, or cancelled by a newer revision. Pure.

May import `machine`. Rule: the schedule is that of Standard Webhooks; 2xx only is success, 410 and other refusals for good end
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from machine import effects, model, states

PENDING, DELIVERED, FAILED, CANCELLED = "pending", "delivered", "failed", "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The callback as it is to be, what is to be done, or why nothing happens."""

    delivery: model.Delivery
    effects: tuple[effects.Effect, ...] = ()
    ignored: str = ""


def decide(
    delivery: model.Delivery, event: str, *, now_ms: int, policy: model.Policy, data: Mapping[str, Any] | None = None
) -> Decision:
    """What `event` (send, cancel, retry-due, callback-finished, callback-failed, worker-lost) makes of `callback`. Total."""
    data = data or {}
    if delivery.state != PENDING:
        return Decision(delivery=delivery, ignored=f"it is {delivery.state} already")
    if event == "send":
        return _queue(delivery)
    if event == "cancel":
        return _end(delivery, CANCELLED, "a newer revision took its place")
    if event == "retry-due":
        waits = delivery.job is not None and delivery.job.state == states.WAITING
        return _release(delivery) if waits else Decision(delivery=delivery, ignored="nothing waits")
    if data.get("Epoch") != delivery.epoch:
        return Decision(delivery=delivery, ignored="an older epoch speaks")
    if event == "callback-finished":
        return _end(delivery, DELIVERED, "")
    if event == "worker-lost":
        return _queue(delivery)
    if event != "callback-failed":
        return Decision(delivery=delivery, ignored=f"{event} says nothing about a callback")
    detail = str(data.get("Detail") or data.get("Reason") or "")
    if not data.get("Retry") or delivery.failures >= len(policy.delivery_backoff_ms):
        return _end(delivery, FAILED, detail)
    return _wait(delivery, detail, now_ms + policy.delivery_backoff_ms[delivery.failures])


def _queue(delivery: model.Delivery) -> Decision:
    job = model.Job(kind=states.CALLBACK, state=states.QUEUED)
    queued = replace(delivery, epoch=delivery.epoch + 1, job=job)
    return Decision(delivery=queued, effects=(effects.Disarm("retry"), effects.Command("send-callback")))


def _release(delivery: model.Delivery) -> Decision:
    job = model.Job(kind=states.CALLBACK, state=states.QUEUED)
    return Decision(delivery=replace(delivery, job=job), effects=(effects.Command("send-callback"),))


def _wait(delivery: model.Delivery, detail: str, at_ms: int) -> Decision:
    job = model.Job(kind=states.CALLBACK, state=states.WAITING)
    waiting = replace(delivery, epoch=delivery.epoch + 1, failures=delivery.failures + 1, detail=detail, job=job)
    return Decision(delivery=waiting, effects=(effects.Arm("retry", at_ms),))


def _end(delivery: model.Delivery, state: str, detail: str) -> Decision:
    return Decision(delivery=replace(delivery, state=state, detail=detail, job=None), effects=(effects.Disarm("retry"),))
