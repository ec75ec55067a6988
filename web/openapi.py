"""The OpenAPI document: bodies from the events' schemas, answers from `answer_schemas`, and an example of each, errors included.

May import `events`. Rule: nothing is described here that schemas.json describes already.
"""

from __future__ import annotations

import copy
from typing import Any

import fastapi
from fastapi.openapi import utils

from events import codec
from web import answer_schemas, examples, scopes

Json = dict[str, Any]

IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 128 printable characters. A repeat under the same key gets the first answer and changes nothing.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
BEARER: Json = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key made by `recorder keys create`, with the scope that the operation names, or one of API_TOKENS, which"
    " has all scopes. On loopback nothing is asked for until there is a token or a key.",
}
# Types whose schema is a body or part of an answer here; the results' are what Result.Data holds.
BODIES = ("start", "stop", "replay")
# What any route may answer besides its own: see web.middleware and web.responses.
ANYWHERE = (401, 403, 429, 500, 503)


def start() -> Json:
    """What POST /sessions says of itself."""
    good = _good(202, "The start was taken.", "Accepted", examples.ACCEPTED)
    return _extra(_body("start", examples.START), good, 400, 408, 413, 415, 503, 507)


def listing() -> Json:
    """What GET /sessions says of itself."""
    words = "A page of sessions; `Next` is the `before` of the page after it."
    return _extra({}, _good(200, words, "Sessions", examples.SESSIONS), 400, 503)


def session() -> Json:
    """What GET /sessions/{TaskId} says of itself."""
    words = "The session, its recordings, its timeline and its results."
    return _extra({}, _good(200, words, "Session", examples.SESSION), 404, 503)


def stop() -> Json:
    """What POST …/stop says of itself."""
    good = _good(202, "The session closes.", "Stopped", examples.STOPPED)
    return _extra(_body("stop-body", examples.STOP, required=False), good, 400, 404, 408, 413, 415, 503)


def replay() -> Json:
    """What POST …/replay says of itself."""
    good = _good(202, "What happens to each recording.", "Replayed", examples.REPLAYED)
    good |= _good(200, "What would happen to each recording: a dry run.", "Replayed", examples.REPLAYED)
    return _extra(_body("replay-body", examples.REPLAY, required=False), good, 400, 404, 408, 409, 413, 415, 503)


def results() -> Json:
    """What GET /results says of itself."""
    words = "Results behind `after`, or none where none came within `wait`; `Next` is the `after` of the next request."
    return _extra({}, _good(200, words, "Results", examples.RESULTS), 400, 503)


def callback() -> Json:
    """What POST /trtc/callbacks says of itself."""
    names = {"SdkAppId": "1400000001", "Sign": "kkoFeO3Oh2ZHnjtg8tEAQhtXK16/KI05W3BQff8IvGA="}
    headers = [
        {"name": n, "in": "header", "required": True, "schema": {"type": "string"}, "example": e} for n, e in names.items()
    ]
    body = _body("TrtcCallback", examples.CALLBACK)["requestBody"]
    more = {"requestBody": body, "parameters": headers, "security": []}
    return _extra(more, _good(200, "Taken.", "Taken", examples.TAKEN), 400, 401, 408, 413, 503, anywhere=(500,))


def alive() -> Json:
    """What GET /healthz says of itself."""
    return _extra({"security": []}, _good(200, "It is.", "Alive", examples.ALIVE), anywhere=(500,))


def ready() -> Json:
    """What GET /readyz says of itself."""
    return _extra({"security": []}, _good(200, "It should.", "Ready", examples.READY), 503, anywhere=(500,))


def install(app: fastapi.FastAPI) -> None:
    """Let the application describe itself with the events' schemas as components."""

    def document() -> Json:
        if app.openapi_schema is None:
            body = utils.get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path, operations in body.setdefault("paths", {}).items():
                for method, operation in operations.items():
                    operation.setdefault("security", [{"bearer": [scopes.needed(method.upper(), path)]}])
                    # The framework's own form of a refusal, which `answers` replaces.
                    operation["responses"].pop("422", None)
            # The framework leaves every null out, those of examples too.
            if "/sessions/{TaskId}" in body["paths"]:
                looked = body["paths"]["/sessions/{TaskId}"]["get"]["responses"]["200"]
                looked["content"]["application/json"]["example"] = examples.SESSION
            body["components"] = {"schemas": _components(), "securitySchemes": {"bearer": BEARER}}
            app.openapi_schema = body
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _components() -> Json:
    defs = codec.schemas()["$defs"]
    wanted = (*BODIES, *codec.types("out"))
    named = {name: schema for name, schema in defs.items() if name in wanted or "x-direction" not in schema}
    parts: Json = {name: _moved(schema) for name, schema in named.items()}
    return {**parts, "replay-body": _without_task_id(parts["replay"]), "stop-body": _no_fields(), **answer_schemas.COMPONENTS}


def _without_task_id(schema: Json) -> Json:
    """As the event, but for the TaskId, which stands in the path."""
    body = copy.deepcopy(schema)
    del body["properties"]["TaskId"]
    del body["required"]
    return body


def _no_fields() -> Json:
    return {"type": "object", "description": "Nothing: the path says which session.", "additionalProperties": False}


def _moved(schema: Any) -> Any:
    """The schema with its references pointing into `components`."""
    if isinstance(schema, dict):
        return {k: _reference(v) if k == "$ref" else _moved(v) for k, v in schema.items()}
    return [_moved(s) for s in schema] if isinstance(schema, list) else schema


def _reference(reference: str) -> str:
    return reference.replace("#/$defs/", "#/components/schemas/")


def _body(schema: str, example: Json, *, required: bool = True) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}}
    return {"requestBody": {"required": required, "content": content}, "parameters": [IDEMPOTENCY_KEY]}


def _good(status: int, description: str, schema: str, example: Json) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}}
    return {str(status): {"description": description, "content": content}}


def _extra(more: Json, good: Json, *failures: int, anywhere: tuple[int, ...] = ANYWHERE) -> Json:
    failed = {str(status): _failure(status) for status in sorted({*failures, *anywhere})}
    return {"openapi_extra": {**more, "responses": {**good, **failed}}}


def _failure(status: int) -> Json:
    description, code, message = examples.FAILURES[status]
    example = {"Code": code, "Message": message, "RequestId": examples.REQUEST_ID}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}}
    return {"description": description, "content": content}
