"""Every error that crosses a room's door, as one small tree. Third-party errors are wrapped in one of these where they arise.

    RecorderError                     code, retry, http_status
    ├── InvalidParameter     400      a field is missing, wrong or unknown; names it, never repeats its value
    ├── Unauthorized         401      no token, or a wrong one; a callback whose signature does not hold
    ├── NotFound             404      no such session or recording
    ├── Refused              409      understood, but not possible in the present state
    ├── QuotaReached         429      the key has as many Open sessions as it may have
    ├── InsufficientSpace    507      admission: the spool could not hold what was asked for
    ├── Unavailable          503      the service is starting, stopping, or its database does not answer
    │   └── Full             503      this worker takes no more now; its captures are another's, or its own later
    ├── DecryptionFailed           503      no key here opens a secret of the session
    ├── Conflict                      somebody else moved the row first: load and decide again (never leaves the template)
    ├── LeaseRefused                  this worker's epoch is stale: stop, write nothing
    └── StepFailed                    a worker's step ended badly: reason, detail, retry
        ├── TranscodeFailed
        ├── UploadFailed
        └── CallbackFailed

Imports nothing. Rule: a class's docstring is its default message.
"""

from __future__ import annotations

from machine.reasons import Reason


class RecorderError(Exception):
    """The recorder could not do this."""

    code = "InternalError"
    http_status = 500
    retry = False

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


class QuotaReached(RecorderError):
    """This key has as many Open sessions as it may have; stop one, or have its quota raised."""

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


class DecryptionFailed(Unavailable):
    """No key of SECRET_KEYS opens what is sealed for this; another node may have the key, or it was lost."""


class Full(Unavailable):
    """This worker takes no more captures now."""


class Conflict(RecorderError):
    """Somebody else moved the row first; load it and decide again."""

    code = "Conflict"
    retry = True


class LeaseRefused(RecorderError):
    """The lease is no longer ours: a newer epoch exists, or the job has ended."""

    code = "LeaseRefused"


class StepFailed(RecorderError):
    """A worker's step ended badly."""

    code = "StepFailed"

    def __init__(self, detail: str = "", *, reason: Reason, retry: bool) -> None:
        """`detail` is an English sentence for the operator (no secrets),
        `retry` whether the same step may succeed when tried again."""
        super().__init__(detail)
        self.reason = reason
        self.detail = self.message
        self.retry = retry


class TranscodeFailed(StepFailed):
    """The segments could not be turned into the finished file."""


class UploadFailed(StepFailed):
    """The finished file could not be written to the bucket."""


class CallbackFailed(StepFailed):
    """The result could not be delivered to the callback URL."""
