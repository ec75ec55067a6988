"""The allowed transitions and the names of the ends: the chart and the table of the design, written by hand.

Rule: tests judge the machines by this chart, never by the machines' own tables.
"""

from __future__ import annotations

RECORDING_EDGES = {
    ("", "Joining"),
    ("Joining", "Recording"),
    ("Recording", "Transcoding"),
    ("Transcoding", "Uploading"),
    ("Uploading", "Done"),
    ("Uploading", "Transcoding"),
    *((state, "Failed") for state in ("Joining", "Recording", "Transcoding", "Uploading")),
}
REPLAY_EDGES = {(end, to) for end in ("Done", "Failed") for to in ("Transcoding", "Uploading")}
SESSION_EDGES = {("", "Open"), ("Open", "Closing"), ("Closing", "Finished")}
# Code → (Message, Status).
CODES = {
    "Success": ("录制成功", 1),
    "Partial": ("录制成功", 1),
    "FailedRecording": ("录制失败", 0),
    "FailedTranscode": ("转码失败", 0),
    "FailedCosWrite": ("写cos失败", 0),
    "UploadPending": ("写cos失败", 0),
}
FINAL = ("Done", "Failed")


def may(owner: str, event_type: str, source: str, target: str) -> bool:
    """Whether the design lets this object (a recording, a session or a delivery) go from one state to the other."""
    if source == target or "#" in owner:
        return True
    edges = RECORDING_EDGES if "/" in owner else SESSION_EDGES
    if event_type == "replay" and "/" in owner:
        edges = edges | REPLAY_EDGES
    return (source, target) in edges
