"""The shape of an OpenAPI document: what a client depends on, without wording, order or the split into components."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

# Keywords that change no value: JSON Schema's annotations.
ANNOTATIONS = ("title", "description", "example", "examples", "default")


def operations(document: Json) -> dict[str, Json]:
    """Every operation by `method path`: its id, rights, parameters, body and answers, each schema without references."""
    return {
        f"{method} {path}": {
            "id": operation["operationId"],
            "tags": operation["tags"],
            "security": operation["security"],
            "parameters": {(p["in"], p["name"]): _parameter(document, p) for p in operation.get("parameters", [])},
            "body": _body(document, operation.get("requestBody")),
            "answers": {status: _contents(document, answer["content"]) for status, answer in operation["responses"].items()},
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def described(document: Json) -> set[str]:
    """The fields of bodies and answers that have a description, as `method path where: field.field`."""
    found: set[str] = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            bodies = {"body": operation["requestBody"]} if "requestBody" in operation else {}
            for where, content in {**bodies, **operation["responses"]}.items():
                for media in content["content"].values():
                    found |= {f"{method} {path} {where}: {name}" for name in _described(document, media["schema"], ())}
    return found


def _parameter(document: Json, parameter: Json) -> Json:
    default = parameter["schema"].get("default")
    return {"required": parameter["required"], "default": default, "schema": plain(document, parameter["schema"])}


def _body(document: Json, body: Json | None) -> Json | None:
    return body and {"required": body["required"], **_contents(document, body["content"])}


def _contents(document: Json, content: Json) -> Json:
    return {kind: {"schema": plain(document, c["schema"]), "example": "example" in c} for kind, c in content.items()}


def plain(document: Json, schema: Any) -> Any:
    """The schema in one canonical form: references followed, unions sorted, annotations and extensions left out."""
    if isinstance(schema, bool):
        return schema
    schema = {k: v for k, v in _followed(document, schema).items() if k not in ANNOTATIONS and not k.startswith("x-")}
    if isinstance(schema.get("type"), list):
        schema["anyOf"] = [{"type": name} for name in schema.pop("type")]
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    if "enum" in schema:
        # The values have types of their own.
        schema = {**schema, "enum": sorted(schema["enum"], key=_order)}
        schema.pop("type", None)
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]
    if "required" in schema:
        schema["required"] = sorted(schema["required"])
    for name in ("properties", "patternProperties"):
        if name in schema:
            schema[name] = {field: plain(document, value) for field, value in schema[name].items()}
    for name in ("items", "additionalProperties", "propertyNames", "not", "if", "then", "else"):
        if name in schema:
            schema[name] = plain(document, schema[name])
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            schema[name] = sorted((plain(document, value) for value in schema[name]), key=_order)
    return schema


def _order(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _followed(document: Json, schema: Json) -> Json:
    """The schema that its reference leads to, with the keywords next to the reference."""
    while "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        schema = {**document["components"]["schemas"][name], **{k: v for k, v in schema.items() if k != "$ref"}}
    return schema


def _described(document: Json, schema: Any, place: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    schema = _followed(document, schema)
    for name, field in schema.get("properties", {}).items():
        if _followed(document, field).get("description"):
            yield ".".join((*place, name))
        yield from _described(document, field, (*place, name))
    for below in (schema.get("items"), *schema.get("anyOf", ())):
        yield from _described(document, below, place)
