"""Uploads against a scripted COS: what is resumed, what is repeated, what is refused, and that nothing unequal counts as done."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fastcrc
import pytest
import structlog
from aiohttp import web

from machine import errors, failpoints, uploaded_object
from tencent import cos, cos_requests, credentials, file_parts
from tests import waiting

MIB = 1024 * 1024
BUCKET = "recordings-1250000000"
REGION = "ap-guangzhou"
KEY = "room/01J/alice_1.mp4"
HOST = f"{BUCKET}.cos.{REGION}.myqcloud.com"
KEYS = credentials.Credentials(secret_id="AKIDplanted", secret_key="KEYplanted", token="TOKENplanted")

Fault = Callable[["Cos", web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Cos:
    """The least of COS that an upload meets. `script` maps an operation to faults, of which each request takes one; None in
    the list lets a request through."""

    port: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    script: dict[str, list[Fault | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    spoilt_crc: int = 0
    page: int = 1000

    async def answer(self, request: web.Request) -> web.StreamResponse:
        operation = self._operation(request)
        self.asked.append(operation)
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
        gone = self.uploads.pop(request.query["uploadId"], None) is None
        return failure(404, "NoSuchUpload") if gone else web.Response(status=204)

    def _crc(self, key: str) -> dict[str, str]:
        return {"x-cos-hash-crc64ecma": str(fastcrc.crc64.xz(self.objects[key]))}


def xml(body: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=body, content_type="application/xml", headers=headers)


def failure(status: int, code: str, message: str = "said by COS") -> web.Response:
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
    """Commit, then cut the line before the answer."""
    answer = await server.obey(server.asked[-1], request)
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


@pytest.fixture
async def server() -> AsyncIterator[Cos]:
    async with serving() as running:
        yield running


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    one = cos.CosUploader(threads=2, first_part_bytes=MIB, pauses_s=(0, 0, 0), silence_timeout_s=5)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def data() -> bytes:
    return os.urandom(2 * MIB + 12345)


@pytest.fixture
def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "alice_1.mp4"
    path.write_bytes(data)
    return path


def target(server: Cos, key: str = KEY) -> cos.CosTarget:
    return cos.CosTarget(region=REGION, bucket=BUCKET, key=key, endpoint=("http", "127.0.0.1", server.port))


@dataclass
class Notes:
    """What an uploader had its caller keep."""

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


async def test_file_arrives_whole(server: Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """A file of three parts is written with the right bytes, size, CRC and URL, and every step was noted."""
    notes = Notes()
    done = await upload(uploader, file, server, notes)
    assert server.objects[KEY] == data
    assert done == uploaded_object.UploadedObject(
        size_bytes=len(data), crc64=str(fastcrc.crc64.xz(data)), url=f"https://{HOST}/{KEY}"
    )
    assert [len(state.parts) for state in notes.states] == [0, 1, 2, 3]
    assert server.asked == ["begun", "create", "part", "part", "part", "complete", "head"]


async def test_host_token_and_type_are_sent(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """Host name and session token travel with every request though the socket goes elsewhere; the object gets a media type."""
    await upload(uploader, file, server)
    assert {head["Host"] for head in server.heads} == {HOST}
    assert {head["x-cos-security-token"] for head in server.heads} == {KEYS.token}
    assert all("q-signature=" in head["Authorization"] for head in server.heads)
    assert server.heads[server.asked.index("create")]["Content-Type"] == "video/mp4"


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("create", refuse(500, "InternalError")),
        ("part", refuse(503, "ServiceUnavailable")),
        ("part", refuse(503, "SlowDown")),
        ("part", refuse(429, "TooManyRequests")),
        ("part", refuse(400, "BadDigest")),
        ("part", refuse(408, "RequestTimeout")),
        ("part", reset),
        ("part", lose_answer),
        ("complete", refuse(500, "InternalError")),
        ("complete", refuse(409, "OperationConflict")),
        ("complete", reset),
        ("head", refuse(503, "")),
        ("head", reset),
    ],
)
async def test_passing_fault_is_repeated(
    server: Cos, uploader: cos.CosUploader, file: Path, data: bytes, operation: str, fault: Fault
) -> None:
    """A fault that passes costs one more request and nothing else."""
    server.script[operation] = [fault]
    await upload(uploader, file, server)
    assert server.objects[KEY] == data
    assert server.asked.count(operation) == {"part": 3}.get(operation, 1) + 1
    assert server.asked.count("create") == (2 if operation == "create" else 1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (refuse(500, "InternalError"), "server"),
        (refuse(503, "SlowDown"), "throttled"),
        (reset, "network"),
    ],
)
async def test_lasting_fault_leaves_with_its_reason_and_the_next_call_goes_on(
    server: Cos, uploader: cos.CosUploader, file: Path, data: bytes, fault: Fault, reason: str
) -> None:
    """When the tries of one call are spent the error says why and may be retried; the next call sends only what is missing."""
    notes = Notes()
    server.script["part"] = [None, *[fault] * 4]
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(uploader, file, server, notes)
    assert (caught.value.reason, caught.value.retry) == (reason, True)
    server.asked.clear()
    await upload(uploader, file, server, notes, state=notes.last)
    assert server.asked == ["parts", "part", "part", "complete", "head"]
    assert server.objects[KEY] == data


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "AccessDenied", "cos:PutObject"),
        (403, "InvalidAccessKeyId", "SecretId"),
        (403, "SignatureDoesNotMatch", "SecretKey"),
        (404, "NoSuchBucket", "Create the bucket"),
        (400, "InvalidArgument", ""),
        (451, "UnavailableForLegalReasons", ""),
    ],
)
async def test_refusal_is_for_good_and_says_what_to_do(
    server: Cos, uploader: cos.CosUploader, file: Path, status: int, code: str, advice: str
) -> None:
    """A 4xx is asked once, is not retried, and its detail has code, message, request id and the next step, but no key."""
    server.script["create"] = [refuse(status, code)]
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(uploader, file, server)
    assert (caught.value.reason, caught.value.retry) == ("refused", False)
    assert all(piece in caught.value.detail for piece in (str(status), code, "said by COS", "req-7", advice))
    assert "planted" not in caught.value.detail
    assert server.asked == ["begun", "create"]


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "ExpiredToken"), (403, "RequestTimeTooSkewed")])
async def test_expired_token_wants_fresh_credentials(
    server: Cos, uploader: cos.CosUploader, file: Path, status: int, code: str
) -> None:
    """An expired token is not for good, is not asked again with the same token, and the upload goes on with fresh ones."""
    notes = Notes()
    server.script["part"] = [None, refuse(status, code)]
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(uploader, file, server, notes)
    assert (caught.value.reason, caught.value.retry) == ("expired-token", True)
    assert server.asked.count("part") == 2
    await upload(uploader, file, server, notes, state=notes.last)
    assert server.asked.count("part") == 4


async def test_expiry_told_without_a_body_is_understood(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """HEAD answers 403 without a code; asking by GET tells an expired token from a key that may not look."""
    server.script["head"] = [refuse(403, "")]
    server.script["listing"] = [refuse(400, "ExpiredToken")]
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(uploader, file, server)
    assert caught.value.reason == "expired-token"


async def test_key_that_may_not_look_still_proves_its_upload(
    server: Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """Where HEAD is forbidden, the CRC told by Complete is compared instead."""
    server.script["head"] = [refuse(403, "")]
    done = await upload(uploader, file, server)
    assert done.crc64 == str(fastcrc.crc64.xz(data))


async def test_lost_answer_to_complete_is_success(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """COS had put the object together but its answer was lost: NoSuchUpload and an equal object mean done."""
    server.script["complete"] = [lose_answer]
    await upload(uploader, file, server)
    assert server.asked == ["begun", "create", "part", "part", "part", "complete", "complete", "head"]


async def test_lost_answer_and_a_crash_is_success_after_restart(
    server: Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """The same with a crash in between: the next run finds the upload gone and an equal object, and sends nothing."""
    notes = Notes()
    await upload(uploader, file, server, notes)
    server.asked.clear()
    done = await upload(uploader, file, server, notes, state=notes.last)
    assert done.size_bytes == len(data)
    assert server.asked == ["parts", "head"]


async def test_forgotten_upload_begins_anew(server: Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """An upload that COS has dropped is begun again, whether that shows at listing, at a part or at Complete."""
    notes = Notes()
    stale = cos.UploadState(upload_id="dropped", part_size_bytes=MIB)
    await upload(uploader, file, server, notes, state=stale)
    assert server.asked.count("create") == 1
    for operation, after in (("part", [None]), ("complete", [])):
        server.objects.clear()
        server.asked.clear()
        server.script[operation] = [*after, refuse(404, "NoSuchUpload")]
        await upload(uploader, file, server, notes)
        assert server.asked.count("create") == 2
        assert server.objects[KEY] == data


async def test_parts_that_disagree_are_given_up(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """InvalidPart at Complete: the old upload is aborted and a new one carries the file."""
    server.script["complete"] = [refuse(400, "InvalidPart")]
    await upload(uploader, file, server)
    assert server.asked.count("abort") == 1
    assert server.uploads == {}


async def test_what_was_begun_and_never_written_down_is_given_up(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A crash between Create and the note of its id leaves no upload behind; those of other keys are not touched, and a key that
    may not list them uploads all the same."""
    for number, key in enumerate((KEY, KEY, KEY + "-other")):
        server.uploads[f"lost-{number}"], server.keys[f"lost-{number}"] = {1: b"x"}, key
    await upload(uploader, file, server)
    assert list(server.uploads) == ["lost-2"]
    server.script["begun"] = [refuse(403, "AccessDenied")]
    await upload(uploader, file, server)
    assert server.asked.count("abort") == 2


