"""Objects as files: `folder/cos/{bucket}/{key}`, so that a developer finds the recording there.

Rules:
- A key can never lead out of its bucket's folder. A key that is not a plain relative path (`..`, empty segments, a leading dot,
  control characters, longer than a file name may be), or that collides with another as file and folder, is stored as
  `.keys/{SHA-256 of the key}`. The index file next to the objects (`folder/cos-index`) maps keys to files.
- An object appears whole or not at all: written under another name, then renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcrc import crc64


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An object: its file, size, ETag (without quotes), CRC-64/XZ as COS writes it (decimal), time of writing in Unix s."""

    bucket: str
    key: str
    path: Path
    size: int
    etag: str
    crc64: str
    modified_s: float
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)


class Draft:
    """A file being written, with its digests. `close` before use; `drop` if it is not wanted."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.size = 0
        self._file = path.open("wb")
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._md5.update(data)
        self._crc = crc64.xz(data, self._crc)
        self.size += len(data)

    def close(self) -> None:
        """End writing. A second call does nothing."""
        self._file.close()

    def drop(self) -> None:
        """Remove the file, if it was not moved away."""
        self.close()
        self.path.unlink(missing_ok=True)

    @property
    def md5(self) -> bytes:
        """MD5 of the written bytes."""
        return self._md5.digest()

    @property
    def crc64(self) -> str:
        """CRC-64/XZ of the written bytes, decimal, as COS gives it in x-cos-hash-crc64ecma."""
        return str(self._crc)


class Objects:
    """All objects of all buckets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cos"
        self._index = folder / "cos-index"
        self._drafts = folder / "cos-drafts"
        self._stored: dict[tuple[str, str], Stored] = {}

    def start(self) -> None:
        """Read the index of an earlier run; objects whose file is gone are dropped."""
        self._stored.clear()
        for entry in self._index.glob("*/*.json"):
            fields = json.loads(entry.read_text())
            stored = Stored(**fields | {"path": self.folder / fields["path"]})
            if stored.path.is_file():
                self._stored[stored.bucket, stored.key] = stored

    def draft(self) -> Draft:
        """A new file to write an object or a part into."""
        return Draft(self._drafts / uuid.uuid4().hex)

    def get(self, bucket: str, key: str) -> Stored | None:
        """The object, None if there is none."""
        return self._stored.get((bucket, key))

    def all(self, bucket: str | None = None) -> list[Stored]:
        """Objects in the order of their keys' bytes, as COS lists them."""
        chosen = [stored for stored in self._stored.values() if bucket in (None, stored.bucket)]
        return sorted(chosen, key=lambda stored: (stored.bucket, stored.key.encode()))

    def put(self, draft: Draft, bucket: str, key: str, **fields: Any) -> Stored:
        """Store a draft as the object of this key, in place of an older one; `fields` are those of Stored."""
        draft.close()
        path = self._path(bucket, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {"etag": draft.md5.hex()} | fields
        stored = Stored(bucket=bucket, key=key, path=path, size=draft.size, crc64=draft.crc64, **fields)
        draft.path.replace(path)
        self._write_index(stored)
        self._stored[bucket, key] = stored
        return stored

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object and the folders it leaves empty; no error if there is none, as in COS."""
        stored = self._stored.pop((bucket, key), None)
        if stored is not None:
            stored.path.unlink(missing_ok=True)
            self._entry(stored).unlink(missing_ok=True)
            for parent in stored.path.parents:
                if parent == self.folder or any(parent.iterdir()):
                    break
                parent.rmdir()

    def _path(self, bucket: str, key: str) -> Path:
        known = self._stored.get((bucket, key))
        if known is not None:
            return known.path
        root = self.folder / bucket
        plain = root / key
        if not _is_plain(key) or plain.is_dir() or any(above.is_file() for above in plain.parents):
            return root / ".keys" / _digest(key)
        return plain

    def _entry(self, stored: Stored) -> Path:
        return self._index / stored.bucket / f"{_digest(stored.key)}.json"

    def _write_index(self, stored: Stored) -> None:
        entry = self._entry(stored)
        entry.parent.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.asdict(stored) | {"path": str(stored.path.relative_to(self.folder))}
        part = entry.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(fields))
        part.replace(entry)


def _is_plain(key: str) -> bool:
    segments = key.split("/")
    return (
        len(key.encode()) <= 1024
        and key.isprintable()
        and "\\" not in key
        and all(segment and not segment.startswith(".") and len(segment.encode()) <= 240 for segment in segments)
    )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
