"""Outcomes as release 0.1.0 understands them: without the fields that came after it.

Rule: 0.1.0 parks a message with an unknown field, so nodes that share a broker with it leave these fields out. Later versions
ignore unknown fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from events import codec

# Field → the fields inside it, of each item if it is a list; None: whatever is inside.
Fields = Mapping[str, "Fields | None"]


def _fields(names: str, **nested: Fields) -> Fields:
    return dict.fromkeys(names.split()) | nested


_RECORDING, _DELIVERY = "TaskId Speaker N Epoch", "TaskId Revision Epoch"
_OUTPUT = _fields("DurationMs SizeBytes Crc64 StartMs EndMs Missing Epoch", Gaps=_fields("AtMs DurationMs"))
FIELDS: Mapping[str, Fields] = {
    "capture-started": _fields(f"{_RECORDING} FirstPacketMs"),
    "ffmpeg-exit": _fields(
        f"{_RECORDING} Job Reason Detail Retry MediaMs SizeBytes FirstPacketMs LastPacketMs Node", Output=_OUTPUT
    ),
    "upload-finished": _fields(f"{_RECORDING} SizeBytes Crc64 Url"),
    "upload-failed": _fields(f"{_RECORDING} Reason Detail Retry"),
    "callback-finished": _fields(_DELIVERY),
    "callback-failed": _fields(f"{_DELIVERY} Reason Detail Retry"),
    "worker-lost": _fields("Owner Epoch Node MediaMs SizeBytes LastPacketMs"),
}
"""The fields of workers' outcomes in release 0.1.0."""


def without_later_fields(event: codec.Event) -> codec.Event:
    """The event as 0.1.0 would have sent it."""
    known = FIELDS.get(event.type)
    return dataclasses.replace(event, data=_known(event.data, known)) if known else event


def _known(value: Any, fields: Fields | None) -> Any:
    if fields is None or not isinstance(value, list | Mapping):
        return value
    if isinstance(value, list):
        return [_known(part, fields) for part in value]
    return {name: _known(part, fields[name]) for name, part in value.items() if name in fields}
