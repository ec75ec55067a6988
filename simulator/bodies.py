"""JSON bodies of the control API: parsing and formatting.

Rule: an unknown field, or one of a wrong type, is an error that names it. Names are written LikeThis, as Tencent's are.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from aiohttp import web

F = TypeVar("F")
Fields = Mapping[str, type]
_TYPES: Mapping[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_WORDS: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


async def read(request: web.Request, fields: Fields) -> dict[str, Any]:
    """The JSON object of the request ({} if none). Raises ValueError that names the wrong field."""
    body = await request.json() if request.can_read_body else {}
    return checked(body, fields)


def checked(body: Any, fields: Fields) -> dict[str, Any]:
    """`body`, an object whose fields are known and of their types. Raises ValueError."""
    if not isinstance(body, dict):
        raise ValueError("the body is not a JSON object")
    for name, value in body.items():
        if name not in fields:
            raise ValueError(f"{name} is not known; there are {', '.join(fields)}")
        if not _is(value, fields[name]):
            raise ValueError(f"{name} is not {_WORDS[fields[name]]}")
    return body


async def read_rules(request: web.Request, kind: type[F]) -> list[F]:
    """A JSON array of objects as values of the dataclass `kind`. Raises ValueError."""
    body = await request.json()
    if not isinstance(body, list):
        raise ValueError("the body is not a JSON array of objects")
    names = {pascal(field.name): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    types = {name: _TYPES[str(field.type)] for name, field in names.items()}
    required = [name for name, field in names.items() if field.default is dataclasses.MISSING]
    rules = []
    for item in body:
        given = checked(item, types)
        for name in required:
            if name not in given:
                raise ValueError(f"{name} is required")
        rules.append(kind(**{names[name].name: value for name, value in given.items()}))
    return rules


def shown(value: Any) -> dict[str, Any]:
    """A dataclass as JSON, its names LikeThis."""
    return {pascal(name): each for name, each in dataclasses.asdict(value).items()}


def answer(data: Any, *, status: int = 200) -> web.Response:
    """JSON for people who read it in a terminal."""
    return web.json_response(data, status=status, dumps=_pretty)


def _pretty(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def pascal(name: str) -> str:
    """`event_type` as EventType."""
    return re.sub(r"(?:^|_)([a-z])", lambda match: match[1].upper(), name)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
