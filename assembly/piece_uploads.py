"""The live uploads of a recording on a bounded spool: one for each of its pieces (media/pieces.py), while they grow.

Rules: only noted bytes are sent. The state of an upload is beside its piece, and durable before the bytes that it replaces on
the disk are released. So any later run of this node completes the object.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from machine import failpoints
from media import bounded_file, file_threads, holes, pieces
from tencent import cos, cos_requests, cos_target, cos_upload, live_upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the pieces are: the recording's folder, the object of each piece by its number, and how to connect to it."""

    folder: Path
    target: Callable[[int], cos_target.CosTarget]
    connect: Callable[[cos_target.CosTarget], Awaitable[cos_requests.Client]]


class PieceUploads:
    """All pieces of one recording, as one live upload."""

    def __init__(self, uploader: cos.CosUploader, places: Places) -> None:
        self._uploader = uploader
        self._places = places
        self._uploads: dict[int, live_upload.LiveUpload] = {}

    def parts(self) -> int:
        """How many parts are in COS."""
        return sum(len(each.state.parts) for each in self._uploads.values())

    async def look(self) -> None:
        """Send the noted parts. Raises the errors of LiveUpload.look, after which a later look goes on."""
        for piece in await file_threads.BULK.run(pieces.of, self._places.folder):
            upload = self._uploads.get(piece.number)
            if upload is None:
                upload = self._uploads[piece.number] = await self._resumed(piece)
            upload.until_bytes = piece.size_bytes
            await upload.look(self._connect(piece.number))
            if upload.state.parts:
                spare_bytes = min(piece.spare_bytes, upload.sent_bytes)
                failpoints.hit("piece.release.before")
                await file_threads.BULK.run(holes.punch, piece.path, bounded_file.KEPT_BYTES, spare_bytes)
                failpoints.hit("piece.release.after")

    async def give_up(self) -> None:
        """Abort the uploads. Raises the errors of LiveUpload.give_up."""
        for number, upload in self._uploads.items():
            await upload.give_up(self._connect(number))

    async def close(self) -> None:
        """Close the files; safe to call twice."""
        for upload in self._uploads.values():
            await upload.close()

    def _connect(self, number: int) -> live_upload.Connect:
        return lambda: self._places.connect(self._places.target(number))

    async def _resumed(self, piece: pieces.Piece) -> live_upload.LiveUpload:
        target = self._places.target(piece.number)

        upload = self._uploader.live_piece(piece.path, target, lambda reached: save(piece.upload_path, target, reached))
        state = await file_threads.BULK.run(load, piece.upload_path, target)
        if state is not None:
            upload.resume(state)
        return upload


def save(path: Path, target: cos_target.CosTarget, state: cos_upload.UploadState) -> None:
    """Keep the state of an upload durably (blocking). Raises OSError."""
    pieces.write_durably(path, json.dumps({"object": cos_target.url(target), "state": json.loads(state.to_json())}))


def load(path: Path, target: cos_target.CosTarget) -> cos_upload.UploadState | None:
    """The state of an upload to this object (blocking); None if there is none."""
    try:
        read = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    return cos_upload.UploadState.from_json(json.dumps(read["state"])) if read["object"] == cos_target.url(target) else None
