"""Reasons for the end of a job: one closed list for captures, transcodes, uploads and deliveries.

Rule: a reason is written and compared through `Reason`, never as a literal. The values are contract: they appear in events, in
the database and in the API. The same reason means the same for every kind of job.
"""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a job ended."""

    # Any job
    OK = "ok"  # the transcode's output is verified
    ERROR = "error"  # an unexpected fault that a retry may pass
    WORKER_LOST = "worker-lost"  # the lease ended without an outcome
    NODE_STOPPING = "node-stopping"  # the node drains or stops; another node continues

    # Captures
    EOF = "eof"  # the server ended the stream
    STALLED = "stalled"  # packets stopped arriving, the connection stayed open
    STOPPED = "stopped"  # the recorder stopped the capture
    NEW_TRACK = "new-track"  # a track began that this run does not capture; the next segment has it
    REFUSED_FOR_GOOD = "refused-for-good"  # the server refused the UserSig or the account

    # Captures and uploads
    REFUSED = "refused"  # a capture: the server refused the pull, a retry may succeed; an upload: COS refused it, a retry cannot

    # Captures and transcodes; the last one also uploads
    NO_MEDIA = "no-media"  # a capture: the server sent nothing; a transcode: no segment has a wanted track
    DISK_FULL = "disk-full"  # the spool has no space left
    SPOOL_LOST = "spool-lost"  # the spool's folder or mount is gone, or cannot be read or written

    # Transcodes
    FFMPEG_FAILED = "ffmpeg-failed"  # ffmpeg ended with an error, or hung
    VERIFY_FAILED = "verify-failed"  # the finished file failed verification
    KILLED = "killed"  # a signal ended ffmpeg
    NODE_AWAY = "node-away"  # segments are on a node that does not answer, within NODE_RETURN

    # Uploads
    EXPIRED_TOKEN = "expired-token"  # noqa: S105 - a slug: COS reports that the temporary credentials expired
    THROTTLED = "throttled"  # COS asks for fewer requests
    SERVER = "server"  # COS failed, or its response was malformed
    MISMATCH = "mismatch"  # size or CRC-64 of the object differs from the file
    FILE_MISSING = "file-missing"  # the finished file is gone, empty or unreadable
    FILE_DAMAGED = "file-damaged"  # the finished file has other bytes than the transcode verified

    # Uploads and deliveries
    NETWORK = "network"  # the connection failed

    # Deliveries
    STATUS = "status"  # the receiver answered with a status other than 2xx
    REDIRECT = "redirect"  # the receiver answered with a redirect; none is followed
    TIMEOUT = "timeout"  # the receiver did not answer in time
    GONE = "gone"  # the receiver answered 410
    PRIVATE_ADDRESS = "private-address"  # the URL leads to an address that is not public
    BAD_URL = "bad-url"  # the URL is malformed
