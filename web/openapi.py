"""The OpenAPI document: bodies from the events' schemas, examples, and the one form of every error. May import `events`.

Rule: nothing is described here that schemas.json describes already.
"""

from __future__ import annotations

import copy
from typing import Any

import fastapi
from fastapi.openapi import utils

from events import codec

Json = dict[str, Any]

TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
START_EXAMPLE: Json = {
    "SdkAppId": 1400000001,
    "RoomId": 8489,
    "UserId": "recorder-8489",
    "UserSig": "eJw1jcEKgkAURX8lZh3y…",
    "CosConfig": {
        "Region": "ap-shanghai",
        "Bucket": "lessons-1250000000",
        "Path": "2026/autumn",
        "SecretId": "AKID…",
        "SecretKey": "…",
    },
    "Mode": "02",
    "Callback": "https://example.com/recorded",
}
REPLAY_EXAMPLE: Json = {"Speaker": "alice", "N": 1, "From": "transcoding", "DryRun": True}
STOP_EXAMPLE: Json = {}
CALLBACK_EXAMPLE: Json = {
    "EventGroupId": 2,
    "EventType": 203,
    "CallbackTs": 1664209748188,
    "EventInfo": {"RoomId": 8489, "EventTs": 1664209748, "EventMsTs": 1664209748180, "UserId": "alice"},
}
ERROR: Json = {
    "type": "object",
    "description": "Every error.",
    "properties": {
        "Code": {"type": "string", "description": "InvalidParameter, Unauthorized, NotFound, FailedOperation, …"},
        "Message": {"type": "string", "description": "Names the field and says why."},
        "RequestId": {"type": "string", "description": "Find it in the service's log."},
    },
    "required": ["Code", "Message", "RequestId"],
    "example": {"Code": "InvalidParameter", "Message": "CosConfig.Bucket: is required", "RequestId": TASK_ID},
}
IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 128 printable characters. A repeat under the same key gets the first answer and changes nothing.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
# Types whose schema is a body or an answer here.
TYPES = ("start", "stop", "replay", "session-accepted", "session-finished")


def start() -> Json:
    """What POST /sessions says of itself."""
    accepted = {"TaskId": TASK_ID, "Repeated": False, "Warnings": [], "RequestId": TASK_ID}
    return _extra(_body("start", START_EXAMPLE), _answers(202, "The start was taken.", accepted, 400, 401, 413, 503, 507))


def listing() -> Json:
    """What GET /sessions says of itself."""
    line = {"TaskId": TASK_ID, "State": "Open", "EndReason": "", "SdkAppId": "1400000001", "RoomId": "8489", "StrRoomId": ""}
    line |= {
        "UserId": "recorder-8489",
        "Mode": "02",
        "OpenedTime": "2026-11-02T08:00:00.000Z",
        "ClosingTime": "",
        "FinishedTime": "",
    }
    example = {"Sessions": [{**line, "Revision": 0, "Recordings": {"Recording": 2}}], "Next": "", "RequestId": TASK_ID}
    return _extra({}, _answers(200, "A page of sessions; `Next` is the `before` of the page after it.", example, 400, 401))


def session() -> Json:
    """What GET /sessions/{TaskId} says of itself."""
    recording = {"Speaker": "alice", "N": 1, "State": "Recording", "Capture": "leased", "Code": "", "Detail": "", "Next": ""}
    line = {"Time": "2026-11-02T08:00:00.000Z", "Of": "alice/1", "Event": "capture-started", "From": "Joining", "To": "Recording"}
    example = {"TaskId": TASK_ID, "State": "Open", "Recordings": [recording], "Timeline": [{**line, "Note": ""}], "Results": []}
    return _extra({}, _answers(200, "The session, its recordings, its timeline and its results.", example, 401, 404))


def stop() -> Json:
    """What POST …/stop says of itself."""
    answer = {"TaskId": TASK_ID, "State": "Closing", "RequestId": TASK_ID}
    return _extra(_body("", STOP_EXAMPLE, required=False), _answers(202, "The session closes.", answer, 401, 404))


def replay() -> Json:
    """What POST …/replay says of itself."""
    step = {"Speaker": "alice", "N": 1, "State": "Failed", "To": "Transcoding", "Attempt": 2}
    answer = {"TaskId": TASK_ID, "Recordings": [step], "RequestId": TASK_ID}
    words = "What happens to each recording; 200 instead for a dry run."
    return _extra(_body("replay-body", REPLAY_EXAMPLE, required=False), _answers(202, words, answer, 400, 401, 404, 409))


def callback() -> Json:
    """What POST /trtc/callbacks says of itself."""
    names = ("SdkAppId", "Sign")
    headers = [{"name": n, "in": "header", "required": True, "schema": {"type": "string"}} for n in names]
    body = _body("", CALLBACK_EXAMPLE)["requestBody"]
    answer = {"code": 0, "RequestId": TASK_ID}
    return _extra({"requestBody": body, "parameters": headers, "security": []}, _answers(200, "Taken.", answer, 400, 401, 413))


def install(app: fastapi.FastAPI, *, bearer: bool) -> None:
    """Let the application describe itself with the events' schemas as components."""

    def document() -> Json:
        if app.openapi_schema is None:
            body = utils.get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            body.setdefault("components", {}).setdefault("schemas", {}).update(_components())
            if bearer:
                body["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
                body["security"] = [{"bearer": []}]
            app.openapi_schema = body
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _components() -> Json:
    defs = codec.schemas()["$defs"]
    named = {name: schema for name, schema in defs.items() if name in TYPES or "x-direction" not in schema}
    parts: Json = {name: _moved(schema) for name, schema in named.items()}
    body = copy.deepcopy(parts["replay"])
    del body["properties"]["TaskId"]
    del body["required"]
    return {**parts, "replay-body": body, "Error": ERROR}


def _moved(schema: Any) -> Any:
    """The schema with its references pointing into `components`."""
    if isinstance(schema, dict):
        return {k: _reference(v) if k == "$ref" else _moved(v) for k, v in schema.items()}
    return [_moved(s) for s in schema] if isinstance(schema, list) else schema


def _reference(reference: str) -> str:
    return reference.replace("#/$defs/", "#/components/schemas/")


def _body(type_: str, example: Json, *, required: bool = True) -> Json:
    schema = {"$ref": f"#/components/schemas/{type_}"} if type_ else {"type": "object"}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": required, "content": content}, "parameters": [IDEMPOTENCY_KEY]}


def _answers(status: int, description: str, example: Json, *failures: int) -> Json:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    words = {400: "A field is wrong.", 401: "No right token or signature.", 404: "No such session.", 409: "Not possible now."}
    words |= {413: "The body is too large.", 503: "Try again in a moment.", 507: "The spool is too full."}
    good = {"description": description, "content": {"application/json": {"example": example}}}
    return {str(status): good, **{str(f): {"description": words[f], "content": error} for f in failures}}


def _extra(more: Json, answers: Json) -> Json:
    return {"openapi_extra": {**more, "responses": answers}}
