"""COS's responses: its XML documents and error responses, and the one XML document that it parses.

Rule: only this module escapes text; a document type declaration is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


class Refused(Exception):
    """COS refuses a request: HTTP status, its code, and a message in English."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


def document(name: str, fields: Mapping[str, Any]) -> bytes:
    """An XML document: values are text, a mapping is nested, a list repeats its element, None omits it."""
    return (HEAD + _element(name, fields)).encode()


def error(refused: Refused, *, resource: str, request_id: str) -> bytes:
    """The `<Error>` document of a refusal."""
    fields = {"Code": refused.code, "Message": refused.message, "Resource": resource, "RequestId": request_id}
    return document("Error", fields | {"TraceId": request_id[::-1]})


def read_parts(body: bytes) -> list[tuple[int, str]]:
    """The (number, ETag without quotes) of a `<CompleteMultipartUpload>`, in its order. Raises Refused (MalformedXML)."""
    parts: list[dict[str, str]] = []
    path: list[str] = []

    def begin(name: str, _: Mapping[str, str]) -> None:
        path.append(name)
        if name == "Part":
            parts.append({})

    def text(data: str) -> None:
        if path[1:2] == ["Part"] and len(path) == 3:
            parts[-1][path[2]] = parts[-1].get(path[2], "") + data

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: path.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(body, True)
        return [(int(part["PartNumber"]), part["ETag"].strip().strip('"')) for part in parts]
    except (expat.ExpatError, KeyError, ValueError):
        raise malformed() from None


def malformed() -> Refused:
    """The refusal of a body that is not the expected XML."""
    return Refused(400, "MalformedXML", "The XML you provided was not well-formed or did not validate.")


def _refuse_doctype(*_: object) -> None:
    raise malformed()


def _element(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        inner = "".join(_element(key, item) for key, item in value.items())
        return f"<{name}>{inner}</{name}>"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "".join(_element(name, item) for item in value)
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return f"<{name}>{escape(text)}</{name}>"
