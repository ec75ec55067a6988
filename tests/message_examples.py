"""Examples of every message: valid data, and wrong data with the field and the reason that its refusal names."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TASK = "01" + "0" * 24
MARK = "MARKED-secret"
COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p"}
JOB = {"TaskId": TASK, "Speaker": "al", "N": 1, "Epoch": 1}
DELIVERY = {"TaskId": TASK, "Revision": 1, "Epoch": 1}
USER = {"SdkAppId": 1, "RoomId": 8, "UserId": "al", "EventMs": 5}
OUTPUT = {"DurationMs": 5, "SizeBytes": 9, "Crc64": "1", "StartMs": None, "EndMs": 2, "Gaps": [{"AtMs": 1, "DurationMs": 2}]}
FILE = {
    "UserId": "al",
    "RecordFile": "",
    "Status": 0,
    "Message": "录制失败",
    "Code": "FailedRecording",
    "Detail": "",
    "StartTime": "",
    "EndTime": "",
    "Duration": 1.5,
    "Size": 0,
    "Crc64": "",
    "Gaps": [{"At": 0.5, "Duration": 1}],
    "PublishedTime": "2026-11-30T10:00:00.000Z",
    "LeftTime": "",
    "Missing": 0.5,
    "Anchors": [{"At": 0, "Time": "2026-11-30T10:00:00.500Z"}],
    "ErrorMs": 100,
}
KEY = {"SdkAppId": "1", "RoomId": "8", "StrRoomId": "", "UserId": "rec"}
RESULT = {"TaskId": TASK, **KEY, "Speaker": "al", "N": 1, "Attempt": 1, "File": FILE}
PROGRESS = {"TaskId": TASK, **KEY, "Speaker": "al", "N": 1, "Time": "2026-11-30T10:00:00.000Z", "MediaSeconds": 1.5}
VALID: dict[str, list[dict[str, Any]]] = {
    "start": [
        {"SdkAppId": 1, "RoomId": 8, "UserId": "rec", "UserSig": "s", "CosConfig": COS},
        {"SdkAppId": 4294967295, "RoomId": "", "StrRoomId": "r .%|~", "UserId": "rec", "CosConfig": COS, "Mode": "02"},
        {"SdkAppId": 1, "RoomId": 0, "StrRoomId": "r", "UserId": "r", "CosConfig": COS | {"SecretId": "i", "SecretKey": "k"}},
        {"SdkAppId": 1, "RoomId": 8, "UserId": "rec", "CosConfig": COS, "Callback": "https://x/y?z=1", "SubscribeUserIds": ["a"]},
        {"SdkAppId": 1, "RoomId": 8, "UserId": "rec", "CosConfig": COS, "UserData": {"lesson": [1.5, None, "é"]}},
        {
            "SdkAppId": 1,
            "RoomId": 8,
            "UserId": "rec",
            "CosConfig": COS,
            "Callback": "https://x",
            "CallbackEvents": ["recording-started"],
        },
    ],
    "stop": [{"TaskId": TASK}, {"SdkAppId": 1, "RoomId": 8, "UserId": "rec"}],
    "replay": [
        {"TaskId": TASK},
        {"TaskId": TASK, "Speaker": "al", "N": 2, "From": "transcoding", "DryRun": True, "UserSig": "s"},
        {"TaskId": TASK, "CosConfig": {"SecretId": "i", "SecretKey": "k", "Token": "t"}},
    ],
    "resend": [{"TaskId": TASK}, {"TaskId": TASK, "Revision": 3}],
    "user-publishing": [
        USER | {"Kind": "audio"},
        {"SdkAppId": 1, "StrRoomId": "r", "UserId": "a", "EventMs": 0, "Kind": "video"},
    ],
    "user-unpublished": [USER | {"Kind": "video"}],
    "user-entered": [USER, USER | {"Role": 20}],
    "user-left": [USER, USER | {"Reason": 1}],
    "user-removed": [USER | {"Reason": 3}],
    "room-destroyed": [{"SdkAppId": 1, "RoomId": 8, "StrRoomId": "8", "EventMs": 5}],
    "capture-started": [JOB, JOB | {"FirstPacketMs": 5}],
    "ffmpeg-exit": [
        JOB | {"Job": "capture", "Reason": "eof", "MediaMs": 5, "SizeBytes": 6, "FirstPacketMs": None, "LastPacketMs": 7},
        JOB | {"Job": "transcode", "Reason": "ok", "Output": OUTPUT},
    ],
    "upload-finished": [JOB | {"SizeBytes": 1, "Crc64": "2", "Url": "https://x"}],
    "upload-failed": [JOB | {"Reason": "refused", "Retry": False}],
    "callback-finished": [DELIVERY],
    "callback-failed": [DELIVERY | {"Reason": "status", "Detail": "500", "Retry": True}],
    "deadline-passed": [{"Owner": TASK, "Kind": "idle", "Serial": "s"}, {"Owner": f"{TASK}#1", "Kind": "retry", "Serial": "s"}],
    "worker-lost": [{"Owner": f"{TASK}/al/1", "Epoch": 1, "Node": "n", "MediaMs": 5, "LastPacketMs": None}],
    "start-capture": [JOB],
    "stop-capture": [JOB],
    "start-transcode": [JOB],
    "start-upload": [JOB],
    "send-callback": [DELIVERY],
    "session-accepted": [{"TaskId": TASK, "Repeated": False, "Warnings": ["w"]}],
    "session-refused": [
        {"Code": "InvalidParameter", "Message": "m", "RequestId": "e"},
        {"Code": "AlreadyRecording", "Message": "m", "RequestId": "e", "Fields": ["Mode"], "TaskId": TASK},
    ],
    "recording-started": [PROGRESS, PROGRESS | {"UserData": {}}],
    "recording-interrupted": [PROGRESS | {"Reason": "eof", "Detail": ""}],
    "recording-resumed": [PROGRESS],
    "recording-progress": [PROGRESS],
    "recording-done": [RESULT, RESULT | {"UserData": 1.5}],
    "failed-recording": [RESULT],
    "failed-transcode": [RESULT],
    "failed-cos-write": [RESULT],
    "session-finished": [KEY | {"Files": [FILE], "TaskId": TASK, "Revision": 1, "EndReason": "Idle", "UserData": ["lesson 7"]}],
}
# (type, change to its first valid example, field, word of the reason)
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("start", {"SdkAppId": None}, "SdkAppId", "required"),
    ("start", {"SdkAppId": 0}, "SdkAppId", "minimum"),
    ("start", {"SdkAppId": 2**32}, "SdkAppId", "maximum"),
    ("start", {"SdkAppId": 10**30}, "SdkAppId", "maximum"),
    ("start", {"SdkAppId": 1.0}, "SdkAppId", "decimal point"),
    ("start", {"SdkAppId": "1"}, "SdkAppId", "integer"),
    ("start", {"SdkAppId": True}, "SdkAppId", "integer"),
    ("start", {"RoomId": -1}, "RoomId", ""),
    ("start", {"RoomId": "8"}, "RoomId", ""),
    ("start", {"RoomId": 8.0}, "RoomId", "decimal point"),
    ("start", {"StrRoomId": "a\nb"}, "StrRoomId", ""),
    ("start", {"StrRoomId": "x" * 65}, "StrRoomId", "64"),
    ("start", {"UserId": ""}, "UserId", ""),
    ("start", {"UserId": "a\x00b"}, "UserId", ""),
    ("start", {"UserId": "a\x7fb"}, "UserId", ""),
    ("start", {"UserId": "\ud800"}, "UserId", "valid text"),
    ("start", {"UserSig": MARK + "\x00"}, "UserSig", "valid text"),
    ("start", {"UserSig": MARK * 400}, "UserSig", ""),
    ("start", {"UserSig": [MARK]}, "UserSig", ""),
    ("start", {"UserSig": {MARK: MARK}}, "UserSig", ""),
    ("start", {"CosConfig": None}, "CosConfig", "required"),
    ("start", {"CosConfig": MARK}, "CosConfig", ""),
    (
        "start",
        {"CosConfig": {"Bucket": "b-12345", "Path": "", "SecretKey": MARK, "SecretId": MARK}},
        "CosConfig.Region",
        "required",
    ),
    ("start", {"CosConfig": COS | {"SecretKey": MARK}}, "CosConfig.SecretId", "required"),
    ("start", {"CosConfig": COS | {"SecretId": MARK}}, "CosConfig.SecretKey", "required"),
    ("start", {"CosConfig": COS | {"Token": MARK}}, "CosConfig.SecretId", "required"),
    ("start", {"CosConfig": COS | {"SecretId": MARK * 30, "SecretKey": "k"}}, "CosConfig.SecretId", ""),
    ("start", {"CosConfig": COS | {"SecretId": 5, "SecretKey": MARK}}, "CosConfig.SecretId", ""),
    ("start", {"CosConfig": COS | {"Region": "Mars!"}}, "CosConfig.Region", ""),
    ("start", {"CosConfig": COS | {"Bucket": "no appid"}}, "CosConfig.Bucket", ""),
    ("start", {"CosConfig": COS | {"Sercet": MARK}}, "CosConfig.Sercet", "known"),
    ("start", {"Mode": "03"}, "Mode", ""),
    ("start", {"Callback": "file:///etc/passwd"}, "Callback", ""),
    ("start", {"Callback": "https://x/ y"}, "Callback", ""),
    ("start", {"SubscribeUserIds": ["a"] * 2}, "SubscribeUserIds", ""),
    ("start", {"SubscribeUserIds": [str(n) for n in range(33)]}, "SubscribeUserIds", "32"),
    ("start", {"SubscribeUserIds": ["ok", ""]}, "SubscribeUserIds.1", ""),
    ("start", {"CallbackEvents": ["recording-done"]}, "CallbackEvents.0", ""),
    ("start", {"userSig": MARK}, "userSig", "known"),
    ("stop", {"TaskId": None}, "", "TaskId"),
    ("stop", {"TaskId": "01"}, "TaskId", ""),
    ("stop", {"TaskId": TASK.replace("0", "I")}, "TaskId", ""),
    ("resend", {"Revision": 0}, "Revision", ""),
    ("replay", {"N": 1}, "Speaker", "required"),
    ("replay", {"From": "done"}, "From", ""),
    ("replay", {"UserSig": ""}, "UserSig", ""),
    ("replay", {"CosConfig": {"SecretId": MARK}}, "CosConfig.SecretKey", "required"),
    ("replay", {"CosConfig": COS | {"SecretId": MARK, "SecretKey": MARK}}, "CosConfig.Region", "known"),
    ("user-publishing", {"Kind": "smell"}, "Kind", ""),
    ("user-publishing", {"UserId": ""}, "UserId", ""),
    ("user-publishing", {"RoomId": None}, "", "RoomId"),
    ("user-publishing", {"EventMs": 2**60}, "EventMs", "maximum"),
    ("user-unpublished", {"Kind": None}, "Kind", "required"),
    ("user-entered", {"EventMs": None}, "EventMs", "required"),
    ("user-left", {"UserId": "x" * 65}, "UserId", ""),
    ("user-removed", {"UserId": None}, "UserId", "required"),
    ("room-destroyed", {"EventMs": -1}, "EventMs", ""),
    ("capture-started", {"Epoch": 0}, "Epoch", ""),
    ("capture-started", {"Epoch": 2**63}, "Epoch", "maximum"),
    ("ffmpeg-exit", {"Job": "upload"}, "Job", ""),
    ("ffmpeg-exit", {"MediaMs": 5.0}, "MediaMs", "decimal point"),
    ("ffmpeg-exit", {"MediaMs": 2**63}, "MediaMs", "maximum"),
    ("ffmpeg-exit", {"SizeBytes": 2**63}, "SizeBytes", "maximum"),
    ("ffmpeg-exit", {"Output": OUTPUT | {"Gaps": [{"AtMs": 1}]}}, "Output.Gaps.0.DurationMs", "required"),
    ("upload-finished", {"Url": None}, "Url", "required"),
    ("upload-failed", {"Retry": "yes"}, "Retry", ""),
    ("callback-finished", {"Revision": 0}, "Revision", ""),
    ("callback-failed", {"Reason": "x" * 65}, "Reason", ""),
    ("deadline-passed", {"Serial": None}, "Serial", "required"),
    ("worker-lost", {"Owner": 5}, "Owner", ""),
    *[
        ("worker-lost", {"Owner": o}, "Owner", "")
        for o in ("", "x", "/", "//", "a/b/c", f"{TASK}/al", f"{TASK}/al/x", f"{TASK}#")
    ],
    ("start-capture", {"Epoch": None}, "Epoch", "required"),
    ("stop-capture", {"N": 0}, "N", ""),
    ("start-transcode", {"Speaker": ""}, "Speaker", ""),
    ("start-upload", {"UserSig": MARK}, "UserSig", "known"),
    ("send-callback", {"Revision": None}, "Revision", "required"),
    ("session-accepted", {"Warnings": "w"}, "Warnings", ""),
    ("session-refused", {"RequestId": None}, "RequestId", "required"),
    ("recording-started", {"Time": None}, "Time", "required"),
    ("recording-interrupted", {"Reason": None}, "Reason", "required"),
    ("recording-resumed", {"MediaSeconds": -1}, "MediaSeconds", "minimum"),
    ("recording-progress", {"Reason": "eof"}, "Reason", "known"),
    ("recording-done", {"Attempt": 0}, "Attempt", ""),
    ("failed-recording", {"File": FILE | {"Status": 2}}, "File.Status", ""),
    ("failed-transcode", {"File": FILE | {"Message": "oops"}}, "File.Message", ""),
    ("failed-cos-write", {"File": {k: v for k, v in FILE.items() if k != "Gaps"}}, "File.Gaps", "required"),
    ("session-finished", {"EndReason": "Bored"}, "EndReason", ""),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
"""Any JSON value."""


def with_more(data: Any) -> Any:
    """Data with an unknown field in each of its objects."""
    if isinstance(data, dict):
        return {name: with_more(part) for name, part in data.items()} | {"Later": [{"Much": 1}]}
    return [with_more(part) for part in data] if isinstance(data, list) else data
