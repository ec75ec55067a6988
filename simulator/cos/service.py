"""COS over HTTP: verifies, applies faults, executes, and responds in COS's XML.

Rules:
- Every request must be signed (signature.py); there is no anonymous access.
- `x-cos-hash-crc64ecma` is CRC-64/XZ of the whole object, in decimal; an ETag is quoted in headers and in XML.
- `x-cos-forbid-overwrite: true` refuses to replace an object (409 FileAlreadyExists).
Source: COS XML API documents 436/7749 (PUT Object), 436/7746 … 436/7750 (multipart), 436/7730 (errors).
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import structlog
from aiohttp import web

from simulator import connection
from simulator.cos import faults, listing, objects, responses, routing, signature, uploads, wire

CHUNK_BYTES = 256 * 1024

log = structlog.get_logger()


class Cos:
    """The object storage of one simulator; see server.Simulator for `accounts` and `buckets`."""

    def __init__(
        self,
        folder: Path,
        *,
        accounts: Iterable[signature.Account] = (),
        buckets: Iterable[str] | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.accounts = {account.secret_id: account for account in accounts}
        self.buckets = None if buckets is None else set(buckets)
        self.objects = objects.Objects(folder)
        self.uploads = uploads.Uploads(folder, self.objects)
        self.faults = faults.Script()
        self.served = faults.journal()
        self._wall_s = wall_s
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._operations = {
            routing.HEAD_BUCKET: self._head_bucket,
            routing.PUT_BUCKET: self._put_bucket,
            routing.LIST_OBJECTS: self._list_objects,
            routing.LIST_UPLOADS: self._list_uploads,
            routing.PUT_OBJECT: self._put_object,
            routing.HEAD_OBJECT: self._head_object,
            routing.GET_OBJECT: self._get_object,
            routing.DELETE_OBJECT: self._delete_object,
            routing.INITIATE: self._initiate,
            routing.UPLOAD_PART: self._upload_part,
            routing.LIST_PARTS: self._list_parts,
            routing.COMPLETE: self._complete,
            routing.ABORT: self._abort,
        }

    def start(self) -> None:
        """Read the objects of an earlier run in the folder."""
        self.objects.start()
        self.uploads.start()

    def set_accounts(self, *accounts: signature.Account) -> None:
        """Replace the known keys, as when temporary ones are renewed."""
        self.accounts = {account.secret_id: account for account in accounts}

    def concerns(self, request: web.Request) -> bool:
        """Whether a request is meant for COS."""
        return routing.concerns(request.headers.get("Host", ""), request.raw_path)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, faults included."""
        operation, bucket, key, action, code = "", "", "", "", ""
        try:
            about = routing.target(request.headers.get("Host", ""), request.raw_path)
            bucket, key = about.bucket, about.key
            operation = routing.operation(request.method, about, copies="x-cos-copy-source" in request.headers)
            signed = signature.parse(request.method, request.raw_path, request.headers)
            account = signature.verify(signed, self.accounts, self._wall_s())
            fault = self.faults.strike(operation, bucket, key, account.secret_id)
            action = fault.action if fault else ""
            response = await self._under(fault, operation, request, about)
            status = 0 if action in (faults.RESET, faults.COMMIT_THEN_RESET) else response.status
        except responses.Refused as refused:
            response, status, code = await wire.refusal(request, refused), refused.status, refused.code
        except ConnectionError:  # the client closed while sending
            response, status = web.Response(), 0
        self._note(operation, bucket, key, status, code, action)
        return response

    async def _under(
        self, fault: faults.Fault | None, operation: str, request: web.Request, about: routing.Target
    ) -> web.StreamResponse:
        """Execute the operation, or the fault's action instead."""
        action = fault.action if fault else ""
        if fault is not None and action == faults.STATUS:
            raise responses.Refused(fault.status, fault.code, "The simulator's fault script says so.")
        if action == faults.EXPIRED_TOKEN:
            raise responses.Refused(403, "ExpiredToken", "The security token has expired.")
        if action == faults.RESET:
            await request.content.readany()
            connection.reset(request)
            return web.Response()
        if fault is not None and action == faults.DELAY:
            await asyncio.sleep(fault.delay_s)
        if self.buckets is not None and about.bucket not in self.buckets and operation != routing.PUT_BUCKET:
            raise responses.Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        response = await self._operations[operation](request, about)
        if action == faults.WRONG_CRC and wire.CRC64 in response.headers:
            response.headers[wire.CRC64] = str(int(response.headers[wire.CRC64]) ^ 1)
        if action == faults.COMMIT_THEN_RESET:
            connection.reset(request)
        return response

    def _note(self, operation: str, bucket: str, key: str, status: int, code: str, fault: str) -> None:
        served = faults.Served(operation=operation, bucket=bucket, key=key, status=status, code=code, fault=fault)
        self.served.append(served)
        log.info("cos.served", operation=operation, bucket=bucket, key=key, status=status, code=code, fault=fault)

    # Buckets

    async def _head_bucket(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        return wire.response(200)

    async def _put_bucket(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        if self.buckets is not None:
            if about.bucket in self.buckets:
                raise responses.Refused(409, "BucketAlreadyOwnedByYou", "The bucket exists already.")
            self.buckets.add(about.bucket)
        return wire.response(200)

    async def _list_objects(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        return wire.document("ListBucketResult", listing.objects_page(about, self.objects.all(about.bucket)))

    async def _list_uploads(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        return wire.document("ListMultipartUploadsResult", listing.uploads_page(about, self.uploads.all(about.bucket)))

    # Objects

    async def _put_object(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        draft = await self._receive(request)
        try:
            self._check_overwrite(request, about)
            stored = self.objects.put(draft, about.bucket, about.key, modified_s=self._wall_s(), **wire.described(request))
        finally:
            draft.drop()
        return wire.response(200, {"ETag": f'"{stored.etag}"', wire.CRC64: stored.crc64})

    async def _head_object(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        stored = self._object(about)
        response = web.StreamResponse(headers=wire.object_headers(stored))
        response.content_length = stored.size
        return response

    async def _get_object(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        stored = self._object(about)
        start, stop = wire.byte_range(request, stored.size)
        headers = wire.object_headers(stored)
        headers |= {name[9:]: value for name, value in about.query.items() if name.startswith("response-")}
        partial = "Range" in request.headers
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        with _open(stored.path) as file:
            file.seek(start)
            while start < stop and (data := file.read(min(CHUNK_BYTES, stop - start))):
                await response.write(data)
                start += len(data)
        await response.write_eof()
        return response

    async def _delete_object(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        self.objects.delete(about.bucket, about.key)
        return wire.response(204)

    # Multipart uploads

    async def _initiate(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        upload = self.uploads.initiate(about.bucket, about.key, now_s=self._wall_s(), **wire.described(request))
        fields = {"Bucket": about.bucket, "Key": about.key, "UploadId": upload.upload_id}
        return wire.document("InitiateMultipartUploadResult", fields)

    async def _upload_part(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        upload = self.uploads.get(about.bucket, about.key, about.query["uploadId"])
        number = about.query.get("partNumber", "")
        if not number.isdecimal() or not 1 <= int(number) <= uploads.MAX_PARTS:
            raise responses.Refused(400, "InvalidArgument", "partNumber is an integer from 1 to 10000.")
        draft = await self._receive(request)
        try:
            upload = self.uploads.get(about.bucket, about.key, upload.upload_id)
            part = self.uploads.add(upload, int(number), draft, now_s=self._wall_s())
        finally:
            draft.drop()
        return wire.response(200, {"ETag": f'"{part.etag}"', wire.CRC64: part.crc64})

    async def _list_parts(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        upload = self.uploads.get(about.bucket, about.key, about.query["uploadId"])
        return wire.document("ListPartsResult", listing.parts_page(about, upload))

    async def _complete(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        body = await request.read()
        async with self._locks[about.query["uploadId"]]:
            upload = self.uploads.get(about.bucket, about.key, about.query["uploadId"])
            parts = self.uploads.choose(upload, responses.read_parts(body))
            self._check_overwrite(request, about)
            draft = await asyncio.to_thread(self.uploads.join, upload, parts)
            stored = self.objects.put(
                draft, about.bucket, about.key, etag=uploads.etag(parts), modified_s=self._wall_s(),
                content_type=upload.content_type, metadata=upload.metadata,
            )  # fmt: skip
            self.uploads.remove(upload)
        self._locks.pop(about.query["uploadId"], None)
        place = f"{request.headers.get('Host', '')}/{quote(about.key, safe='/-_.~')}"
        fields = {"Location": place, "Bucket": about.bucket, "Key": about.key, "ETag": f'"{stored.etag}"'}
        return wire.document("CompleteMultipartUploadResult", fields, {wire.CRC64: stored.crc64})

    async def _abort(self, request: web.Request, about: routing.Target) -> web.StreamResponse:
        self.uploads.remove(self.uploads.get(about.bucket, about.key, about.query["uploadId"]))
        return wire.response(204)

    def _object(self, about: routing.Target) -> objects.Stored:
        stored = self.objects.get(about.bucket, about.key)
        if stored is None:
            raise responses.Refused(404, "NoSuchKey", "The specified key does not exist.")
        return stored

    def _check_overwrite(self, request: web.Request, about: routing.Target) -> None:
        forbidden = request.headers.get("x-cos-forbid-overwrite", "").lower() == "true"
        if forbidden and self.objects.get(about.bucket, about.key) is not None:
            raise responses.Refused(409, "FileAlreadyExists", "The object exists and may not be overwritten.")

    async def _receive(self, request: web.Request) -> objects.Draft:
        """The body as a draft. Raises answers.Refused (BadDigest, InvalidDigest) by its Content-MD5."""
        draft = self.objects.draft()
        try:
            async for data in request.content.iter_chunked(CHUNK_BYTES):
                draft.write(data)
            draft.close()
            expected = request.headers.get("Content-MD5")
            if expected is not None and expected != base64.b64encode(draft.md5).decode():
                raise responses.Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        except BaseException:
            draft.drop()
            raise
        return draft


def _open(path: Path) -> BinaryIO:
    return path.open("rb")
