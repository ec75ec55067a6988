"""AMF0, the value format of RTMP commands. Source: Adobe "Action Message Format AMF0", December 2007.

Rules: a peer chooses the bytes, so depth and number of values are bounded, and every fault is a ValueError. Dates and
references are read and returned as None, because no command of a pull needs them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

_DEEPEST = 16
_MOST_VALUES = 2_000
_DOUBLE = struct.Struct(">d")
_OBJECT_END = b"\x00\x00\x09"


class _Type:
    """The markers of the values."""

    NUMBER, BOOLEAN, STRING, OBJECT, NULL, UNDEFINED, REFERENCE, ECMA_ARRAY = 0, 1, 2, 3, 5, 6, 7, 8
    STRICT_ARRAY, DATE, LONG_STRING, XML, TYPED_OBJECT = 10, 11, 12, 15, 16


def encode(*values: float | bool | str | Mapping[str, Any] | None) -> bytes:
    """Encode numbers, booleans, strings, objects of these, and null."""
    return b"".join(_encoded(value) for value in values)


def decode(data: bytes) -> list[Any]:
    """All values of `data`. Raises ValueError if it is no AMF0, too deep, or has too many values."""
    reader = _Reader(data)
    found = []
    while reader.at < len(data):
        found.append(reader.value(0))
    return found


def _encoded(value: float | bool | str | Mapping[str, Any] | None) -> bytes:
    match value:
        case None:
            return bytes((_Type.NULL,))
        case bool():
            return bytes((_Type.BOOLEAN, value))
        case int() | float():
            return bytes((_Type.NUMBER,)) + _DOUBLE.pack(value)
        case str():
            raw = value.encode("utf-8", "surrogatepass")
            if len(raw) > 0xFFFF:
                return bytes((_Type.LONG_STRING,)) + len(raw).to_bytes(4, "big") + raw
            return bytes((_Type.STRING,)) + len(raw).to_bytes(2, "big") + raw
        case _:
            members = (len(key).to_bytes(2, "big") + key.encode("ascii") + _encoded(each) for key, each in value.items())
            return bytes((_Type.OBJECT,)) + b"".join(members) + _OBJECT_END


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values = 0
        self.at = 0

    def value(self, depth: int) -> Any:
        self._values += 1
        if depth > _DEEPEST or self._values > _MOST_VALUES:
            raise ValueError("the AMF0 values are too deep or too many")
        kind = self._take(1)[0]
        match kind:
            case _Type.NUMBER:
                return _DOUBLE.unpack(self._take(8))[0]
            case _Type.BOOLEAN:
                return self._take(1) != b"\x00"
            case _Type.STRING:
                return self._text(2)
            case _Type.OBJECT:
                return self._members(depth)
            case _Type.NULL | _Type.UNDEFINED:
                return None
            case _Type.REFERENCE:
                self._take(2)
                return None
            case _Type.ECMA_ARRAY:
                self._take(4)
                return self._members(depth)
            case _Type.STRICT_ARRAY:
                count = int.from_bytes(self._take(4), "big")
                return [self.value(depth + 1) for _ in range(min(count, _MOST_VALUES + 1))]
            case _Type.DATE:
                self._take(10)
                return None
            case _Type.LONG_STRING | _Type.XML:
                return self._text(4)
            case _Type.TYPED_OBJECT:
                self._text(2)
                return self._members(depth)
        raise ValueError(f"AMF0 has no type {kind}")

    def _members(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while True:
            key = self._text(2)
            if not key and self._data[self.at : self.at + 1] == b"\x09":
                self.at += 1
                return found
            found[key] = self.value(depth + 1)

    def _text(self, length_bytes: int) -> str:
        return self._take(int.from_bytes(self._take(length_bytes), "big")).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self._data):
            raise ValueError("the AMF0 values end too early")
        self.at += count
        return self._data[self.at - count : self.at]
