"""The answers of the API as JSON Schemas, for the OpenAPI document. Pure; imports `machine` for the contract's names.

Rule: every field of an answer is named here, and always there; a test holds real answers against these. What events/schemas.json
describes is referred to, not repeated.
"""

from __future__ import annotations

from typing import Any

from machine import delivery, states

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
COUNT: Json = {"type": "integer", "minimum": 0}
SECONDS: Json = {"type": "number", "minimum": 0}
TIME: Json = {"type": "string", "description": 'ISO 8601 in UTC; "" where there is none.'}


def _object(description: str, **fields: Json) -> Json:
    return {
        "type": "object",
        "description": description,
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def _answer(description: str, **fields: Json) -> Json:
    return _object(description, **fields, RequestId=TEXT | {"description": "Find it in the service's log."})


def _list(of: Json, description: str = "") -> Json:
    return {"type": "array", "items": of} | ({"description": description} if description else {})


def _one_of(names: tuple[str, ...], description: str = "") -> Json:
    return {"type": "string", "enum": list(names)} | ({"description": description} if description else {})


def _said(schema: Json, description: str) -> Json:
    return schema | {"description": description}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


STATE = _one_of(states.RECORDING_STATES)
NEXT = _said(TEXT, 'What to type next, as a sentence; "" if nothing is to be done.')
HEAD: dict[str, Json] = {
    "TaskId": _ref("TaskId"),
    "State": _one_of(states.SESSION_STATES),
    "EndReason": _one_of(("", *states.END_REASONS), 'Why it closed; "" while it is Open.'),
    "SdkAppId": _said(TEXT, "TRTC application, decimal."),
    "RoomId": _said(TEXT, 'Integer room, decimal; "" if the room is a string room.'),
    "StrRoomId": _said(TEXT, 'String room; "" if the room is an integer room.'),
    "UserId": _said(TEXT, "The recording user."),
    "Mode": _one_of(("00", "01", "02")),
    "OpenedTime": TIME,
    "ClosingTime": TIME,
    "FinishedTime": TIME,
    "Revision": _said(COUNT, "Of the newest result; 0 before there is one."),
    "Stuck": _list(_ref("Finding"), "Why a person should look at it; in the list only where `stuck` was asked for."),
}
COUNTS: Json = {
    "type": "object",
    "description": "How many recordings are in each state; states without any are left out.",
    "properties": {state: {"type": "integer", "minimum": 1} for state in states.RECORDING_STATES},
    "additionalProperties": False,
}
GAP = _object("A gap.", At=_said(SECONDS, "Position in the media."), Duration=_said(SECONDS, "Wall seconds missing there."))
JOB: Json = {
    "anyOf": [{"type": "null"}, _object("What is being done, and by which node.", Kind=TEXT, State=TEXT, Node=TEXT)],
}

COMPONENTS: dict[str, Json] = {
    "Error": _answer(
        "Every error.",
        Code=_said(TEXT, "InvalidParameter, Unauthorized, NotFound, FailedOperation, …"),
        Message=_said(TEXT, "Names the field and says why."),
    ),
    "Accepted": _answer(
        "The start was taken.",
        TaskId=_ref("TaskId"),
        Repeated=_said(FLAG, "The session was Open already; only its secrets were renewed."),
        Warnings=_list(TEXT, "What to configure, if anything."),
    ),
    "Finding": _object(
        "One reason to look at a session.",
        Rule=_said(TEXT, "The rule's name, for programs."),
        Of=_said(TEXT, '"" for the session, speaker/n for a recording, #revision for a result\'s delivery.'),
        Why=TEXT,
        Next=NEXT,
    ),
    "SessionLine": _object("One session of the list.", **HEAD, Recordings=COUNTS),
    "Sessions": _answer(
        "A page of sessions, newest first.",
        Sessions=_list(_ref("SessionLine")),
        Next=_said(TEXT, 'The `before` of the page after it; "" on the last.'),
    ),
    "Segment": _object(
        "One FLV file of a recording, written by one run of ffmpeg.",
        Epoch=COUNT,
        Node=_said(TEXT, "On whose spool it lies."),
        StartTime=TIME,
        EndTime=TIME,
        MediaSeconds=SECONDS,
        Size=_said(COUNT, "Bytes."),
        EndedBy=_said(TEXT, 'How its run ended; "" while it is under way.'),
        Live=_said(FLAG, "It is growing now."),
    ),
    "Recording": _object(
        "One appearance of one speaker.",
        Speaker=TEXT,
        N=COUNT,
        State=STATE,
        Capture=_one_of(states.CAPTURES),
        Job=JOB,
        Attempt=_said(COUNT, "1 first, one more for each replay."),
        Tries=_said(COUNT, "Failures of the present step in a row."),
        Code=TEXT,
        Detail=TEXT,
        Next=NEXT,
        StopRequested=FLAG,
        Present=_said({"type": ["boolean", "null"]}, "What callbacks say of the speaker; null: nothing."),
        Awaited=_said(FLAG, "A subscribed speaker who was never seen."),
        OpenedTime=TIME,
        StartTime=TIME,
        EndTime=TIME,
        EndedTime=TIME,
        MediaSeconds=_said(SECONDS, "Captured so far, the run under way included."),
        FilesRemoved=_said(FLAG, "Nothing of it is kept on the spool any more."),
        Segments=_list(_ref("Segment")),
        Gaps=_list(GAP, "What is missing between its segments."),
        File={"anyOf": [{"type": "null"}, _ref("File")], "description": "Its entry in the result; null until it has ended."},
    ),
    "Callback": _object(
        "The delivery of one revision of the result.",
        Revision=COUNT,
        State=_one_of((delivery.PENDING, delivery.DELIVERED, delivery.FAILED, delivery.CANCELLED)),
        Tries=COUNT,
        Detail=TEXT,
    ),
    "TimelineLine": _object(
        "What happened, and what became of it.",
        Time=TIME,
        Of=_said(TEXT, '"" for the session, speaker/n for a recording, #revision for a result\'s delivery.'),
        Event=TEXT,
        From=TEXT,
        To=TEXT,
        Note=TEXT,
    ),
    "Session": _answer(
        "A session with all that is known of it.",
        **HEAD,
        CosConfig=_object("Where the files go.", Region=TEXT, Bucket=TEXT, Path=TEXT),
        Callback=_said(TEXT, "Scheme and host of the callback URL; the rest of it may be a secret."),
        SubscribeUserIds=_list(TEXT),
        UnSubscribeUserIds=_list(TEXT),
        Warnings=_list(TEXT, "What to configure, if anything."),
        Next=NEXT,
        Recordings=_list(_ref("Recording")),
        Callbacks=_list(_ref("Callback")),
        Timeline=_list(_ref("TimelineLine")),
        Results=_list(_ref("session-finished"), "Every revision of the result, oldest first."),
    ),
    "Stopped": _answer("The session closes.", TaskId=_ref("TaskId"), State=_one_of(states.SESSION_STATES)),
    "Replayed": _answer(
        "What happens to each recording.",
        TaskId=_ref("TaskId"),
        Recordings=_list(_object("One recording.", Speaker=TEXT, N=COUNT, State=STATE, To=STATE, Attempt=COUNT)),
    ),
    "Result": _object(
        "One message to subscribers.",
        Cursor=_said(TEXT, "The `after` that goes on behind it. Opaque: compare for equality only."),
        Id=_said(TEXT, "The message's id: the same message has the same id on every road."),
        Type=TEXT,
        Time=TIME,
        Subject=_said(TEXT, 'TaskId or TaskId/speaker/n; "" for session-refused.'),
        Data=_said({"type": "object"}, "As described for this type under `components`."),
    ),
    "Results": _answer(
        "Results of all sessions, oldest first.",
        Results=_list(_ref("Result")),
        Next=_said(TEXT, "The `after` of the next request, whether there were results or not."),
    ),
    "Alive": _answer("The process is alive.", Status={"const": "alive"}, Version=TEXT),
    "Ready": _answer("This node may get work.", Status={"const": "ready"}),
    "Taken": _answer("TRTC need not send it again.", code={"const": 0}),
    "TrtcCallback": {
        "type": "object",
        "description": "As TRTC sends it; more fields than these may come.",
        "properties": {
            "EventGroupId": {"type": "integer", "description": "1 rooms, 2 media."},
            "EventType": {"type": "integer", "description": "102, 103, 104, 105, 201 to 204; others change nothing."},
            "CallbackTs": _said(COUNT, "Unix ms."),
            "EventInfo": {"type": "object", "description": "RoomId, UserId, EventTs, EventMsTs, Role, Reason, …"},
        },
        "required": ["EventType", "EventInfo"],
    },
}
