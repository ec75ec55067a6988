"""Coverage: how much of a speaker's published time a finished file has, and why the rest is missing.

Rule: pure. `Partial` means that the file lacks media which the speaker published or a capture noted.
"""

from __future__ import annotations

from dataclasses import dataclass

from machine import model


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The judgement of one file. `cause` is one sentence in English; "" if nothing is missing."""

    partial: bool
    cause: str


def of(recording: model.Recording) -> Coverage:
    """The coverage of a recording's file."""
    output = recording.output
    if output is None or not output.lost_segments:
        return Coverage(partial=False, cause="")
    which = "a segment was" if output.lost_segments == 1 else f"{output.lost_segments} segments were"
    cause = (
        f"Bytes of {which} damaged or deleted after the capture: {output.lost_ms / 1000:.1f} s of media are lost. Check the disk"
        " of the spool; the segments are kept for KEEP_FAILED."
    )
    return Coverage(partial=True, cause=cause)
