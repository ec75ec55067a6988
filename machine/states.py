"""The names of the states, codes and messages: contract, so they are written down once, here.

Imports nothing.

Recording (the persisted machine), who moves it on, and what a crash there means:

Joining       A capture runs, is queued, or waits for its next try; no media of the wanted tracks yet. The worker's
              `capture-started` moves it on. Crash: the lease ends, `worker-lost` queues the capture again.
Recording     Media arrives, or the next segment is about to start. A stop moves it on, once no capture is left running.
              Crash: what is on disk is a segment like any other; the next one follows, the time between is a gap.
Transcoding   All segments are closed. `ffmpeg-exit` with a verified output moves it on. Crash: the partial file is thrown
              away, the transcode starts again under a new epoch.
Uploading     The finished file is on disk. `upload-finished` moves it on. Crash: the upload is resumed from its parts.
Done          The object is in the bucket, size and CRC-64 compared. Final.
Failed        Nothing was deleted. Final, but for a `replay`.

Session: Open takes new recordings; Closing takes none and waits for those it has; Finished has sent its result.
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

# What a recording's capture may be: the third part of the decision table's key.
NONE = "none"
WAITING = "waiting"
QUEUED = "queued"
LEASED = "leased"
CAPTURES = (NONE, WAITING, QUEUED, LEASED)
ENDED = "ended"

CAPTURE = "capture"
TRANSCODE = "transcode"
UPLOAD = "upload"
CALLBACK = "callback"

# Code → (event, Message, Status) of the result.
SUCCESS = "Success"
FAILED_RECORDING = "FailedRecording"
FAILED_TRANSCODE = "FailedTranscode"
FAILED_COS_WRITE = "FailedCosWrite"
UPLOAD_PENDING = "UploadPending"
OUTCOMES = {
    SUCCESS: ("recording-done", "录制成功", 1),
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
