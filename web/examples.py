"""Examples of every body and answer, for the OpenAPI document: one room, one speaker, one failed upload. Pure.

Rules: a test validates each against its schema. Secrets are cut short, so that none looks like a real one.
"""

from __future__ import annotations

from typing import Any

from machine import errors
from web import middleware, operator_examples, responses

Json = dict[str, Any]

TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
REQUEST_ID = "01JBX5R2M4N6P8Q0R2S4T6V8WX"
NODE = "node-5f1c0a9e2b7d4c36"
TIMES = ("2026-11-02T08:00:00.000Z", "2026-11-02T08:45:00.000Z", "2026-11-02T08:46:10.000Z")
_COS = {"Region": "ap-shanghai", "Bucket": "lessons-1250000000", "Path": "2026/autumn"}
_ROOM = {"SdkAppId": "1400000001", "RoomId": "8489", "StrRoomId": "", "UserId": "recorder-8489"}
_REPLAY = f"`recorder replay {TASK_ID} --speaker=alice --n=1`"
_NEXT_STEP = (
    f"The finished file is kept. {_REPLAY} uploads it again; if the credentials are the cause, set COS_SECRET_ID and"
    " COS_SECRET_KEY before."
)
_REFUSED = "The bucket refused the key (403)."

START: Json = {
    "SdkAppId": 1400000001,
    "RoomId": 8489,
    "UserId": "recorder-8489",
    "UserSig": "eJw1jcEKgkAURX8lZh3y…",
    "CosConfig": {**_COS, "SecretId": "AKID…", "SecretKey": "…"},
    "Mode": "02",
    "Callback": "https://example.com/recorded",
}
STOP: Json = {}
REPLAY: Json = {"Speaker": "alice", "N": 1, "From": "transcoding", "DryRun": True}
RESEND: Json = {"Revision": 1}
CALLBACK_HEADERS = {"SdkAppId": "1400000001", "Sign": "kkoFeO3Oh2ZHnjtg8tEAQhtXK16/KI05W3BQff8IvGA="}
CALLBACK: Json = {
    "EventGroupId": 2,
    "EventType": 203,
    "CallbackTs": 1664209748188,
    "EventInfo": {"RoomId": 8489, "EventTs": 1664209748, "EventMsTs": 1664209748180, "UserId": "alice"},
}

ACCEPTED: Json = {"TaskId": TASK_ID, "Repeated": False, "Warnings": [], "RequestId": REQUEST_ID}
STOPPED: Json = {"TaskId": TASK_ID, "State": "Closing", "RequestId": REQUEST_ID}
REPLAYED: Json = {
    "TaskId": TASK_ID,
    "Recordings": [
        {
            "Speaker": "alice",
            "N": 1,
            "State": "Failed",
            "To": "Uploading",
            "Attempt": 2,
            "Action": "upload from its files",
            "Object": f"https://lessons-1250000000.cos.ap-shanghai.myqcloud.com/2026/{TASK_ID}/alice_1.mp4",
        }
    ],
    "Skipped": [{"Speaker": "bob", "N": 1, "Why": "its files are gone or never existed, so there is nothing to replay."}],
    "Result": None,
    "RequestId": REQUEST_ID,
}
RESENT: Json = {"TaskId": TASK_ID, "Revision": 1, "State": "pending", "RequestId": REQUEST_ID}
_FINDING = {"Rule": "failed-kept", "Of": "alice/1", "Why": f"FailedCosWrite: {_REFUSED}", "Next": _NEXT_STEP}
_HEAD: Json = {
    "TaskId": TASK_ID,
    "State": "Finished",
    "EndReason": "RoomDestroyed",
    **_ROOM,
    "Mode": "02",
    "OpenedTime": TIMES[0],
    "ClosingTime": TIMES[1],
    "FinishedTime": TIMES[2],
    "Revision": 1,
    "UserData": {"Lesson": 4711},
    "Stuck": [_FINDING],
}
SESSIONS: Json = {
    "Sessions": [{**_HEAD, "Recordings": {"Done": 1, "Failed": 1}}],
    "Next": "",
    "Attention": [],
    "RequestId": REQUEST_ID,
}
_FILE: Json = {
    "UserId": "alice",
    "RecordFile": "",
    "Status": 0,
    "Message": "写cos失败",
    "Code": "FailedCosWrite",
    "Detail": _REFUSED,
    "StartTime": TIMES[0],
    "EndTime": TIMES[1],
    "Duration": 0,
    "Size": 0,
    "Crc64": "",
    "Gaps": [],
    "PublishedTime": TIMES[0],
    "LeftTime": TIMES[1],
    "Missing": 0,
    "Anchors": [],
    "ErrorMs": 0,
}
_FINISHED: Json = {**_ROOM, "Files": [_FILE], "TaskId": TASK_ID, "Revision": 1, "EndReason": "RoomDestroyed"}
_SEGMENT: Json = {
    "Epoch": 1,
    "Node": NODE,
    "StartTime": TIMES[0],
    "EndTime": TIMES[1],
    "MediaSeconds": 2700.04,
    "Size": 489_120_331,
    "EndedBy": "eof",
    "Live": False,
}
_RECORDING: Json = {
    "Speaker": "alice",
    "N": 1,
    "State": "Failed",
    "Capture": "none",
    "Job": None,
    "Attempt": 1,
    "Tries": 0,
    "Code": "FailedCosWrite",
    "Detail": _REFUSED,
    "Next": _NEXT_STEP,
    "StopRequested": True,
    "Present": False,
    "Awaited": False,
    "OpenedTime": TIMES[0],
    "StartTime": TIMES[0],
    "EndTime": TIMES[1],
    "EndedTime": TIMES[2],
    "MediaSeconds": 2700.04,
    "FilesRemoved": False,
    "Segments": [_SEGMENT],
    "SegmentsOmitted": 0,
    "Gaps": [],
    "File": _FILE,
}


