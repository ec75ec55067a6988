"""Examples of the operators' answers, for the OpenAPI document. Rules: as in `examples`."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

REQUEST_ID = "01JBX5R2M4N6P8Q0R2S4T6V8WX"
NODE: Json = {
    "Node": "node-5f1c0a9e2b7d4c36",
    "Host": "recorder-2",
    "Address": "http://10.0.0.12:8080",
    "Roles": ["worker"],
    "Version": "0.1.0",
    "State": "draining",
    "Cordon": "draining",
    "Started": "2026-11-02T07:00:00.000Z",
    "LastHeartbeat": "2026-11-02T08:45:00.000Z",
    "Captures": 3,
    "Leases": {"capture": 3, "upload": 1},
    "Slots": {"capture": {"Used": 3, "Limit": 0}, "upload": {"Used": 1, "Limit": 8}},
    "FreeBytes": 412316860416,
    "NeededBytes": 2147483648,
    "Busy": "it is cordoned",
    "ClockAheadMs": -3,
}
TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
BULK: dict[str, Json] = {
    "replay": {"TaskIds": [TASK_ID], "DryRun": False},
    "stop": {"TaskIds": [TASK_ID]},
    "resend": {"TaskIds": [TASK_ID]},
}
PARKED_IDS: Json = {"Ids": ["3f1c0a9e2b7d", "row-17"]}
NEW_KEY: Json = {"Name": "lessons", "Scopes": ["read", "start"], "Quota": 20}
_KEY: Json = {
    "Id": "k7m2p9xq",
    "Name": "lessons",
    "Scopes": ["read", "start"],
    "Quota": 20,
    "Created": "2026-11-02T08:00:00+00:00",
    "Used": "",
    "Revoked": "",
}
_PARKED: Json = {
    "Id": "3f1c0a9e2b7d",
    "In": "queue",
    "Key": "event.start",
    "MessageId": "lesson-17",
    "Time": "2026-11-02T08:00:00.000+00:00",
    "Size": 412,
    "Reason": "CosConfig.Bucket: is required",
}
_ENTRY: Json = {
    "Time": "2026-11-02T08:00:00+00:00",
    "Who": "key k7m2p9xq lessons",
    "Action": "stop",
    "Subject": TASK_ID,
    "Outcome": "ok",
}
ANSWERS: dict[str, Json] = {
    "Bulk": {
        "Done": 1,
        "Outcomes": [{"TaskId": TASK_ID, "Code": "ok", "Message": "alice/1: upload from its files"}],
        "RequestId": REQUEST_ID,
    },
    "ParkedMessages": {"Messages": [_PARKED], "Count": 1, "RequestId": REQUEST_ID},
    "ParkedMessage": {**_PARKED, "Headers": {"x-queue": "recorder.requests"}, "Body": "{}", "RequestId": REQUEST_ID},
    "ParkedOutcomes": {
        "Done": 1,
        "Outcomes": [{"Id": "3f1c0a9e2b7d", "Code": "ok", "Message": ""}],
        "RequestId": REQUEST_ID,
    },
    "Keys": {"Keys": [_KEY], "RequestId": REQUEST_ID},
    "Key": {**_KEY, "RequestId": REQUEST_ID},
    "CreatedKey": {**_KEY, "Key": "rec_k7m2p9xq_…", "RequestId": REQUEST_ID},
    "Audit": {"Audit": [_ENTRY], "Next": 0, "RequestId": REQUEST_ID},
    "Node": {**NODE, "RequestId": REQUEST_ID},
    "Nodes": {"Nodes": [NODE], "RequestId": REQUEST_ID},
}
