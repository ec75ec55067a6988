"""The object that an upload made in the bucket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedObject:
    """An object that equals the file: size in bytes, CRC-64/XZ as a decimal string, URL."""

    size_bytes: int
    crc64: str
    url: str
