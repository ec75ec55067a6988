"""The OpenAPI document, compared with the application and its real responses: every route, every reference, every example."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from fastapi import routing

from machine import api_keys
from tests import engines, openapi_shape
from tests.integration import api_service
from tests.integration.api_service import Service, start_body
from web import session_filter

UNDESCRIBED = ("/openapi.json",)
# The document of the first release, before response models, from which clients were built.
RELEASED = Path(__file__).parents[1] / "data" / "openapi-0.1.0.json"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


def fault(document: dict[str, Any], schema: Any, value: Any) -> str:
    """The reason why the value violates the schema, with references resolved in the document; "" if it fits."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": document["components"], "allOf": [schema]}
    found = list(jsonschema_rs.validator_for(whole, validate_formats=True).iter_errors(value))
    return "; ".join(f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in found)


def references(value: Any) -> Iterator[str]:
    """Every $ref below a value."""
    if isinstance(value, dict):
        for name, child in value.items():
            if name == "$ref":
                yield child
            else:
                yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def contents(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body and answer in JSON, with its operation and status."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                yield f"{method} {path}", operation["requestBody"]["content"]["application/json"]
            for status, answer in operation["responses"].items():
                if "application/json" in answer["content"]:
                    yield f"{method} {path} {status}", answer["content"]["application/json"]


def schema_of(document: dict[str, Any], method: str, path: str, status: int) -> dict[str, Any]:
    """The schema of one answer."""
    found: dict[str, Any] = document["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    return found


async def test_every_route_is_described_and_nothing_else(service: Service) -> None:
    """The paths and methods of the document are those of the application."""
    flat = [r for route in service.routes for r in _leaves(route)]
    real = {(path, m.lower()) for path, methods in flat for m in methods - {"HEAD"} if path not in UNDESCRIBED}
    described = {(path, method) for path, operations in service.document["paths"].items() for method in operations}
    assert described == real
    assert len(real) == 26


ADDED_TO_COS_CONFIG = ("StorageClass", "ServerSideEncryption", "SSEKMSKeyId", "Tagging")
# Additions since the release: fields of answers, and parameters (which clients may leave out) and statuses of operations.
ADDED_FIELDS = {
    "Sessions": ("Attention",),
    "Session": ("RecordingsNext", "TimelineNext", "ResultsNext", "UserData", "CallbackEvents", "Manifest"),
    "SessionLine": ("UserData",),
    "start": ("UserData", "CallbackEvents", "Manifest"),
    **dict.fromkeys(
        ("recording-done", "failed-recording", "failed-transcode", "failed-cos-write", "session-finished"), ("UserData",)
    ),
    "CosConfig": ADDED_TO_COS_CONFIG,
    "Recording": ("SegmentsOmitted",),
    "TimelineLine": ("Count", "FirstTime"),
    "Replayed": ("Skipped", "Result"),
    "ReplayedRecording": ("Action", "Object"),
    "Callback": ("Host", "Attempts", "LastTime", "NextTime", "Answer"),
}
ADDED_OPERATIONS = {
    "post /sessions/{TaskId}/resend",
    "get /sessions/{TaskId}/live",
    *(f"post /bulk/{action}" for action in ("replay", "stop", "resend")),
    *("get /nodes", *(f"post /nodes/{{Node}}/{action}" for action in ("cordon", "drain", "uncordon"))),
    *("get /parked", "get /parked/{Id}", "post /parked/requeue", "post /parked/drop"),
    *("get /keys", "post /keys", "post /keys/{Id}/revoke", "get /audit"),
}
ADDED_TO_OPERATIONS = {
    ("get", "/sessions"): (("undelivered", "user", "speaker", "node", "code", "until"), ()),
    ("get", "/sessions/{TaskId}"): (("recordings", "timeline", "results", "limit"), ("400",)),
    ("get", "/results"): ((), ("410",)),
    ("post", "/sessions"): ((), ("409", "422")),
    ("post", "/sessions/{TaskId}/stop"): ((), ("422",)),
    ("post", "/sessions/{TaskId}/replay"): ((), ("422",)),
}


def _leaves(route: Any) -> list[tuple[str, set[str]]]:
    """(path, methods) of a route, or of those of an included router."""
    if isinstance(route, routing.APIRoute):
        # The routes between nodes are not part of the API.
        return [(route.path, set(route.methods or ()))] if route.include_in_schema else []
    contexts = getattr(route, "effective_route_contexts", None)
    return [(c.path, set(c.methods)) for c in contexts() if c.include_in_schema] if contexts else []


def _without_additions(document: dict[str, Any]) -> dict[str, Any]:
    """A copy of the document without what was added since the release."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for component, fields in ADDED_FIELDS.items():
        schema = copy["components"]["schemas"][component]
        for name in fields:
            del schema["properties"][name]
            schema["required"] = [each for each in schema["required"] if each != name]
    for name in ADDED_TO_COS_CONFIG:
        del copy["components"]["schemas"]["start"]["properties"]["CosConfig"]["properties"][name]
    for (method, path), (parameters, statuses) in ADDED_TO_OPERATIONS.items():
        operation = copy["paths"][path][method]
        operation["parameters"] = [p for p in operation["parameters"] if p["name"] not in parameters]
        for status in statuses:
            del operation["responses"][status]
    return copy


async def test_the_document_is_compatible_with_the_release(service: Service) -> None:
    """Clients of the released document keep working: operations, parameters, bodies, statuses, media types, fields, required
    fields, types, enums and nulls are the same, except for the additions, and every body and answer has an example."""
    released = json.loads(RELEASED.read_text("utf-8"))
    before, now = openapi_shape.operations(released), openapi_shape.operations(_without_additions(service.document))
    assert now.keys() - ADDED_OPERATIONS == before.keys()
    for name, operation in before.items():
        for part, shape in operation.items():
            assert now[name][part] == shape, f"{name}: {part}"


async def test_every_name_of_the_released_document_stays(service: Service) -> None:
    """Components keep their names, described fields keep a description, and keys are sent in the same way."""
    released = json.loads(RELEASED.read_text("utf-8"))
    assert released["components"]["schemas"].keys() <= service.document["components"]["schemas"].keys()
    assert openapi_shape.described(released) - openapi_shape.described(service.document) == set()
    scheme = {name: service.document["components"]["securitySchemes"]["bearer"][name] for name in ("type", "scheme")}
    assert scheme == {"type": "http", "scheme": "bearer"}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["Session"]["properties"].pop("Revision"),
        lambda c: c["Session"]["required"].remove("Revision"),
        lambda c: c["Recording"]["properties"]["Present"].update(type="boolean"),
        lambda c: c["Recording"]["properties"]["State"]["enum"].remove("Done"),
        lambda c: c["Result"]["properties"].update(More={"type": "string"}),
        lambda c: c["start"]["required"].remove("UserId"),
    ],
)
def test_a_change_of_shape_is_found(change: Callable[[dict[str, Any]], Any]) -> None:
    """The comparison finds a changed field, type, null, enum value or required field."""
    released, changed = (json.loads(RELEASED.read_text("utf-8")) for _ in range(2))
    change(changed["components"]["schemas"])
    assert openapi_shape.operations(released) != openapi_shape.operations(changed)


async def test_every_reference_resolves(service: Service) -> None:
    """Every $ref leads to a component, and none into the document of the events."""
    for reference in references(service.document):
        *folders, name = reference.removeprefix("#/").split("/")
        assert folders == ["components", "schemas"], reference
        assert name in service.document["components"]["schemas"], reference


async def test_every_component_is_a_schema(service: Service) -> None:
    """Each component alone is valid JSON Schema 2020-12."""
    assert service.document["openapi"].startswith("3.1")
    for name, schema in service.document["components"]["schemas"].items():
        plain = json.loads(json.dumps(schema))
        assert jsonschema_rs.meta.is_valid(plain | {"$schema": "https://json-schema.org/draft/2020-12/schema"}), name


async def test_every_body_and_answer_has_an_example_that_fits(service: Service) -> None:
    """Every body and answer, errors included, has a schema and a matching example; FastAPI's own error form is not used."""
    seen = 0
    for where, content in contents(service.document):
        assert "example" in content, where
        assert fault(service.document, content["schema"], content["example"]) == "", where
        seen += 1
    assert seen > 40
    assert "HTTPValidationError" not in json.dumps(service.document)


async def test_every_error_has_its_own_code(service: Service) -> None:
    """The example of a status has the code that the service returns with it."""
    codes: dict[str, set[str]] = {}
    for operations in service.document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    codes.setdefault(status, set()).add(answer["content"]["application/json"]["example"]["Code"])
    assert {status: sorted(names) for status, names in codes.items()} == {
        "400": ["InvalidParameter"],
        "401": ["Unauthorized"],
        "403": ["Forbidden"],
        "404": ["NotFound"],
        "408": ["RequestTimeout"],
        "409": ["AlreadyRecording", "FailedOperation"],
        "410": ["CursorLost"],
        "413": ["RequestTooLarge"],
        "415": ["UnsupportedMediaType"],
        "422": ["IdempotencyKeyReused"],
        "429": ["LimitExceeded"],
        "500": ["InternalError"],
        "503": ["ServiceUnavailable"],
        "507": ["InsufficientSpace"],
    }


async def test_query_parameters_are_described(service: Service) -> None:
    """Each query parameter has a description."""
    for path, names in (
        ("/sessions", set(session_filter.SessionFilter.model_fields)),
        ("/results", {"after", "limit", "wait", "type"}),
    ):
        parameters = service.document["paths"][path]["get"]["parameters"]
        assert {p["name"] for p in parameters} == names
        assert all(p.get("description") for p in parameters)


async def test_the_examples_of_requests_are_accepted(service: Service) -> None:
    """The service accepts the document's example of each request unchanged."""
    paths = service.document["paths"]
    start = paths["/sessions"]["post"]["requestBody"]["content"]["application/json"]["example"]
    status, answer = await service.ask("POST", "/sessions", json=start)
    assert status == 202
    await service.failed_recording(answer["TaskId"])
    for action, right in (("replay", 200), ("stop", 202)):
        example = paths[f"/sessions/{{TaskId}}/{action}"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert (await service.ask("POST", f"/sessions/{answer['TaskId']}/{action}", json=example))[0] == right


async def test_real_answers_are_as_described(service: Service) -> None:
    """Every field of an answer is described, and every described field is in the answer."""
    _, answer = await service.ask("POST", "/sessions", json=start_body(Callback="https://example.com/x"))
    task_id = answer["TaskId"]
    assert fault(service.document, schema_of(service.document, "post", "/sessions", 202), answer) == ""
    await service.failed_recording(task_id)
    asked = [
        ("get", "/sessions", 200, "/sessions?stuck=true"),
        ("get", "/sessions/{TaskId}", 200, f"/sessions/{task_id}"),
        ("get", "/results", 200, "/results"),
        ("post", "/sessions/{TaskId}/replay", 202, f"/sessions/{task_id}/replay"),
        ("get", "/sessions/{TaskId}", 200, f"/sessions/{task_id}"),
        ("post", "/sessions/{TaskId}/stop", 202, f"/sessions/{task_id}/stop"),
        ("get", "/healthz", 200, "/healthz"),
        ("get", "/readyz", 200, "/readyz"),
        ("get", "/sessions/{TaskId}", 404, "/sessions/none"),
        ("get", "/sessions", 400, "/sessions?limit=0"),
    ]
    for method, path, status, real in asked:
        got, body = await service.ask(method.upper(), real)
        assert got == status, body
        assert fault(service.document, schema_of(service.document, method, path, status), body) == "", real
    _, body = await service.ask("GET", "/results")
    for result in body["Results"]:
        schema = {"$ref": f"#/components/schemas/{result['Type']}"}
        assert fault(service.document, schema, result["Data"]) == "", result["Type"]
    _, body = await service.ask("GET", "/openapi.json")
    assert body == json.loads(json.dumps(service.document))


async def test_the_required_scope_is_described(database: engines.Database) -> None:
    """Every operation names its scope, except probes and TRTC's signed callbacks."""
    async with api_service.running(database, ("a-token",)) as guarded:
        document = guarded.document
    security = {p: o["security"] for p, operations in document["paths"].items() for o in operations.values()}
    assert security["/sessions/{TaskId}/stop"] == [{"bearer": ["operate"]}]
    free = {p for p, scopes in security.items() if not scopes}
    assert all(s in ([], *([{"bearer": [scope]}] for scope in api_keys.SCOPES)) for s in security.values())
    assert free == {"/healthz", "/readyz", "/trtc/callbacks"}
