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

    callback: model.Callback
    effects: tuple[effects.Effect, ...] = ()
    ignored: str = ""


def decide(
    callback: model.Callback, event: str, *, now_ms: int, policy: model.Policy, data: Mapping[str, Any] | None = None
) -> Decision:
    """What `event` (send, cancel, retry-due, callback-finished, callback-failed, worker-lost) makes of `callback`. Total."""
    data = data or {}
    if callback.state != PENDING:
        return Decision(callback=callback, ignored=f"it is {callback.state} already")
    if event == "send":
        return _queue(callback)
    if event == "cancel":
        return _end(callback, CANCELLED, "a newer revision took its place")
    if event == "retry-due":
        waits = callback.job is not None and callback.job.state == states.WAITING
        return _release(callback) if waits else Decision(callback=callback, ignored="nothing waits")
    if data.get("Epoch") != callback.epoch:
        return Decision(callback=callback, ignored="an older epoch speaks")
    if event == "callback-finished":
        return _end(callback, DELIVERED, "")
    if event == "worker-lost":
        return _queue(callback)
    if event != "callback-failed":
        return Decision(callback=callback, ignored=f"{event} says nothing about a callback")
    detail = str(data.get("Detail") or data.get("Reason") or "")
    if not data.get("Retry") or callback.tries >= len(policy.callback_pauses_ms):
        return _end(callback, FAILED, detail)
    return _wait(callback, detail, now_ms + policy.callback_pauses_ms[callback.tries])


def _queue(callback: model.Callback) -> Decision:
    job = model.Job(kind=states.CALLBACK, state=states.QUEUED)
    queued = replace(callback, epoch=callback.epoch + 1, job=job)
    return Decision(callback=queued, effects=(effects.Disarm("retry"), effects.Command("send-callback")))


def _release(callback: model.Callback) -> Decision:
    job = model.Job(kind=states.CALLBACK, state=states.QUEUED)
    return Decision(callback=replace(callback, job=job), effects=(effects.Command("send-callback"),))


def _wait(callback: model.Callback, detail: str, at_ms: int) -> Decision:
    job = model.Job(kind=states.CALLBACK, state=states.WAITING)
    waiting = replace(callback, epoch=callback.epoch + 1, tries=callback.tries + 1, detail=detail, job=job)
    return Decision(callback=waiting, effects=(effects.Arm("retry", at_ms),))


def _end(callback: model.Callback, state: str, detail: str) -> Decision:
    return Decision(callback=replace(callback, state=state, detail=detail, job=None), effects=(effects.Disarm("retry"),))
