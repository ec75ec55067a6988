"""The OpenAPI document. FastAPI writes it from the routes and their response models; `install` adds the contract's schemas.

Rule: a request body is its event's schema in events/schemas.json. Only TRTC's callback has its schema here: it is Tencent's.
"""

from __future__ import annotations

import copy
from typing import Any

import fastapi
import pydantic
from fastapi.openapi import utils

from events import codec
from web import examples, models, scopes

Json = dict[str, Any]

REFERENCE = "#/components/schemas/"
IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 128 printable characters. A repeat under the same key gets the first answer and changes nothing;"
    " another request under it gets 422.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
BEARER: Json = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key made by `recorder keys create` that has the scope of the operation, or one of API_TOKENS, which have"
    " all scopes. On loopback the service asks for neither until a token or a key exists.",
}
TRTC_CALLBACK: Json = {
    "type": "object",
    "description": "As TRTC sends it; more fields than these are possible.",
    "properties": {
        "EventGroupId": {"type": "integer", "description": "1 rooms, 2 media."},
        "EventType": {"type": "integer", "description": "102, 103, 104, 105, 201 to 204; others change nothing."},
        "CallbackTs": {"type": "integer", "minimum": 0, "description": "Unix ms."},
        "EventInfo": {"type": "object", "description": "RoomId, UserId, EventTs, EventMsTs, Role, Reason, …"},
    },
    "required": ["EventType", "EventInfo"],
}
# Events whose schema is a request body; those of results describe Result.Data.
REQUESTS = ("start", "stop", "replay", "resend")
OBJECTS = ("Manifest", "ManifestRecording")  # in the bucket, and in no answer
# Errors that any route can answer: see web.middleware and web.responses.
ANYWHERE = (401, 403, 429, 500, 503)
# FastAPI's own form of an invalid query, which `responses` replaces by 400.
REPLACED_STATUS, REPLACED_SCHEMAS = "422", ("HTTPValidationError", "ValidationError")


def failures(*statuses: int, anywhere: tuple[int, ...] = ANYWHERE) -> dict[int | str, Json]:
    """`responses` of a route: the errors that it answers, and those that any route answers."""
    found = sorted({*statuses, *anywhere})
    return {status: {"model": models.ErrorBody, "description": examples.FAILURES[status][0]} for status in found}


def request_body(schema: str, example: Json, *, required: bool = True) -> Json:
    """`openapi_extra` of a route that takes a body and an Idempotency-Key."""
    return {"requestBody": _request(schema, example, required=required), "parameters": [IDEMPOTENCY_KEY]}


def body_of(kind: type[pydantic.BaseModel], example: Json, *, idempotent: bool = False) -> Json:
    """`openapi_extra` of a route whose body is a model of its own; `idempotent`: it also takes an Idempotency-Key."""
    content = {"application/json": {"schema": kind.model_json_schema(), "example": example}}
    body: Json = {"requestBody": {"required": True, "content": content}}
    return body | ({"parameters": [IDEMPOTENCY_KEY]} if idempotent else {})


def trtc_callback() -> Json:
    """`openapi_extra` of the route that TRTC posts to."""
    headers = [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "example": example}
        for name, example in examples.CALLBACK_HEADERS.items()
    ]
    return {"requestBody": _request("TrtcCallback", examples.CALLBACK), "parameters": headers}


def install(app: fastapi.FastAPI) -> None:
    """Replace the application's own `openapi()`, as FastAPI documents it."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _document(app: fastapi.FastAPI) -> Json:
    whole = utils.get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    written = whole.get("components", {}).get("schemas", {})
    answers = {_published_name(name): _published(schema) for name, schema in written.items() if name not in REPLACED_SCHEMAS}
    whole["paths"] = _published(whole.get("paths", {}))
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            scope = scopes.required(method.upper(), path)
            operation["security"] = [] if scope in scopes.UNGUARDED else [{"bearer": [scope]}]
            if "HTTPValidationError" in str(operation["responses"].get(REPLACED_STATUS)):
                del operation["responses"][REPLACED_STATUS]
            _add_examples(operation["responses"])
    whole["components"] = {"schemas": {**_event_schemas(), **answers}, "securitySchemes": {"bearer": BEARER}}
    return whole


def _add_examples(answers: Json) -> None:
    """After FastAPI has written the document: it leaves out every null, also in examples."""
    for status, answer in answers.items():
        content = answer["content"].get("application/json")
        if content is None:
            continue  # media: an example would be a film
        name = content["schema"]["$ref"].removeprefix(REFERENCE)
        content["example"] = _failure(int(status)) if name == "Error" else examples.ANSWERS[name]


def _failure(status: int) -> Json:
    _, code, message = examples.FAILURES[status]
    return {"Code": code, "Message": message, "RequestId": examples.REQUEST_ID}


def _event_schemas() -> Json:
    defs = codec.schemas()["$defs"]
    wanted = (*REQUESTS, *codec.types("out"))
    shared = [name for name, schema in defs.items() if "x-direction" not in schema and name not in OBJECTS]
    found: Json = {name: _published(defs[name]) for name in (*shared, *wanted)}
    nothing = {"type": "object", "description": "Nothing: the path names the session.", "additionalProperties": False}
    bodies = {f"{name}-body": _without_task_id(found[name]) for name in ("replay", "resend")}
    return {**found, **bodies, "stop-body": nothing, "TrtcCallback": TRTC_CALLBACK}


def _without_task_id(schema: Json) -> Json:
    """The event's schema without the TaskId, which the path has."""
    body = copy.deepcopy(schema)
    del body["properties"]["TaskId"]
    del body["required"]
    return body


def _published(schema: Any) -> Any:
    """A copy whose references lead into `components`, without the titles that pydantic makes out of names."""
    if isinstance(schema, list):
        return [_published(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _published(value) for name, value in schema.items() if name != "title" or not isinstance(value, str)}
    if "$ref" in found:
        found["$ref"] = REFERENCE + _published_name(found["$ref"].rpartition("/")[2])
    if models.SCHEMA_NAME in found:
        found["$ref"] = REFERENCE + found.pop(models.SCHEMA_NAME)
    return found


def _published_name(class_name: str) -> str:
    return class_name.removesuffix("Body")


def _request(schema: str, example: Json, *, required: bool = True) -> Json:
    content = {"application/json": {"schema": {"$ref": REFERENCE + schema}, "example": example}}
    return {"required": required, "content": content}
