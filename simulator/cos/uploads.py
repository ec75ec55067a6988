"""Multipart uploads: parts in any order, listed, completed, aborted.

Rules (COS docs "Multipart upload"): parts 1 … 10,000 of at least 1 MB but for the last; a repeated part replaces the older one;
Complete names the parts in ascending order with their ETags and joins exactly those; afterwards the UploadId is gone. The
object's ETag is the MD5 of the parts' MD5s and their number. All of it survives a restart of the simulator.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simulator.cos import objects, responses

MAX_PARTS = 10_000
MIN_PART_BYTES = 1_048_576
CHUNK_BYTES = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part as it was received; ETag without quotes."""

    number: int
    size: int
    etag: str
    crc64: str
    modified_s: float


@dataclass(slots=True, kw_only=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    upload_id: str
    bucket: str
    key: str
    initiated_s: float
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)
    parts: dict[int, Part] = field(default_factory=dict)


class Uploads:
    """All open multipart uploads."""

    def __init__(self, folder: Path, stored: objects.Objects) -> None:
        self._folder = folder / "cos-uploads"
        self._objects = stored
        self._uploads: dict[str, Upload] = {}

    def start(self) -> None:
        """Read the open uploads of an earlier run."""
        self._uploads.clear()
        for entry in self._folder.glob("*/upload.json"):
            fields = json.loads(entry.read_text())
            parts = {int(number): Part(**part) for number, part in fields.pop("parts").items()}
            self._uploads[fields["upload_id"]] = Upload(**fields, parts=parts)

    def all(self, bucket: str | None = None) -> list[Upload]:
        """Open uploads in the order of their keys' bytes."""
        chosen = [upload for upload in self._uploads.values() if bucket in (None, upload.bucket)]
        return sorted(chosen, key=lambda upload: (upload.bucket, upload.key.encode(), upload.initiated_s))

    def initiate(self, bucket: str, key: str, *, now_s: float, content_type: str, metadata: dict[str, str]) -> Upload:
        """Open an upload."""
        upload = Upload(
            upload_id=f"{int(now_s * 1000)}{uuid.uuid4().hex}", bucket=bucket, key=key, initiated_s=now_s,
            content_type=content_type, metadata=metadata,
        )  # fmt: skip
        self._uploads[upload.upload_id] = upload
        self._save(upload)
        return upload

    def get(self, bucket: str, key: str, upload_id: str) -> Upload:
        """The open upload of this key. Raises answers.Refused (404 NoSuchUpload)."""
        upload = self._uploads.get(upload_id)
        if upload is None or (upload.bucket, upload.key) != (bucket, key):
            raise responses.Refused(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        return upload

    def add(self, upload: Upload, number: int, draft: objects.Draft, *, now_s: float) -> Part:
        """Keep a received part, in place of an older one of the number."""
        draft.close()
        part = Part(number=number, size=draft.size, etag=draft.md5.hex(), crc64=draft.crc64, modified_s=now_s)
        draft.path.replace(self._part_path(upload, number))
        upload.parts[number] = part
        self._save(upload)
        return part

    def choose(self, upload: Upload, wanted: Sequence[tuple[int, str]]) -> list[Part]:
        """The parts that Complete names. Raises answers.Refused (MalformedXML, InvalidPartOrder, InvalidPart, EntityTooSmall)."""
        numbers = [number for number, _ in wanted]
        if not numbers:
            raise responses.malformed()
        if numbers != sorted(set(numbers)):
            raise responses.Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        parts = [upload.parts.get(number) for number in numbers]
        chosen = [part for part, (_, etag) in zip(parts, wanted, strict=True) if part is not None and part.etag == etag]
        if len(chosen) != len(wanted):
            raise responses.Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
        if any(part.size < MIN_PART_BYTES for part in chosen[:-1]):
            raise responses.Refused(400, "EntityTooSmall", "A part that is not the last is smaller than 1 MB.")
        return chosen

    def join(self, upload: Upload, parts: Sequence[Part]) -> objects.Draft:
        """The parts as one file; blocking, for a thread."""
        draft = self._objects.draft()
        for part in parts:
            with self._part_path(upload, part.number).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    draft.write(chunk)
        draft.close()
        return draft

    def remove(self, upload: Upload) -> None:
        """Forget an upload and its parts."""
        if self._uploads.pop(upload.upload_id, None) is not None:
            shutil.rmtree(self._folder / upload.upload_id, ignore_errors=True)

    def _part_path(self, upload: Upload, number: int) -> Path:
        return self._folder / upload.upload_id / f"part-{number}"

    def _save(self, upload: Upload) -> None:
        entry = self._folder / upload.upload_id / "upload.json"
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = entry.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(dataclasses.asdict(upload)))
        part.replace(entry)


def etag(parts: Sequence[Part]) -> str:
    """The ETag of an object made of these parts."""
    whole = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(parts)}"
