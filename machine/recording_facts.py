"""What a decision about a recording may look at beside the recording itself. Imports `machine`.

Rule: a value, filled in by whoever asks for the decision; nothing in here reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from machine import model


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision may look at besides the recording. `data` is the event's; `callbacks_come` says whether TRTC's callbacks
    were seen for this application; `has_segments` and `has_output` say which inputs of later stages are kept: media in
    segments of any epoch, a verified file; `evictions` how many runs of this recording ended by themselves just as a pull for
    another speaker of the session began; `home` the node that holds most of the segments ("": any can reach them);
    `target_away` whether the node that the present job is for shows no sign of life."""

    now_ms: int
    policy: model.Policy = field(default_factory=model.Policy)
    callbacks_come: bool = True
    has_segments: bool = False
    has_output: bool = False
    home: str = ""
    target_away: bool = False
    evictions: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
