"""The upload of a file that still grows: its parts leave as soon as they are whole, all but the first.

Rules:
- The first part stays back, because its beginning changes when the file ends: the index of an MP4, the first frame of an MP3. The
  upload of the finished file (cos_upload.py) resumes from `state` and sends it.
- A file that begins again has other bytes: the upload is aborted and begins again too.
- A failed request is repeated at a later look. Parts wait on the disk meanwhile.
- On a bounded spool the state is durable after each part (`sent`), and then the part's bytes may be released. Such an upload
  cannot begin again.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from machine import failpoints, metrics
from tencent import cos_requests, cos_upload, file_parts

log = structlog.get_logger()

# Smaller ones leave less to send when the file ends, behind the last one. The first one is as small as COS allows.
PART_BYTES = 2 * file_parts.MIN_PART_BYTES

Connect = Callable[[], Awaitable[cos_requests.Client]]
"""Makes a client with fresh keys."""
Sent = Callable[[cos_upload.UploadState], None]
"""Keeps the state of an upload durably (blocking). Raises OSError."""


class LiveUpload:
    """One file's upload. Call `look` again and again; `state` is where the upload of the finished file resumes."""

    def __init__(
        self,
        ask: cos_upload.Ask,
        in_thread: file_parts.InThread,
        path: Path,
        part_bytes: int = PART_BYTES,
        *,
        sent: Sent | None = None,
    ) -> None:
        self._sent = sent
        self.until_bytes: int | None = None  # no byte behind it is sent
        self._ask = ask
        self._in_thread = in_thread
        self._path = path
        self._file = -1
        self._begun_again = False
        shorter_bytes = file_parts.MIN_PART_BYTES - part_bytes
        self.state = cos_upload.UploadState(upload_id="", part_size_bytes=part_bytes, head_bytes=shorter_bytes, confirmed=True)
        self._offset = self.sent_bytes

    def resume(self, state: cos_upload.UploadState) -> None:
        """Go on where an earlier upload of the same file has stopped."""
        self.state = state
        self._offset = self.sent_bytes

    @property
    def sent_bytes(self) -> int:
        """Where the first byte is that was not sent; the first part counts as sent."""
        return self.state.part_size_bytes + (self.state.head_bytes or 0) + sum(part.size for part in self.state.parts)

    async def look(self, connect: Connect) -> None:
        """Send the parts that are whole by now, with a client of `connect`. Raises its errors, errors.UploadFailed, after which a
        later look goes on, and OSError."""
        client: cos_requests.Client | None = None
        try:
            while (data := await self._in_thread(self._next)) is not None:
                client = client or await connect()
                if data:
                    await self._send(client, data)
                else:
                    await self._abort(client)
        except cos_requests.RequestFailed as failed:
            if failed.code == cos_upload.GONE and self._sent is None:
                self._forget()
            raise failed.as_upload_failed("sending a part of a growing file") from failed

    async def give_up(self, connect: Connect) -> None:
        """Abort the upload, whose file is not wanted. Parts that stay behind are removed with the next upload of the key. Raises
        the errors of `connect`."""
        if not self.state.upload_id:
            return
        try:
            await self._abort(await connect())
        except cos_requests.RequestFailed as failed:
            if failed.code != cos_upload.GONE:  # another node began an upload of the key, which has aborted this one
                log.warning("upload.parts-left", reason=failed.reason, code=failed.code)

    async def close(self) -> None:
        """Close the file; safe to call twice."""
        file, self._file = self._file, -1
        if file >= 0:
            await self._in_thread(lambda: os.close(file))

    def _next(self) -> bytes | None:
        """The next part (blocking); b"" if the file has begun again, None if no whole part follows yet."""
        if self._begun_again:  # its upload is still to be aborted
            return b""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        if self._file >= 0 and not os.path.samestat(found, os.fstat(self._file)):
            os.close(self._file)
            self._file = -1
            self._begun_again = True
            return b""
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        size_bytes = file_parts.part_size_bytes(self.state.part_size_bytes, self._number)
        end = found.st_size if self.until_bytes is None else min(found.st_size, self.until_bytes)
        return os.pread(self._file, size_bytes, self._offset) if end >= self._offset + size_bytes else None

    @property
    def _number(self) -> int:
        return len(self.state.parts) + 2

    async def _send(self, client: cos_requests.Client, data: bytes) -> None:
        if not self.state.upload_id:
            await self._clear(client)
            failpoints.hit("upload.create.before")
            self.state = replace(self.state, upload_id=await self._ask(client.create))
            failpoints.hit("upload.create.after")
        number, upload_id = self._number, self.state.upload_id
        failpoints.hit("upload.part.before")
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        etag = await self._ask(lambda: client.put_part(upload_id, number, data, base64.b64encode(digest).decode("ascii")))
        metrics.UPLOAD_BYTES.inc(len(data))
        failpoints.hit("upload.part.after")
        part = cos_requests.Part(number=number, size=len(data), etag=etag)
        self.state = replace(self.state, parts=(*self.state.parts, part))
        self._offset += len(data)
        if self._sent is not None:
            await self._in_thread(partial(self._sent, self.state))

    async def _clear(self, client: cos_requests.Client) -> None:
        """Abort the uploads under this key: only its one capture uploads to it, so they are of processes that died."""
        try:
            for upload_id in await self._ask(client.list_uploads):
                log.info("upload.leftover")
                await self._ask(partial(client.abort, upload_id))
        except cos_requests.RequestFailed as failed:
            # Cleanup never fails an upload.
            log.info("upload.leftovers_unknown", code=failed.code)

    async def _abort(self, client: cos_requests.Client) -> None:
        upload_id = self.state.upload_id
        self._forget()
        if upload_id:
            await self._ask(lambda: client.abort(upload_id))

    def _forget(self) -> None:
        self.state = replace(self.state, upload_id="", parts=())
        self._offset = self.sent_bytes
        self._begun_again = False
