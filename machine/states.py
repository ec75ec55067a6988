"""States, codes and messages of the contract.

The states of a recording: the event that leads out of each, and the consequence of a crash.

Joining       A capture runs, is queued, or waits to retry; no media of the wanted tracks yet. The worker's `capture-started`
              moves it. Crash: the lease expires, and `worker-lost` queues the capture again.
Recording     Media arrives, or the next segment is about to start. A stop moves it, once no capture runs any more. Crash: the
              media on disk is a segment like any other; the next segment follows, and the time between them is a gap.
Transcoding   All segments are closed. `ffmpeg-exit` with a verified output moves it. Crash: the partial file is discarded, and
              the transcode restarts under a new epoch.
Uploading     The finished file is on disk. `upload-finished` moves it. Crash: the upload resumes from its parts.
Done          The object is in the bucket, size and CRC-64 compared. Final.
Failed        Nothing was deleted. Final, except for a `replay`.

Session: Open adds recordings; Closing adds none and waits for those it has; Finished has published its result.
"""

from __future__ import annotations

JOINING = "Joining"
RECORDING = "Recording"
TRANSCODING = "Transcoding"
UPLOADING = "Uploading"
DONE = "Done"
FAILED = "Failed"
RECORDING_STATES = (JOINING, RECORDING, TRANSCODING, UPLOADING, DONE, FAILED)
CAPTURING = (JOINING, RECORDING)
FINAL = (DONE, FAILED)

OPEN = "Open"
CLOSING = "Closing"
FINISHED = "Finished"
SESSION_STATES = (OPEN, CLOSING, FINISHED)

# The states of a recording's capture: a part of the decision table's key.
NONE = "none"
WAITING = "waiting"
QUEUED = "queued"
LEASED = "leased"
CAPTURES = (NONE, WAITING, QUEUED, LEASED)
ENDED = "ended"

# The kinds of jobs.
CAPTURE = "capture"
TRANSCODE = "transcode"
UPLOAD = "upload"
DELIVERY = "callback"  # the name in the contract and the database

# Code → (event, Message, Status) of the result.
SUCCESS = "Success"
PARTIAL = "Partial"
FAILED_RECORDING = "FailedRecording"
FAILED_TRANSCODE = "FailedTranscode"
FAILED_COS_WRITE = "FailedCosWrite"
UPLOAD_PENDING = "UploadPending"
OUTCOMES = {
    SUCCESS: ("recording-done", "录制成功", 1),
    PARTIAL: ("recording-done", "录制成功", 1),
    FAILED_RECORDING: ("failed-recording", "录制失败", 0),
    FAILED_TRANSCODE: ("failed-transcode", "转码失败", 0),
    FAILED_COS_WRITE: ("failed-cos-write", "写cos失败", 0),
    UPLOAD_PENDING: ("", "写cos失败", 0),
}
FAILURE_OF = {
    JOINING: FAILED_RECORDING,
    RECORDING: FAILED_RECORDING,
    TRANSCODING: FAILED_TRANSCODE,
    UPLOADING: FAILED_COS_WRITE,
}

ROOM_DESTROYED = "RoomDestroyed"
USER_REMOVED = "UserRemoved"
STOPPED = "Stopped"
MAX_DURATION = "MaxDuration"
NOBODY_PUBLISHED = "NobodyPublished"
IDLE = "Idle"
END_REASONS = (ROOM_DESTROYED, USER_REMOVED, STOPPED, MAX_DURATION, NOBODY_PUBLISHED, IDLE)

WANTED_KINDS = {"00": ("audio",), "01": ("video",), "02": ("audio", "video")}
EXTENSION = {"00": "mp3", "01": "mp4", "02": "mp4"}
