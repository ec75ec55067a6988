"""Facts for a decision about a recording: everything a decision may use besides the recording and the event's name.

Rule: a value that the handler fills in; decisions read nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from machine import internal_events, model


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFacts:
    """The facts of one decision."""

    now_ms: int
    policy: model.Policy = field(default_factory=model.Policy)
    callbacks_come: bool = True  # TRTC's callbacks were seen for this application
    has_segments: bool = False  # segments of any epoch hold media
    has_output: bool = False  # a verified file exists
    home: str = ""  # the node that holds most of the segments; "": any node can reach them
    target_away: bool = False  # the node that the present job is for sends no heartbeat
    evictions: int = 0  # runs that ended just as a pull for another speaker of the session began
    outcome: internal_events.RecordingOutcome | None = None  # the payload, if the event is a worker's or `worker-lost`
    from_stage: str = ""  # replay: the stage named by `From`; "": none
