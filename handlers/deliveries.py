"""Deliveries in a unit of work: begin, advance and cancel those of results, events and manifests.

Rules: as for the unit of work. The secrets of a session stay until its manifest is written or given up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from machine import delivery, effects, internal_events, model

if TYPE_CHECKING:
    from handlers import unit_of_work


def advance(
    uow: unit_of_work.UnitOfWork,
    value: model.Delivery,
    trigger: str,
    outcome: internal_events.DeliveryOutcome | None = None,
) -> delivery.DeliveryDecision:
    """Trigger a delivery and note the decision."""
    decision = delivery.decide(value, trigger, now_ms=uow.now_ms, policy=uow.context.policy, outcome=outcome)
    if decision.ignored:
        uow.journal(value.key, value.state, value.state, f"ignored: {trigger}: {decision.ignored}")
        return decision
    newer = _waiting_for(uow, value) if outcome is not None and value.is_manifest else None
    if newer is not None and decision.delivery.state == delivery.PENDING:
        decision = delivery.decide(decision.delivery, "cancel", now_ms=uow.now_ms, policy=uow.context.policy)
    _save(uow, value, decision)
    uow.journal(value.key, value.state, decision.delivery.state, decision.delivery.detail)
    if newer is not None:
        advance(uow, newer, "send")
    elif value.is_manifest and decision.delivery.state in (delivery.DELIVERED, delivery.FAILED):
        uow.wipe_secrets(value.task_id)
    return decision


def begin(uow: unit_of_work.UnitOfWork, current: model.Session, number: int, body: str) -> None:
    """Post a result or an event to the callback URL."""
    new = model.Delivery(task_id=current.task_id, revision=number, url=current.request.callback, body=body)
    _save(uow, None, delivery.decide(new, "send", now_ms=uow.now_ms, policy=uow.context.policy))


def replace(uow: unit_of_work.UnitOfWork, current: model.Session, body: str) -> None:
    """Deliver the result of a session's newest revision, in the place of everything that its receiver has not accepted yet."""
    pending = uow.snapshot.pending_deliveries(current.task_id) if current.revision > 1 or current.events_posted else ()
    for older in pending:
        advance(uow, older, "cancel")
    if current.request.callback:
        begin(uow, current, current.revision, body)
    if current.request.manifest or uow.context.policy.manifest:
        _begin_manifest(uow, current, pending)
    else:
        uow.wipe_secrets(current.task_id)


def _begin_manifest(uow: unit_of_work.UnitOfWork, current: model.Session, older: Iterable[model.Delivery]) -> None:
    """Write the manifest of the newest revision; if a worker writes an older one, once that has ended."""
    url = uow.context.manifest_url(current.request, current.task_id)
    new = model.Delivery(task_id=current.task_id, revision=model.MANIFESTS_FROM + current.revision, url=url, body="")
    decision = delivery.decide(new, "send", now_ms=uow.now_ms, policy=uow.context.policy)
    waits = any(each.is_manifest and each.is_leased for each in older)
    _save(uow, None, delivery.DeliveryDecision(delivery=new) if waits else decision)


def _waiting_for(uow: unit_of_work.UnitOfWork, value: model.Delivery) -> model.Delivery | None:
    """The manifest that waits for the end of this one."""
    pending = uow.snapshot.pending_deliveries(value.task_id)
    return next((each for each in pending if each.is_manifest and each.revision > value.revision), None)


def _save(uow: unit_of_work.UnitOfWork, old: model.Delivery | None, decision: delivery.DeliveryDecision) -> None:
    new = decision.delivery
    uow.changes.deliveries[new.key] = (old, model.changed(new, version=old.version + 1) if old else new)
    for effect in decision.effects:
        match effect:
            case effects.Command(type_):
                data = {"TaskId": new.task_id, "Revision": new.revision, "Epoch": new.epoch}
                uow.send("command", type_, data, new.key)
            case _:
                uow.apply_deadline(new.key, effect)
