"""Traces: spans of requests, decisions, messages and jobs, in the notation of W3C Trace Context.

Rules: nothing is traced until `use` gets a maker of spans, and a span costs next to nothing until then. A span's parent is that
of this task; `parent` counts where the task has none, because a message or another process brought it. Messages carry the
parent on in any case, so that a node without tracing interrupts no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Value = str | int
Make = Callable[[str, str, str, dict[str, Value]], AbstractContextManager[str]]
"""(name, kind, parent, attributes) → a span; kind is server, consumer, producer or internal. The span gives its own notation."""
Note = Callable[[dict[str, Value]], None]
"""Adds attributes to the span of this task."""

_make: Make | None = None
_note: Note | None = None


def use(make: Make | None, note: Note | None) -> None:
    """Trace by these from now on; None: trace nothing."""
    global _make, _note
    _make, _note = make, note


def span(name: str, kind: str = "internal", parent: str = "", **attributes: Value) -> AbstractContextManager[str]:
    """A span for a `with` block, which gets the traceparent for what follows from it. Without tracing that is `parent`."""
    return nullcontext(parent) if _make is None else _make(name, kind, parent, attributes)


def note(attributes: dict[str, Value]) -> None:
    """Add attributes to the span of this task, if there is one."""
    if _note is not None:
        _note(attributes)
