"""The COS client: uploads files, checks buckets, aborts uploads; each request runs in a thread.

Rules: the SDK blocks, so none of its calls runs on the event loop. A check waits for no upload, and no request for another
bucket. The SDK's retries are off, because this module decides how often and how long to retry. COS's errors leave as
errors.UploadFailed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import fastcrc
import structlog

from machine import errors, metrics, start_warnings, uploaded_object
from machine.reasons import Reason
from tencent import cos_requests, cos_target, cos_upload, file_parts, live_upload, request_threads
from tencent import credentials as credentials_module

log = structlog.get_logger()
T = TypeVar("T")

CosTarget = cos_target.CosTarget
Part = cos_requests.Part
UploadState = cos_upload.UploadState
object_key = cos_target.object_key
url = cos_target.url

PAUSES_S = (0.5, 2.0, 5.0)
CHECK_TIMEOUT_S = 2
CHECK_THREADS = 16
CHECKS_PER_BUCKET = 4
# So many buckets may hold all the threads that one may have, before another one waits.
BUCKETS = 8


class CosUploader:
    """Uploads files, each request in one of the `threads` threads of its bucket, and checks buckets in others. `start` and `stop`
    are safe to call twice.

    `pauses_s` is the backoff of one request; after the last retry the error goes to the caller, whose own retry resumes from the
    saved state. A thread cannot be cancelled: a cancelled upload returns immediately, and its last request ends within the time
    limits of `cos_requests`.
    """

    def __init__(
        self,
        threads: int = 4,
        *,
        first_part_bytes: int = file_parts.FIRST_PART_BYTES,
        pauses_s: tuple[float, ...] = PAUSES_S,
        silence_timeout_s: float = cos_requests.SILENCE_TIMEOUT_S,
        read: file_parts.InThread | None = None,
    ) -> None:
        """`read` runs the blocking operations on files: a file system that hangs must not take the threads of requests."""
        if first_part_bytes < file_parts.MIN_PART_BYTES:
            raise ValueError(f"COS takes no part under {file_parts.MIN_PART_BYTES} bytes but the last")
        self._first_part_bytes = first_part_bytes
        self._pauses_s = pauses_s
        self._silence_timeout_s = silence_timeout_s
        self._threads = threads
        self._uploads = request_threads.RequestThreads(BUCKETS * threads, "cos")
        self._checks = request_threads.RequestThreads(CHECK_THREADS, "cos-check")
        self._read = read or self._uploads.run

    async def start(self) -> None:
        """Create the threads and the connection pools, and switch off the SDK's log. Connects to nothing."""
        cos_requests.silence_sdk()
        self._uploads.start()
        self._checks.start()

    async def stop(self) -> None:
        """Start no further request, wait for running ones (each has a time limit), and close the connections."""
        await asyncio.gather(self._uploads.stop(), self._checks.stop())

    async def upload(
        self,
        path: Path,
        target: cos_target.CosTarget,
        credentials: credentials_module.Credentials,
        *,
        state: UploadState | None,
        save: cos_upload.Save,
        verified: file_parts.VerifiedFile | None = None,
    ) -> uploaded_object.UploadedObject:
        """Upload the file at `path` to `target` and compare the result; resumes from `state` if given. A file that no longer
        equals `verified` completes no upload.

        `save` receives the state after the upload is created, after each part, and before an upload is aborted that may belong to
        a successor by now; its errors end the upload. Raises errors.UploadFailed with reason "refused" (fatal), "expired-token",
        "throttled", "server", "network", "mismatch", "file-missing" or "file-damaged".
        """
        client = self._client(self._uploads, target, credentials, self._silence_timeout_s)
        job = cos_upload.Upload(partial(self._ask, target), self._read, client, path, target, save, verified)
        return await job.run(state or UploadState(upload_id="", part_size_bytes=self._first_part_bytes))

    async def put(self, data: bytes, target: cos_target.CosTarget, credentials: credentials_module.Credentials) -> None:
        """Write a small object, in the place of an older one, and compare it by its CRC-64. Raises errors.UploadFailed."""
        client = self._client(self._uploads, target, credentials, self._silence_timeout_s)
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")
        try:
            told = await self._ask(target, lambda: client.put(data, md5))
        except cos_requests.RequestFailed as failed:
            raise failed.as_upload_failed("writing an object") from failed
        if told not in ("", str(fastcrc.crc64.xz(data))):
            raise errors.UploadFailed("COS has other bytes than were sent.", reason=Reason.MISMATCH, retry=True)

    def live(self, path: Path, target: cos_target.CosTarget) -> live_upload.LiveUpload:
        """An upload of the file at `path`, which still grows and may not exist yet; its parts are no longer than in `upload`."""
        part_bytes = min(self._first_part_bytes, live_upload.PART_BYTES)
        return live_upload.LiveUpload(partial(self._once, target), self._read, path, part_bytes)

    def live_piece(self, path: Path, target: cos_target.CosTarget, sent: live_upload.Sent) -> live_upload.LiveUpload:
        """As `live`, of a piece on a bounded spool: in small parts, which leave little to wait for. `sent`: see LiveUpload."""
        ask = partial(self._once, target)
        return live_upload.LiveUpload(ask, self._read, path, file_parts.MIN_PART_BYTES, sent=sent)

    def connect(self, target: cos_target.CosTarget, credentials: credentials_module.Credentials) -> cos_requests.Client:
        """A client for the looks of a live upload. Raises errors.UploadFailed after `stop`."""
        return self._client(self._uploads, target, credentials, self._silence_timeout_s)

    async def abort(self, target: cos_target.CosTarget, credentials: credentials_module.Credentials, upload_id: str) -> None:
        """Abort an upload and delete its parts; an unknown upload counts as aborted. Raises errors.UploadFailed."""
        client = self._client(self._uploads, target, credentials, self._silence_timeout_s)
        try:
            await self._ask(target, lambda: client.abort(upload_id))
        except cos_requests.RequestFailed as failed:
            if failed.code != cos_upload.GONE:
                raise failed.as_upload_failed("giving the upload up") from failed

    async def check_bucket(self, target: cos_target.CosTarget, credentials: credentials_module.Credentials) -> str:
        """Check once that the bucket exists for this key. Returns "" if it does, or a warning if COS only says that the key may
        not read (it may still be allowed to upload). Raises errors.UploadFailed: "refused" for a missing bucket, an unknown key
        or a wrong secret; another reason if the answer is unknown for now."""
        client = self._client(self._checks, target, credentials, CHECK_TIMEOUT_S)
        try:
            await self._checks.run_at_most(CHECKS_PER_BUCKET, target.bucket, client.head_bucket)
        except cos_requests.RequestFailed as failed:
            if failed.code == "AccessDenied":
                return f"{start_warnings.BUCKET_HIDDEN} {target.bucket}; whether it may upload there is not known yet."
            raise failed.as_upload_failed("looking at the bucket", cos_requests.START_ADVICE) from failed
        return ""

    async def _once(self, target: cos_target.CosTarget, request: Callable[[], T]) -> T:
        """Make one request in a thread of its bucket. Raises RequestFailed."""
        return await self._uploads.run_at_most(self._threads, target.bucket, request)

    async def _ask(self, target: cos_target.CosTarget, request: Callable[[], T]) -> T:
        """Make one request in a thread, and retry with backoff while its failure is temporary. Raises RequestFailed."""
        for pause_s in self._pauses_s:
            try:
                return await self._once(target, request)
            except cos_requests.RequestFailed as failed:
                if not failed.temporary:
                    raise
                metrics.UPLOAD_RETRIES.labels(failed.reason).inc()
                log.info("upload.request-retried", reason=failed.reason, status=failed.status, code=failed.code)
            await asyncio.sleep(pause_s)
        return await self._once(target, request)

    @staticmethod
    def _client(
        threads: request_threads.RequestThreads,
        target: cos_target.CosTarget,
        credentials: credentials_module.Credentials,
        timeout_s: float,
    ) -> cos_requests.Client:
        return cos_requests.Client(target, credentials, threads.session, silence_timeout_s=timeout_s)
