"""The rest of a recording: where in a segment the media begins that is in no finished piece yet. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from media import flv


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The beginning of the rest: at `offset` of the segment `epoch`, with the tag that its arrival record `record` (from 0)
    describes. Tags of a kind before `kinds[kind]` are in a piece already. `live_ms` is when it was live (Unix ms)."""

    epoch: int
    offset: int
    record: int
    kinds: dict[int, int]
    live_ms: float

    def to_json(self) -> dict[str, Any]:
        """The form in a note."""
        kinds = {str(kind): offset for kind, offset in self.kinds.items()}
        return {
            "epoch": self.epoch,
            "offset": self.offset,
            "record": self.record,
            "kinds": kinds,
            "live_ms": self.live_ms,
        }

    @staticmethod
    def from_json(body: dict[str, Any]) -> Begin:
        """The opposite of `to_json`. Raises KeyError or ValueError."""
        return Begin(
            epoch=int(body["epoch"]),
            offset=int(body["offset"]),
            record=int(body["record"]),
            kinds={int(kind): int(offset) for kind, offset in body["kinds"].items()},
            live_ms=float(body["live_ms"]),
        )


def tags(path: Path, begin: Begin | None) -> flv.TagReader:
    """A reader of a segment's tags from its beginning on. Raises OSError."""
    return flv.TagReader(path, begin.offset, whole=True) if begin else flv.TagReader(path)