def _line(time: str, of: str, event: str, before: str, after: str, note: str) -> Json:
    line = {"Time": time, "Of": of, "Event": event, "From": before, "To": after, "Note": note}
    return line | {"Count": 1, "FirstTime": time}


SESSION: Json = {
    **_HEAD,
    "CosConfig": _COS,
    "Callback": "https://example.com/…",
    "SubscribeUserIds": [],
    "UnSubscribeUserIds": [],
    "CallbackEvents": [],
    "Warnings": [],
    "Next": "",
    "Recordings": [_RECORDING],
    "RecordingsNext": "",
    "Callbacks": [
        {
            "Revision": 1,
            "Host": "example.com",
            "State": "delivered",
            "Tries": 0,
            "Detail": "",
            "Attempts": 1,
            "LastTime": TIMES[2],
            "NextTime": "",
            "Answer": "It accepted the result.",
        }
    ],
    "Manifest": None,
    "Timeline": [
        _line(TIMES[0], "", "start", "", "Open", "mode 02"),
        _line(TIMES[2], "alice/1", "upload-failed", "Uploading", "Failed", _REFUSED),
    ],
    "TimelineNext": "",
    "Results": [_FINISHED],
    "ResultsNext": "",
    "RequestId": REQUEST_ID,
}
RESULTS: Json = {
    "Results": [
        {
            "Cursor": "s4711",
            "Id": f"{TASK_ID}.1",
            "Type": "session-finished",
            "Time": TIMES[2],
            "Subject": TASK_ID,
            "Data": _FINISHED,
        }
    ],
    "Next": "s4711",
    "RequestId": REQUEST_ID,
}
TAKEN: Json = {"code": 0, "RequestId": REQUEST_ID}
ALIVE: Json = {"Status": "alive", "Version": "1.0.0", "RequestId": REQUEST_ID}
READY: Json = {"Status": "ready", "RequestId": REQUEST_ID}

_OTHER_SETTINGS = errors.AlreadyRecording(TASK_ID, ("Mode", "CosConfig.Path"))
CONFLICT: Json = {"Code": _OTHER_SETTINGS.code, "Message": _OTHER_SETTINGS.message, **_OTHER_SETTINGS.details}
CONFLICT |= {"RequestId": REQUEST_ID}

_LOST = errors.CursorLost("s7-1764468000123")
CURSOR_LOST: Json = {"Code": _LOST.code, "Message": _LOST.message, **_LOST.details, "RequestId": REQUEST_ID}

# The name of an answer's component → an example of it.
ANSWERS: dict[str, Json] = {
    "Accepted": ACCEPTED,
    "Sessions": SESSIONS,
    "Session": SESSION,
    "Stopped": STOPPED,
    "Replayed": REPLAYED,
    "Resent": RESENT,
    "Results": RESULTS,
    "Conflict": CONFLICT,
    "CursorLost": CURSOR_LOST,
    "Taken": TAKEN,
    "Alive": ALIVE,
    "Ready": READY,
    **operator_examples.ANSWERS,
}
# Status → its meaning, and the Code and Message of an example.
FAILURES: dict[int, tuple[str, str, str]] = {
    400: ("A field is missing, wrong or unknown.", "InvalidParameter", "CosConfig.Bucket: is required"),
    401: ("The token, key or signature is missing or wrong.", errors.Unauthorized.code, errors.Unauthorized().message),
    403: (
        "The key lacks the scope. Without keys: the header Host names another machine.",
        "Forbidden",
        middleware.WRONG_SCOPE.format(needed="operate"),
    ),
    404: ("There is no such session or recording.", errors.NotFound.code, errors.NotFound().message),
    408: ("The body did not arrive in time.", responses.CODES[408], "The body did not arrive within 30 s."),
    409: ("Understood, but not possible in the present state.", errors.Refused.code, errors.Refused().message),
    413: ("The body is too large.", responses.CODES[413], "The body is larger than 256 KB."),
    415: ("Without tokens and keys a body must be sent as JSON.", "UnsupportedMediaType", middleware.NOT_JSON),
    422: ("Another request came under this Idempotency-Key before.", errors.KeyReused.code, errors.KeyReused().message),
    429: ("Too many requests, or too many Open sessions of this key.", errors.QuotaReached.code, middleware.TOO_OFTEN),
    500: ("An internal error; the service's log has the reason under the RequestId.", "InternalError", responses.UNEXPECTED),
    503: ("Temporarily unavailable; retry.", errors.Unavailable.code, errors.Unavailable().message),
    507: ("The spool is too full for another recording.", errors.InsufficientSpace.code, errors.InsufficientSpace().message),
}
