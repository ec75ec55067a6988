"""Warnings of a start: how each begins, and until when it holds.

Rules: a text begins with one of these, wherever it is written, so that a later look knows it again. A repeated start replaces the
warnings of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from machine import delivery, model, states

NO_CALLBACKS = "No callback of application"
EXPIRED_USER_SIG = "The UserSig has expired"
BUCKET_HIDDEN = "The key may not look at the bucket"
BUCKET_UNCHECKED = "The bucket could not be checked"
CALLBACK = "Callback:"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    published: bool  # a speaker is known, by whatever way
    captured: bool  # a pull brought media
    uploaded: bool  # an object is in the bucket
    delivered: bool  # the receiver accepted a result


_DISPROVED: dict[str, Callable[[_Facts], bool]] = {
    NO_CALLBACKS: lambda facts: facts.published,
    EXPIRED_USER_SIG: lambda facts: facts.captured,
    BUCKET_HIDDEN: lambda facts: facts.uploaded,
    BUCKET_UNCHECKED: lambda facts: facts.uploaded,
    CALLBACK: lambda facts: facts.delivered,
}


def holding(session: model.Session, recordings: Iterable[model.Recording], deliveries: Iterable[model.Delivery]) -> list[str]:
    """The warnings of a session that nothing has disproved since. `recordings` and `deliveries` are its own."""
    known = list(recordings)
    facts = _Facts(
        published=session.published,
        captured=any(r.first_packet_ms for r in known),
        uploaded=any(r.state == states.DONE or r.delivered for r in known),
        delivered=any(d.state == delivery.DELIVERED for d in deliveries),
    )
    gone = tuple(beginning for beginning, disproved in _DISPROVED.items() if disproved(facts))
    return [warning for warning in session.warnings if not warning.startswith(gone)]
