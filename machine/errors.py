"""Errors: one small tree. A third-party error is wrapped in one of these in the package where it arises.

    RecorderError                     code, retry, http_status
    ├── InvalidParameter     400      a field is missing, wrong or unknown; names the field, never repeats its value
    ├── Unauthorized         401      no token, or a wrong one; a TRTC callback with a wrong signature
    ├── NotFound             404      no such session or recording
    ├── Refused              409      understood, but not possible in the current state
    │   ├── AlreadyRecording 409      the room is recorded with other settings
    │   └── CursorLost       410      the database does not know the result of this cursor: it is an older one
    ├── KeyReused            422      another request came under this Idempotency-Key before
    ├── QuotaReached         429      the key already has its quota of Open sessions
    ├── InsufficientSpace    507      admission: the spool has too little free space
    ├── Unavailable          503      the service starts or stops
    │   ├── DatabaseUnavailable 503   the database does not answer, or refuses writes
    │   ├── WorkerFull       503      the worker has no free slot; the command goes to another worker, or is retried
    │   ├── DecryptionFailed 503      no key of this node decrypts a secret
    │   └── Outdated         503      this service is older than its database allows; the node ends
    ├── Conflict                      another transaction changed the row; the inbox loads and decides again
    ├── LeaseRefused                  the worker's epoch is stale: stop, write nothing
    └── StepFailed                    a job failed: reason, detail, retry
        ├── TranscodeFailed
        ├── UploadFailed
        └── DeliveryFailed

Rule: the docstring of a class is its default message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from machine.reasons import Reason


class RecorderError(Exception):
    """The recorder could not do this."""

    code = "InternalError"
    http_status = 500
    retry = False
    details: Mapping[str, Any] = MappingProxyType({})
    """More fields of the refusal: Fields (names of the request's fields), TaskId."""

    def __init__(self, message: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        super().__init__(self.message)


class InvalidParameter(RecorderError):
    """A parameter is missing or wrong."""

    code = "InvalidParameter"
    http_status = 400

    def __init__(self, message: str = "", *, field: str = "") -> None:
        super().__init__(message)
        self.field = field
        if field:
            self.details = {"Fields": [field]}


class Unauthorized(RecorderError):
    """The bearer token is missing or not known; set RECORDER_TOKEN to a key of the API or one of API_TOKENS."""

    code = "Unauthorized"
    http_status = 401


class NotFound(RecorderError):
    """There is no such session; `recorder sessions` lists what there is."""

    code = "NotFound"
    http_status = 404


class Refused(RecorderError):
    """This is not possible in the session's present state."""

    code = "FailedOperation"
    http_status = 409


class AlreadyRecording(Refused):
    """The session that records this room for this UserId has other settings."""

    code = "AlreadyRecording"

    def __init__(self, task_id: str, fields: Sequence[str]) -> None:
        super().__init__(
            f"Session {task_id} records this room for this UserId already, with another {' and '.join(fields)}. Nothing was"
            " changed: repeat the start with the settings of that session, or stop it first."
        )
        self.details = {"TaskId": task_id, "Fields": list(fields)}


class CursorLost(Refused):
    """The database does not know the result of this cursor: it is an older one, from a backup or a replica."""

    code = "CursorLost"
    http_status = 410

    def __init__(self, newest: str = "") -> None:
        super().__init__(
            "after: the database does not know the result of this cursor. It is an older database, from a backup or a replica."
            " Read from the first result (an empty `after`) and skip the ids that you know, or go on after the newest result,"
            f" {newest or 'Newest'}."
        )
        self.details = {"Newest": newest}


class KeyReused(RecorderError):
    """Another request came under this id (Idempotency-Key, or id of the event) before; send this one under an id of its own."""

    code = "IdempotencyKeyReused"
    http_status = 422


class QuotaReached(RecorderError):
    """This key has reached its quota of Open sessions; stop one, or ask for a higher quota."""

    code = "LimitExceeded"
    http_status = 429


class InsufficientSpace(RecorderError):
    """The spool has too little free space for another recording."""

    code = "InsufficientSpace"
    http_status = 507
    retry = True


class Unavailable(RecorderError):
    """The service cannot answer now; try again in a moment."""

    code = "ServiceUnavailable"
    http_status = 503
    retry = True


class DatabaseUnavailable(Unavailable):
    """The database does not answer."""

    def __init__(self, message: str = "", *, refused: bool = False) -> None:
        """`refused`: the database answered that it cannot do such work now, so no transaction is the cause."""
        super().__init__(message)
        self.refused = refused


class DecryptionFailed(Unavailable):
    """No key of SECRET_KEYS decrypts these secrets; another node may have the key, or it is lost."""


class Outdated(Unavailable):
    """This service is older than its database allows; install the newer version on this node."""


class WorkerFull(Unavailable):
    """This worker takes no more jobs of this kind now."""


class Conflict(RecorderError):
    """Another transaction changed the row first; load it and decide again."""

    code = "Conflict"
    retry = True


class LeaseRefused(RecorderError):
    """The lease is lost: a newer epoch exists, or the job has ended."""

    code = "LeaseRefused"


class StepFailed(RecorderError):
    """A job failed."""

    code = "StepFailed"

    def __init__(self, detail: str = "", *, reason: Reason, retry: bool) -> None:
        """`detail` is an English sentence for the operator, without secrets; `retry` tells whether a retry may succeed."""
        super().__init__(detail)
        self.reason = reason
        self.detail = self.message
        self.retry = retry


class TranscodeFailed(StepFailed):
    """The transcode of the segments failed."""


class UploadFailed(StepFailed):
    """The upload of the finished file failed."""


class DeliveryFailed(StepFailed):
    """The delivery of the result failed. `tried`: its receiver had the chance to answer."""

    tried = True
