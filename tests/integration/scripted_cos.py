"""Scripted COS: a small COS server for upload tests, whose faults are set per operation."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fastcrc
from aiohttp import web

from machine import uploaded_object
from tencent import cos, credentials

MIB = 1024 * 1024
BUCKET = "recordings-1250000000"
REGION = "ap-guangzhou"
KEY = "room/01J/alice_1.mp4"
HOST = f"{BUCKET}.cos.{REGION}.myqcloud.com"
KEYS = credentials.Credentials(secret_id="AKIDmarked", secret_key="KEYmarked", token="TOKENmarked")

Fault = Callable[["Cos", web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Cos:
    """The part of COS that an upload uses. `script` maps an operation to faults, one per request; None lets a request through."""

    port: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    script: dict[str, list[Fault | None]] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    spoilt_crc: int = 0
    page: int = 1000

    async def answer(self, request: web.Request) -> web.StreamResponse:
        operation = self._operation(request)
        self.operations.append(operation)
        self.heads.append(dict(request.headers))
        faults_left = self.script.get(operation, [])
        fault = faults_left.pop(0) if faults_left else None
        if fault is not None:
            spoilt = await fault(self, request)
            if spoilt is not None:
                return spoilt
        return await self.obey(operation, request)

    async def obey(self, operation: str, request: web.Request) -> web.StreamResponse:
        answer: web.StreamResponse = await getattr(self, f"_{operation}")(request, request.path.lstrip("/"))
        return answer

    def _operation(self, request: web.Request) -> str:
        query = request.query
        if request.method == "POST":
            return "create" if "uploads" in query else "complete"
        if request.method == "PUT":
            return "part"
        if request.method == "DELETE":
            return "abort"
        if request.method == "HEAD":
            return "head" if request.path != "/" else "bucket"
        if "uploads" in query:
            return "begun"
        return "parts" if "uploadId" in query else "listing"

    async def _create(self, request: web.Request, key: str) -> web.Response:
        upload_id = f"upload-{len(self.keys) + 1}"
        self.uploads[upload_id], self.keys[upload_id] = {}, key
        return xml(f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>")

    async def _part(self, request: web.Request, key: str) -> web.Response:
        data = await request.read()
        digest = hashlib.md5(data).digest()
        assert request.headers["Content-MD5"] == base64.b64encode(digest).decode()
        if request.query["uploadId"] not in self.uploads:
            return failure(404, "NoSuchUpload")
        self.uploads[request.query["uploadId"]][int(request.query["partNumber"])] = data
        return web.Response(headers={"ETag": f'"{digest.hex()}"'})

    async def _parts(self, request: web.Request, key: str) -> web.Response:
        if request.query["uploadId"] not in self.uploads:
            return failure(404, "NoSuchUpload")
        parts = sorted(self.uploads[request.query["uploadId"]].items())
        after = [item for item in parts if item[0] > int(request.query["part-number-marker"])]
        page, more = after[: self.page], len(after) > self.page
        listed = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
            f"<Size>{len(data)}</Size></Part>"
            for n, data in page
        )
        marker = f"<NextPartNumberMarker>{page[-1][0]}</NextPartNumberMarker>" if more else ""
        return xml(
            f"<ListPartsResult><Bucket>{BUCKET}</Bucket><Key>k</Key>{listed}{marker}"
            f"<IsTruncated>{str(more).lower()}</IsTruncated></ListPartsResult>"
        )

    async def _complete(self, request: web.Request, key: str) -> web.Response:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None:
            return failure(404, "NoSuchUpload")
        if request.headers.get("x-cos-forbid-overwrite") == "true" and key in self.objects:
            return failure(409, "FileAlreadyExists")
        numbers = [int(element.text or "") for element in ElementTree.fromstring(await request.read()).iter("PartNumber")]
        self.objects[key] = b"".join(upload[number] for number in numbers)
        del self.uploads[request.query["uploadId"]]
        return xml("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>", self._crc(key))

    async def _head(self, request: web.Request, key: str) -> web.Response:
        if key not in self.objects:
            return web.Response(status=404)
        headers = {"Content-Length": str(len(self.objects[key])), **self._crc(key)}
        if self.spoilt_crc:
            self.spoilt_crc -= 1
            headers["x-cos-hash-crc64ecma"] = "1"
        return web.Response(headers=headers)

    async def _bucket(self, request: web.Request, key: str) -> web.Response:
        return web.Response(status=200 if request.host == HOST else 404)

    async def _listing(self, request: web.Request, key: str) -> web.Response:
        return xml("<ListBucketResult></ListBucketResult>")

    async def _begun(self, request: web.Request, key: str) -> web.Response:
        wanted = [upload_id for upload_id in self.uploads if self.keys[upload_id].startswith(request.query["prefix"])]
        listed = "".join(f"<Upload><Key>{self.keys[u]}</Key><UploadId>{u}</UploadId></Upload>" for u in wanted)
        return xml(f"<ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>")

    async def _abort(self, request: web.Request, key: str) -> web.Response:
        missing = self.uploads.pop(request.query["uploadId"], None) is None
        return failure(404, "NoSuchUpload") if missing else web.Response(status=204)

    def _crc(self, key: str) -> dict[str, str]:
        return {"x-cos-hash-crc64ecma": str(fastcrc.crc64.xz(self.objects[key]))}


def xml(body: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=body, content_type="application/xml", headers=headers)


def failure(status: int, code: str, message: str = "message of COS") -> web.Response:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>req-7</RequestId></Error>"
    return web.Response(status=status, text=body, content_type="application/xml")


def refuse(status: int, code: str) -> Fault:
    async def fault(_: Cos, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status) if request.method == "HEAD" else failure(status, code)

    return fault


async def reset(_: Cos, request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def lose_answer(server: Cos, request: web.Request) -> web.StreamResponse:
    """Commit, then cut the connection before the response."""
    answer = await server.obey(server.operations[-1], request)
    assert request.transport is not None
    request.transport.abort()
    return answer


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Cos]:
    server = Cos()
    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


def target(server: Cos, key: str = KEY) -> cos.CosTarget:
    return cos.CosTarget(region=REGION, bucket=BUCKET, key=key, endpoint=("http", "127.0.0.1", server.port))


@dataclass
class Notes:
    """The states that the uploader saved."""

    states: list[cos.UploadState] = field(default_factory=list)

    async def save(self, state: cos.UploadState) -> None:
        self.states.append(cos.UploadState.from_json(state.to_json()))

    @property
    def last(self) -> cos.UploadState:
        return self.states[-1]


async def upload(
    uploader: cos.CosUploader, path: Path, server: Cos, notes: Notes | None = None, **more: Any
) -> uploaded_object.UploadedObject:
    arguments: dict[str, Any] = {"state": None, "save": (notes or Notes()).save, **more}
    return await uploader.upload(path, target(server), KEYS, **arguments)
