"""Following within seconds: packets are joined some seconds after their arrival, and not minutes. So short streams cross the same
code as recordings of hours.

`shorten` changes this process, and `install` a service with its followers and live uploads. Followers are processes of their own:
they import `sitecustomize.py` of this folder when they start.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from media import bounded_file, ffmpeg_process, follower_process, followers, following, fragments, mp3_frames, track_clock

FIGURES: dict[Any, dict[str, float]] = {
    # Packets are joined before they are placed for good, so a file begins again whenever one was placed better since.
    following: {"LAG_MS": 2_500, "PLACE_EVERY_MS": 1_000, "MOST_RESTARTS": 1_000},
    follower_process: {"LOOK_EVERY_S": 0.5},
}
"""What is shortened, by module. The clocks of tracks stay as they are: what they place is what the file has at its end."""
BOUNDED: dict[Any, dict[str, float]] = {
    # A file whose bytes are released cannot begin again. So packets are placed for good before they are joined.
    track_clock: {"ENVELOPE_MS": 1_500.0, "SETTLED_MS": 1_500},
    following: {"LAG_MS": 5_000},
    # So little is kept that the bytes of seconds are released. The head of the file is in the first part.
    fragments: {"RESERVED_BYTES": 16 << 10},
    bounded_file: {"KEPT_BYTES": 48 << 10, "_KEPT_BYTES": 8 << 10},
    mp3_frames: {"EVERY_MS": 1_000},
    followers: {"_AGAIN_S": 0.2},
}
"""What is shortened also with SPOOL_POLICY=bounded."""
LOOK_EVERY_S = 0.5
PART_BYTES = 32 * 1024
POLICY = "SPOOL_POLICY"
PROGRAM = "from tests import quick_following; quick_following.install(); import service; service.main()"
"""What a service process with quick following runs."""


def shorten() -> None:
    """Let this process follow within seconds."""
    for shortened in (FIGURES, BOUNDED if os.environ.get(POLICY) == "bounded" else {}):
        for module, figures in shortened.items():
            for name, value in figures.items():
                setattr(module, name, value)


def install() -> None:
    """Let this service follow every recording from its begin, and send small parts; its COS must take them."""
    from assembly import live_uploads
    from tencent import cos, file_parts

    shorten()
    ffmpeg_process.ENVIRONMENT[POLICY] = os.environ.get(POLICY, "")
    ffmpeg_process.ENVIRONMENT["PYTHONPATH"] = f"{Path(__file__).parent}:{Path(__file__).parents[2]}"
    file_parts.MIN_PART_BYTES = PART_BYTES
    _preset(followers, "Followers", after_s=0.0)
    _preset(live_uploads, "LiveUploads", look_every_s=LOOK_EVERY_S)
    _preset(cos, "CosUploader", first_part_bytes=PART_BYTES)


def _preset(module: Any, name: str, **given: Any) -> None:
    setattr(module, name, functools.partial(getattr(module, name), **given))
