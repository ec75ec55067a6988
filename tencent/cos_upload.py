"""One upload of one file to COS: create or resume, send parts, complete, compare.

Rules: `save` receives the UploadId and every part before the next step, so that a restart resumes there. The file must still have
the size and CRC-64 that its verification noted: this is compared before Complete. An upload counts only if COS's CRC-64 and size
equal those of the file. A failure that a retry could cure is never reported as fatal.

The loop is our own because the SDK's `upload_file` compares no CRC, shares one UploadId between the workers of a key, never
aborts and cannot be cancelled. All sizes take the same path: a small file is an upload of one part.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from machine import errors, failpoints, metrics, uploaded_object
from machine.reasons import Reason
from tencent import cos_requests, cos_target, file_parts

log = structlog.get_logger()

Part = cos_requests.Part

STARTS = 3  # how often one call restarts an upload

GONE = "NoSuchUpload"
_TAKEN = "FileAlreadyExists"
_PARTS_DISAGREE = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall"})


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    """An upload in COS as the caller stores it: the parts sent so far, and the size of the first ones in bytes (later ones grow:
    see `file_parts`). `head_bytes`: by how much the first part of an upload that began while its file grew is longer, or shorter
    (negative); None for another upload. `confirmed`: COS has confirmed the parts to this process, so it need not list them; it is
    not stored."""

    upload_id: str
    parts: tuple[Part, ...] = ()
    part_size_bytes: int = file_parts.FIRST_PART_BYTES
    head_bytes: int | None = None
    confirmed: bool = False

    def to_json(self) -> str:
        """One line of JSON."""
        sent = [[part.number, part.size, part.etag] for part in self.parts]
        body: dict[str, object] = {"upload_id": self.upload_id, "part_size_bytes": self.part_size_bytes, "parts": sent}
        if self.head_bytes is not None:
            body["head_bytes"] = self.head_bytes
        return json.dumps(body)

    @classmethod
    def from_json(cls, text: str) -> UploadState:
        """The inverse of to_json. Raises ValueError, KeyError or TypeError for any other text."""
        read = json.loads(text)
        sent = tuple(Part(number=int(number), size=int(size), etag=str(etag)) for number, size, etag in read["parts"])
        head_bytes = int(read["head_bytes"]) if "head_bytes" in read else None
        part_size_bytes = int(read["part_size_bytes"])
        return cls(upload_id=str(read["upload_id"]), parts=sent, part_size_bytes=part_size_bytes, head_bytes=head_bytes)


Ask = Callable[[Callable[[], Any]], Awaitable[Any]]
Save = Callable[[UploadState], Awaitable[None]]


class _RestartUpload(Exception):
    """This upload cannot succeed; the next one may. `leftover` is the UploadId whose parts COS still keeps, or ""."""

    def __init__(self, failure: errors.UploadFailed, *, leftover: str = "") -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.leftover = leftover


class Upload:
    """One call of CosUploader.upload; `ask` makes a request with its retries, `in_thread` runs other blocking work."""

    def __init__(
        self,
        ask: Ask,
        in_thread: file_parts.InThread,
        client: cos_requests.Client,
        path: Path,
        target: cos_target.CosTarget,
        save: Save,
        verified: file_parts.VerifiedFile | None = None,
    ) -> None:
        self._ask = ask
        self._client = client
        self._path = path
        self._reader = file_parts.PartReader(path, in_thread, verified)
        self._verified = verified
        self._target = target
        self._save = save

    async def run(self, state: UploadState) -> uploaded_object.UploadedObject:
        """Upload; restart a few times if COS has dropped the upload or holds different content."""
        for start in range(1, STARTS + 1):
            try:
                return await self._once(state)
            except _RestartUpload as restart:
                log.warning("upload.afresh", detail=restart.failure.detail, start=start)
                failure = restart.failure
                state = replace(state, upload_id="", parts=(), head_bytes=None)
                if restart.leftover:
                    await self._give_up_ours(restart.leftover, state)
        # Whatever COS answered last, it is retryable: a later try restarts the upload.
        reason = Reason.MISMATCH if failure.reason == Reason.MISMATCH else Reason.SERVER
        raise errors.UploadFailed(failure.detail, reason=reason, retry=True)

    async def _once(self, state: UploadState) -> uploaded_object.UploadedObject:
        known: dict[int, Part] | None = {}
        if state.upload_id and state.confirmed:
            known = {part.number: part for part in state.parts}
        elif state.upload_id:
            known = await self._known(state)
        else:
            state = await self._create(state)
        if known is None:
            return await self._settled(*await self._reader.measure(state.part_size_bytes), _gone("resuming the upload"))
        if state.head_bytes is not None and self._verified is not None:
            return await self._rest(state, known, self._verified)
        sent: list[Part] = []
        size_bytes = crc64 = 0
        async with contextlib.aclosing(self._reader.blocks(state.part_size_bytes)) as blocks:
            async for block in blocks:
                part = known.get(block.number)
                if part is None or not _is_part(block, part):
                    part = await self._put(state.upload_id, block)
                    await self._save(replace(state, parts=(*sent, part)))
                sent.append(part)
                size_bytes, crc64 = size_bytes + part.size, block.crc64
        self._reader.compare(size_bytes, str(crc64))
        return await self._complete(state.upload_id, sent, size_bytes, str(crc64))

    async def _rest(
        self, state: UploadState, known: dict[int, Part], verified: file_parts.VerifiedFile
    ) -> uploaded_object.UploadedObject:
        """Send the parts that did not leave while the file grew, the first one above all. The others are not read again: the
        CRC-64 of the object proves them."""
        await self._reader.check()
        noted = {part.number: part for part in state.parts}
        sent: list[Part] = []
        layout = file_parts.layout(state.part_size_bytes, state.head_bytes or 0, verified.size_bytes)
        for number, offset, size_bytes in layout:
            part = known.get(number)
            if part is None or part != noted.get(number) or part.size != size_bytes:
                part = await self._put(state.upload_id, await self._reader.block(number, offset, size_bytes))
                noted[number] = part
                state = replace(state, parts=tuple(each for _, each in sorted(noted.items())))
                await self._save(state)
            sent.append(part)
        return await self._complete(state.upload_id, sent, verified.size_bytes, verified.crc64)

    async def _create(self, state: UploadState) -> UploadState:
        await self._reader.check()
        await self._clear(state)
        failpoints.hit("upload.create.before")
        tries = 0

        def create() -> str:
            nonlocal tries
            tries += 1
            return self._client.create()

        try:
            upload_id = await self._ask(create)
        except cos_requests.RequestFailed as failed:
            raise failed.as_upload_failed("beginning the upload") from failed
        failpoints.hit("upload.create.after")
        state = replace(state, upload_id=upload_id, parts=())
        try:
            await self._save(state)
        except errors.LeaseRefused:
            await self._give_up(upload_id)
            raise
        if tries > 1:
            await self._clear(state)
        return state

    async def _clear(self, state: UploadState) -> None:
        """Abort unfinished uploads under this key that were never saved and are not the one of `state`: a crash between the two,
        or a lost response, leaves parts that cost the customer storage. If they cannot be listed, the bucket's lifecycle rule has
        to remove them."""
        try:
            begun = await self._ask(self._client.list_uploads)
        except cos_requests.RequestFailed as failed:
            # Cleanup never fails an upload: if the bucket has a problem, the upload itself reports it.
            log.info("upload.leftovers_unknown", code=failed.code)
            return
        for upload_id in begun:
            if upload_id != state.upload_id:
                log.info("upload.leftover")
                await self._give_up_ours(upload_id, state)

    async def _known(self, state: UploadState) -> dict[int, Part] | None:
        """The parts in COS; None if COS has dropped the upload. If the key may not list them, the saved parts count, and the CRC
        at the end proves them."""
        try:
            listed = await self._ask(lambda: self._client.list_parts(state.upload_id))
        except cos_requests.RequestFailed as failed:
            if failed.code == GONE:
                return None
            if failed.code != "AccessDenied":
                raise failed.as_upload_failed("listing the parts sent before") from failed
            listed = state.parts
        log.info("upload.resumed", parts=len(listed))
        return {part.number: part for part in listed}

    async def _put(self, upload_id: str, block: file_parts.Block) -> Part:
        failpoints.hit("upload.part.before")
        md5 = base64.b64encode(block.md5).decode("ascii")
        try:
            etag = await self._ask(lambda: self._client.put_part(upload_id, block.number, block.data, md5))
        except cos_requests.RequestFailed as failed:
            failure = failed.as_upload_failed(f"sending part {block.number}")
            raise (_RestartUpload(failure) if failed.code == GONE else failure) from failed
        metrics.UPLOAD_BYTES.inc(len(block.data))
        failpoints.hit("upload.part.after")
        return Part(number=block.number, size=len(block.data), etag=etag)

    async def _complete(
        self, upload_id: str, sent: Sequence[Part], size_bytes: int, crc64: str
    ) -> uploaded_object.UploadedObject:
        if not sent:
            raise errors.UploadFailed(f"The file {self._path.name} is empty.", reason=Reason.FILE_MISSING, retry=False)
        failpoints.hit("upload.complete.before")
        try:
            told = await self._ask(lambda: self._client.complete(upload_id, sent))
        except cos_requests.RequestFailed as failed:
            failure = failed.as_upload_failed("putting the parts together")
            if failed.code in (GONE, _TAKEN):
                return await self._settled(size_bytes, crc64, failed)
            if failed.code in _PARTS_DISAGREE:
                raise _RestartUpload(failure, leftover=upload_id) from failed
            raise failure from failed
        failpoints.hit("upload.complete.after")
        return await self._compared(size_bytes, crc64, told)

    async def _settled(self, size_bytes: int, crc64: str, failed: cos_requests.RequestFailed) -> uploaded_object.UploadedObject:
        """COS no longer knows the upload, or already has an object: check whether the object is ours and only the response was
        lost."""
        seen = await self._head()
        if seen is not None and (seen.size_bytes, seen.crc64) == (size_bytes, crc64):
            return self._uploaded(size_bytes, crc64)
        failure = failed.as_upload_failed("putting the parts together")
        raise (failure if failed.code == _TAKEN else _RestartUpload(failure)) from failed

    async def _compared(self, size_bytes: int, crc64: str, told: str) -> uploaded_object.UploadedObject:
        """Check that the object equals the file, by size and CRC-64; `told` is the CRC from the response to Complete."""
        try:
            seen = await self._head()
        except errors.UploadFailed as failure:
            # A key may be allowed to write but not to read. Then the CRC from Complete proves the same.
            if failure.retry or told != crc64:
                raise
            return self._uploaded(size_bytes, crc64)
        if seen is None or (seen.size_bytes, seen.crc64) != (size_bytes, crc64):
            found = "nothing" if seen is None else f"{seen.size_bytes} bytes with CRC-64 {seen.crc64 or 'unknown'}"
            detail = f"The file has {size_bytes} bytes with CRC-64 {crc64}, the bucket has {found}."
            raise _RestartUpload(errors.UploadFailed(detail, reason=Reason.MISMATCH, retry=True))
        return self._uploaded(size_bytes, crc64)

    async def _give_up_ours(self, upload_id: str, state: UploadState) -> None:
        """Like `_give_up`, after checking that this is no successor's upload: a worker that was frozen must not abort an upload
        that another worker has created or resumed. Raises the errors of `save`."""
        await self._save(state)
        await self._give_up(upload_id)

    async def _give_up(self, upload_id: str) -> None:
        """Leftover parts cost the customer storage until the bucket's lifecycle rule removes them; a failed abort is not our
        failure."""
        try:
            await self._ask(lambda: self._client.abort(upload_id))
        except cos_requests.RequestFailed as failed:
            log.warning("upload.parts-left", reason=failed.reason, code=failed.code)

    def _uploaded(self, size_bytes: int, crc64: str) -> uploaded_object.UploadedObject:
        return uploaded_object.UploadedObject(size_bytes=size_bytes, crc64=crc64, url=cos_target.url(self._target))

    async def _head(self) -> cos_requests.ObjectSeen | None:
        failpoints.hit("upload.head.before")
        try:
            seen: cos_requests.ObjectSeen | None = await self._ask(self._client.head)
        except cos_requests.RequestFailed as failed:
            raise failed.as_upload_failed("comparing the object with the file") from failed
        failpoints.hit("upload.head.after")
        return seen


def _is_part(block: file_parts.Block, part: Part) -> bool:
    """Whether COS has these bytes as this part: the ETag of a part is its MD5."""
    return (part.size, part.etag.lower()) == (len(block.data), block.md5.hex())


def _gone(what: str) -> cos_requests.RequestFailed:
    return cos_requests.RequestFailed(Reason.REFUSED, code=GONE, status=404, message=f"COS has forgotten the upload while {what}")
