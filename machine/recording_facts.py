"""Facts for a decision about a recording: everything a decision may use besides the recording and the event's name.

Rule: a value that the handler fills in; decisions read nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from machine import internal_events, model


class Facts(Protocol):
    """The facts of one decision, given or read on demand; their meaning is documented in RecordingFacts."""

    @property
    def now_ms(self) -> int: ...
    @property
    def policy(self) -> model.Policy: ...
    @property
    def callbacks_come(self) -> bool: ...
    @property
    def has_segments(self) -> bool: ...
    @property
    def has_output(self) -> bool: ...
    @property
    def home(self) -> str: ...
    @property
    def target_away(self) -> bool: ...
    @property
    def outcome(self) -> internal_events.RecordingOutcome | None: ...
    @property
    def from_stage(self) -> str: ...
    @property
    def free_n(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFacts:
    """Given facts."""

    now_ms: int
    policy: model.Policy = field(default_factory=model.Policy)
    callbacks_come: bool = True  # TRTC's callbacks were seen for this application
    has_segments: bool = False  # segments of any epoch hold media
    has_output: bool = False  # a verified file exists
    home: str = ""  # the node that holds most of the segments; "": any node can reach them
    target_away: bool = False  # the node that the present job is for sends no heartbeat
    outcome: internal_events.RecordingOutcome | None = None  # the payload, if the event is a worker's or `worker-lost`
    from_stage: str = ""  # replay: the stage named by `From`; "": none
    free_n: int = 2  # replay: a number of the speaker's that no recording and no object has