async def test_an_upload_whose_lease_was_refused_is_given_up(
    server: Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """A worker that was frozen while it began an upload, and is not the holder any more, takes that upload back, and no other."""

    async def refused(_: cos.UploadState) -> None:
        raise errors.LeaseRefused

    with pytest.raises(errors.LeaseRefused):
        await uploader.upload(file, target(server), KEYS, state=None, save=refused)
    assert server.uploads == {}
    # What its successor has begun meanwhile, or goes on with, is not its to give up.
    whole = {number: data[(number - 1) * MIB : number * MIB] for number in (1, 2, 3)}
    for state in (None, cos.UploadState(upload_id="successor", part_size_bytes=MIB)):
        server.uploads["successor"], server.keys["successor"] = dict(whole), KEY
        server.script["complete"] = [refuse(400, "InvalidPart")]
        with pytest.raises(errors.LeaseRefused):
            await uploader.upload(file, target(server), KEYS, state=state, save=refused)
        assert server.uploads == {"successor": whole}


async def test_part_with_other_content_is_sent_again(server: Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """A part that COS has under the right number but with other bytes is not taken for ours."""
    server.uploads["half"] = {1: os.urandom(MIB), 2: data[MIB : 2 * MIB]}
    await upload(uploader, file, server, state=cos.UploadState(upload_id="half", part_size_bytes=MIB))
    assert server.asked == ["parts", "part", "part", "complete", "head"]
    assert server.objects[KEY] == data


async def test_all_pages_of_parts_are_read(server: Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """A long list of parts comes in pages; every one is read before anything is sent."""
    server.page = 1
    server.uploads["half"] = {1: data[:MIB], 2: data[MIB : 2 * MIB]}
    await upload(uploader, file, server, state=cos.UploadState(upload_id="half", part_size_bytes=MIB))
    assert server.asked == ["parts", "parts", "part", "complete", "head"]


async def test_key_that_may_not_list_goes_on_by_its_notes(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """Where listing parts is forbidden, the caller's own notes say what is there."""
    notes = Notes()
    server.script["part"] = [None, refuse(403, "ExpiredToken")]
    with pytest.raises(errors.UploadFailed):
        await upload(uploader, file, server, notes)
    server.asked.clear()
    server.script["parts"] = [refuse(403, "AccessDenied")]
    await upload(uploader, file, server, notes, state=notes.last)
    assert server.asked == ["parts", "part", "part", "complete", "head"]


async def test_wrong_crc_is_never_done(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """An object whose CRC differs is uploaded again; if it stays so the upload fails, saying both sides."""
    server.spoilt_crc = 1
    await upload(uploader, file, server)
    assert server.asked.count("create") == 2
    server.spoilt_crc = 99
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(uploader, file, server)
    assert (caught.value.reason, caught.value.retry) == ("mismatch", True)
    assert "CRC-64 1" in caught.value.detail


async def test_missing_and_empty_file_are_said(server: Cos, uploader: cos.CosUploader, tmp_path: Path) -> None:
    """A file that is not there, or has no bytes, fails without a request."""
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (tmp_path / "nothing.mp4", empty):
        with pytest.raises(errors.UploadFailed) as caught:
            await upload(uploader, path, server)
        assert (caught.value.reason, caught.value.retry) == ("file-missing", False)
    assert server.asked == []


async def test_redirect_is_not_followed(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A redirect by the server leads nowhere: it is an answer that was not understood, and may be retried."""

    async def elsewhere(_: Cos, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{server.port}/elsewhere"})

    server.script["part"] = [elsewhere] * 4
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(uploader, file, server)
    assert (caught.value.reason, caught.value.retry) == ("server", True)
    assert server.asked.count("part") == 4


async def test_what_save_raises_ends_the_upload(server: Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A worker whose lease was refused while saving sends no further part."""

    async def refused(state: cos.UploadState) -> None:
        if state.parts:
            raise errors.LeaseRefused

    with pytest.raises(errors.LeaseRefused):
        await uploader.upload(file, target(server), KEYS, state=None, save=refused)
    assert server.asked == ["begun", "create", "part"]


async def test_cancelled_upload_goes_on_later(server: Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """Cancelling ends an upload between parts; the state saved carries the next run."""
    notes, held = Notes(), asyncio.Event()

    async def hold(_: Cos, request: web.Request) -> None:
        await held.wait()

    server.script["part"] = [None, hold]
    task = asyncio.create_task(upload(uploader, file, server, notes))
    await waiting.until(lambda: server.asked.count("part") == 2, what="the second part is under way")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.set()
    assert len(notes.last.parts) == 1
    await upload(uploader, file, server, notes, state=notes.last)
    assert server.objects[KEY] == data


async def test_crash_after_create_repeats_the_create_only(
    server: Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """A crash before the UploadId was saved leaves nothing to go on from; the next run ends well and gives up what was begun."""

    def crash(name: str) -> None:
        if name == "upload.create.after":
            raise SystemError(name)

    notes = Notes()
    failpoints.install(crash)
    try:
        with pytest.raises(SystemError):
            await upload(uploader, file, server, notes)
    finally:
        failpoints.install(None)
    assert notes.states == []
    await upload(uploader, file, server, notes)
    assert server.objects[KEY] == data
    assert server.uploads == {}


async def test_abort_is_harmless_to_repeat(server: Cos, uploader: cos.CosUploader) -> None:
    """Giving up an upload that COS has forgotten is a success; a refusal is said."""
    server.uploads["half"] = {}
    for _ in range(2):
        await uploader.abort(target(server), KEYS, "half")
    assert server.uploads == {}
    server.script["abort"] = [refuse(403, "AccessDenied")]
    with pytest.raises(errors.UploadFailed):
        await uploader.abort(target(server), KEYS, "half")


async def test_bucket_check(server: Cos, uploader: cos.CosUploader) -> None:
    """A bucket that is there is fine, one that may not be looked at is a warning, a wrong key or name is a refusal."""
    assert await uploader.check_bucket(target(server), KEYS) == ""
    server.script["bucket"] = [refuse(403, "")]
    assert "may not look" in await uploader.check_bucket(target(server), KEYS)
    server.script |= {"bucket": [refuse(403, "")], "listing": [refuse(403, "SignatureDoesNotMatch")]}
    with pytest.raises(errors.UploadFailed, match="SignatureDoesNotMatch"):
        await uploader.check_bucket(target(server), KEYS)
    server.script["bucket"] = [refuse(404, "")]
    with pytest.raises(errors.UploadFailed, match="NoSuchBucket") as caught:
        await uploader.check_bucket(target(server), KEYS)
    assert not caught.value.retry
    server.script["bucket"] = [reset]
    with pytest.raises(errors.UploadFailed) as caught:
        await uploader.check_bucket(target(server), KEYS)
    assert caught.value.retry


async def test_start_and_stop_twice(server: Cos, file: Path) -> None:
    """Starting and stopping are safe to repeat, and a stopped uploader says so instead of hanging."""
    one = cos.CosUploader(first_part_bytes=MIB)
    with pytest.raises(errors.UploadFailed, match="not running"):
        await upload(one, file, server)
    for _ in range(2):
        await one.start()
    await upload(one, file, server)
    for _ in range(2):
        await one.stop()
    with pytest.raises(errors.UploadFailed) as caught:
        await upload(one, file, server)
    assert caught.value.retry


async def test_stop_ends_what_is_queued(server: Cos, file: Path) -> None:
    """An upload whose next step is queued while the uploader stops fails with a retry, and is not taken for cancelled."""
    one = cos.CosUploader(threads=1, first_part_bytes=MIB, pauses_s=())
    await one.start()
    held = asyncio.Event()

    async def hold(_: Cos, request: web.Request) -> None:
        await held.wait()

    server.script["create"] = [hold]
    first = asyncio.create_task(upload(one, file, server))
    await waiting.until(lambda: "create" in server.asked, what="the first request is under way")
    second = asyncio.create_task(upload(one, file, server))
    stopping = asyncio.create_task(one.stop())
    with pytest.raises(errors.UploadFailed) as caught:
        await asyncio.wait_for(second, waiting.limit_s(5))
    assert caught.value.retry
    held.set()
    with pytest.raises(errors.UploadFailed):
        await first
    await stopping


async def test_no_secret_is_logged(server: Cos, uploader: cos.CosUploader, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the SDK's log at DEBUG nor ours holds a key or a token, in success and in failure."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as ours:
        await upload(uploader, file, server)
        server.script["create"] = [refuse(403, "AccessDenied")]
        with pytest.raises(errors.UploadFailed):
            await upload(uploader, file, server)
    assert "planted" not in caplog.text + str(ours)
    assert not [record for record in caplog.records if record.name.startswith("qcloud_cos")]
    assert "planted" not in repr(KEYS)


def test_parts_grow_so_that_ten_thousand_suffice() -> None:
    """Parts double every thousand: ten thousand of them hold more than any recording, and none passes 5 GB."""
    first = file_parts.FIRST_PART_BYTES
    sizes = [file_parts.part_size_bytes(first, number) for number in range(1, file_parts.MAX_PARTS + 1)]
    assert sizes[0] == sizes[999] == first
    assert sizes[1000] == 2 * first
    assert sum(sizes) > 7 * 1024**4
    assert max(sizes) <= 5 * 1000**3


def test_state_survives_json() -> None:
    """The state that the caller keeps reads back as it was, and rubbish is refused."""
    part = cos.Part(number=1, size=5, etag="ab")
    state = cos.UploadState(upload_id="u", parts=(part,), part_size_bytes=MIB)
    assert cos.UploadState.from_json(state.to_json()) == state
    with pytest.raises((ValueError, KeyError, TypeError)):
        cos.UploadState.from_json("[]")


def test_too_small_parts_are_refused() -> None:
    """COS takes no part under 1 MiB but the last, so an uploader with smaller ones is not made."""
    with pytest.raises(ValueError, match="no part under"):
        cos.CosUploader(first_part_bytes=1000)


@pytest.mark.parametrize("retry", [cos_requests.RequestFailed("network"), cos_requests.RequestFailed("server", status=500)])
def test_detail_without_an_answer_is_a_sentence(retry: cos_requests.RequestFailed) -> None:
    """Even without a code or a message the detail is a sentence for the operator."""
    failed = retry.as_upload_failed("sending part 3")
    assert failed.detail.endswith("while sending part 3.")
    assert failed.retry
