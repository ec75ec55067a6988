"""Uploads against a scripted COS: retries, refusals, credentials and verification; an object that differs is never Done."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import fastcrc
import pytest
import structlog
from aiohttp import web

from events import object_attributes
from machine import errors, uploaded_object
from tencent import cos, cos_requests, file_parts
from tests import waiting
from tests.integration import scripted_cos


@pytest.fixture
async def server() -> AsyncIterator[scripted_cos.Cos]:
    async with scripted_cos.serving() as running:
        yield running


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    one = cos.CosUploader(threads=2, first_part_bytes=scripted_cos.MIB, pauses_s=(0, 0, 0), silence_timeout_s=5)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def data() -> bytes:
    return os.urandom(2 * scripted_cos.MIB + 12345)


@pytest.fixture
def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "alice_1.mp4"
    path.write_bytes(data)
    return path


async def test_file_is_uploaded_unchanged(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """A file of three parts is uploaded with the right bytes, size, CRC and URL, and every step saves a state."""
    notes = scripted_cos.Notes()
    done = await scripted_cos.upload(uploader, file, server, notes)
    assert server.objects[scripted_cos.KEY] == data
    assert done == uploaded_object.UploadedObject(
        size_bytes=len(data), crc64=str(fastcrc.crc64.xz(data)), url=f"https://{scripted_cos.HOST}/{scripted_cos.KEY}"
    )
    assert [len(state.parts) for state in notes.states] == [0, 1, 2, 3]
    assert server.operations == ["begun", "create", "part", "part", "part", "complete", "head"]


async def test_host_token_and_type_are_sent(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """Every request carries host name and session token although the socket goes elsewhere, and the object has a media type."""
    await scripted_cos.upload(uploader, file, server)
    assert {head["Host"] for head in server.heads} == {scripted_cos.HOST}
    assert {head["x-cos-security-token"] for head in server.heads} == {scripted_cos.KEYS.token}
    assert all("q-signature=" in head["Authorization"] for head in server.heads)
    created = server.heads[server.operations.index("create")]
    assert "x-cos-storage-class" not in created
    assert (created["Content-Type"], created["Content-Disposition"]) == ("video/mp4", 'inline; filename="alice_1.mp4"')


async def test_attributes_are_sent_with_the_upload(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """The upload is created with the storage class, the encryption and the tags of its target."""
    given = object_attributes.ObjectAttributes(
        storage_class="STANDARD_IA", encryption="cos/kms", kms_key_id="k-1", tagging="course=%E6%95%B0&b="
    )
    target = dataclasses.replace(scripted_cos.target(server), attributes=given)
    await uploader.upload(file, target, scripted_cos.KEYS, state=None, save=scripted_cos.Notes().save)
    created = server.heads[server.operations.index("create")]
    sent = {name.lower(): value for name, value in created.items() if name.lower().startswith("x-cos-")}
    assert sent.pop("x-cos-security-token") == scripted_cos.KEYS.token
    assert sent == {
        "x-cos-storage-class": "STANDARD_IA",
        "x-cos-server-side-encryption": "cos/kms",
        "x-cos-server-side-encryption-cos-kms-key-id": "k-1",
        "x-cos-tagging": "course=%E6%95%B0&b=",
    }


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("create", scripted_cos.refuse(500, "InternalError")),
        ("part", scripted_cos.refuse(503, "ServiceUnavailable")),
        ("part", scripted_cos.refuse(503, "SlowDown")),
        ("part", scripted_cos.refuse(429, "TooManyRequests")),
        ("part", scripted_cos.refuse(400, "BadDigest")),
        ("part", scripted_cos.refuse(408, "RequestTimeout")),
        ("part", scripted_cos.reset),
        ("part", scripted_cos.lose_answer),
        ("complete", scripted_cos.refuse(500, "InternalError")),
        ("complete", scripted_cos.refuse(409, "OperationConflict")),
        ("complete", scripted_cos.reset),
        ("head", scripted_cos.refuse(503, "")),
        ("head", scripted_cos.reset),
    ],
)
async def test_passing_fault_is_repeated(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes, operation: str, fault: scripted_cos.Fault
) -> None:
    """A passing fault costs one more request and nothing else."""
    server.script[operation] = [fault]
    await scripted_cos.upload(uploader, file, server)
    assert server.objects[scripted_cos.KEY] == data
    assert server.operations.count(operation) == {"part": 3}.get(operation, 1) + 1
    assert server.operations.count("create") == (2 if operation == "create" else 1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (scripted_cos.refuse(500, "InternalError"), "server"),
        (scripted_cos.refuse(503, "SlowDown"), "throttled"),
        (scripted_cos.reset, "network"),
    ],
)
async def test_lasting_fault_is_reported_and_the_next_call_resumes(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes, fault: scripted_cos.Fault, reason: str
) -> None:
    """After the retries of one call the error names the reason and is retryable, and the next call sends the missing parts."""
    notes = scripted_cos.Notes()
    server.script["part"] = [None, *[fault] * 4]
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server, notes)
    assert (caught.value.reason, caught.value.retry) == (reason, True)
    server.operations.clear()
    await scripted_cos.upload(uploader, file, server, notes, state=notes.last)
    assert server.operations == ["parts", "part", "part", "complete", "head"]
    assert server.objects[scripted_cos.KEY] == data


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
async def test_refusal_is_permanent_and_names_the_next_step(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, status: int, code: str, advice: str
) -> None:
    """A 4xx is requested once and not retried, and its detail has code, message, request id and the next step, but no key."""
    server.script["create"] = [scripted_cos.refuse(status, code)]
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server)
    assert (caught.value.reason, caught.value.retry) == ("refused", False)
    assert all(piece in caught.value.detail for piece in (str(status), code, "message of COS", "req-7", advice))
    assert "marked" not in caught.value.detail
    assert server.operations == ["begun", "create"]


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "ExpiredToken"), (403, "RequestTimeTooSkewed")])
async def test_expired_token_needs_fresh_credentials(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, status: int, code: str
) -> None:
    """An expired token is no permanent failure, is not used again, and the upload continues with fresh credentials."""
    notes = scripted_cos.Notes()
    server.script["part"] = [None, scripted_cos.refuse(status, code)]
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server, notes)
    assert (caught.value.reason, caught.value.retry) == ("expired-token", True)
    assert server.operations.count("part") == 2
    await scripted_cos.upload(uploader, file, server, notes, state=notes.last)
    assert server.operations.count("part") == 4


async def test_expiry_in_a_head_response_is_recognized(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A HEAD with 403 and no code is repeated as GET, which distinguishes an expired token from a missing permission."""
    server.script["head"] = [scripted_cos.refuse(403, "")]
    server.script["listing"] = [scripted_cos.refuse(400, "ExpiredToken")]
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server)
    assert caught.value.reason == "expired-token"


async def test_key_without_head_permission_still_verifies_its_upload(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """Where HEAD is forbidden, the CRC in the response to Complete is compared instead."""
    server.script["head"] = [scripted_cos.refuse(403, "")]
    done = await scripted_cos.upload(uploader, file, server)
    assert done.crc64 == str(fastcrc.crc64.xz(data))


async def test_wrong_crc_is_never_done(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """An object whose CRC differs is uploaded again; if it still differs, the upload fails with both values."""
    server.spoilt_crc = 1
    await scripted_cos.upload(uploader, file, server)
    assert server.operations.count("create") == 2
    server.spoilt_crc = 99
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server)
    assert (caught.value.reason, caught.value.retry) == ("mismatch", True)
    assert "CRC-64 1" in caught.value.detail


async def test_missing_and_empty_file_fail(server: scripted_cos.Cos, uploader: cos.CosUploader, tmp_path: Path) -> None:
    """A missing or empty file fails without a request."""
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (tmp_path / "nothing.mp4", empty):
        with pytest.raises(errors.UploadFailed) as caught:
            await scripted_cos.upload(uploader, path, server)
        assert (caught.value.reason, caught.value.retry) == ("file-missing", False)
    assert server.operations == []


async def test_redirect_is_not_followed(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A redirect by the server is not followed; it counts as an invalid response and may be retried."""

    async def elsewhere(_: scripted_cos.Cos, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{server.port}/elsewhere"})

    server.script["part"] = [elsewhere] * 4
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server)
    assert (caught.value.reason, caught.value.retry) == ("server", True)
    assert server.operations.count("part") == 4


async def test_bucket_check(server: scripted_cos.Cos, uploader: cos.CosUploader) -> None:
    """An existing bucket passes, one without permission to check is a warning, and a wrong key or name is a refusal."""
    assert await uploader.check_bucket(scripted_cos.target(server), scripted_cos.KEYS) == ""
    server.script["bucket"] = [scripted_cos.refuse(403, "")]
    assert "may not look" in await uploader.check_bucket(scripted_cos.target(server), scripted_cos.KEYS)
    server.script |= {"bucket": [scripted_cos.refuse(403, "")], "listing": [scripted_cos.refuse(403, "SignatureDoesNotMatch")]}
    with pytest.raises(errors.UploadFailed, match="SignatureDoesNotMatch"):
        await uploader.check_bucket(scripted_cos.target(server), scripted_cos.KEYS)
    server.script["bucket"] = [scripted_cos.refuse(404, "")]
    with pytest.raises(errors.UploadFailed, match="NoSuchBucket") as caught:
        await uploader.check_bucket(scripted_cos.target(server), scripted_cos.KEYS)
    assert not caught.value.retry
    server.script["bucket"] = [scripted_cos.reset]
    with pytest.raises(errors.UploadFailed) as caught:
        await uploader.check_bucket(scripted_cos.target(server), scripted_cos.KEYS)
    assert caught.value.retry


async def test_start_and_stop_twice(server: scripted_cos.Cos, file: Path) -> None:
    """Start and stop may be repeated, and a stopped uploader raises instead of hanging."""
    one = cos.CosUploader(first_part_bytes=scripted_cos.MIB)
    with pytest.raises(errors.UploadFailed, match="not running"):
        await scripted_cos.upload(one, file, server)
    for _ in range(2):
        await one.start()
    await scripted_cos.upload(one, file, server)
    for _ in range(2):
        await one.stop()
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(one, file, server)
    assert caught.value.retry


async def test_stop_ends_queued_steps(server: scripted_cos.Cos, file: Path) -> None:
    """An upload whose next step is queued while the uploader stops fails with a retry and does not count as cancelled."""
    one = cos.CosUploader(threads=1, first_part_bytes=scripted_cos.MIB, pauses_s=())
    await one.start()
    release = asyncio.Event()

    async def hold(_: scripted_cos.Cos, request: web.Request) -> None:
        await release.wait()

    server.script["create"] = [hold]
    first = asyncio.create_task(scripted_cos.upload(one, file, server))
    await waiting.until(lambda: "create" in server.operations, what="the first request is under way")
    second = asyncio.create_task(scripted_cos.upload(one, file, server))
    stopping = asyncio.create_task(one.stop())
    with pytest.raises(errors.UploadFailed) as caught:
        await asyncio.wait_for(second, waiting.limit_s(5))
    assert caught.value.retry
    release.set()
    with pytest.raises(errors.UploadFailed):
        await first
    await stopping


async def test_no_secret_is_logged(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the SDK's log at DEBUG nor ours contains a key or a token, in success and in failure."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as ours:
        await scripted_cos.upload(uploader, file, server)
        server.script["create"] = [scripted_cos.refuse(403, "AccessDenied")]
        with pytest.raises(errors.UploadFailed):
            await scripted_cos.upload(uploader, file, server)
    assert "marked" not in caplog.text + str(ours)
    assert not [record for record in caplog.records if record.name.startswith("qcloud_cos")]
    assert "marked" not in repr(scripted_cos.KEYS)


def test_parts_grow_so_that_ten_thousand_suffice() -> None:
    """Parts double in size every thousand: ten thousand of them hold any recording, and none exceeds 5 GB."""
    first = file_parts.FIRST_PART_BYTES
    sizes = [file_parts.part_size_bytes(first, number) for number in range(1, file_parts.MAX_PARTS + 1)]
    assert sizes[0] == sizes[999] == first
    assert sizes[1000] == 2 * first
    assert sum(sizes) > 7 * 1024**4
    assert max(sizes) <= 5 * 1000**3


def test_too_small_parts_are_refused() -> None:
    """An uploader with parts under 1 MiB is refused, because COS accepts none but the last."""
    with pytest.raises(ValueError, match="no part under"):
        cos.CosUploader(first_part_bytes=1000)


@pytest.mark.parametrize("retry", [cos_requests.RequestFailed("network"), cos_requests.RequestFailed("server", status=500)])
def test_detail_without_a_response_is_a_sentence(retry: cos_requests.RequestFailed) -> None:
    """Even without a code or a message the detail is a sentence for the operator."""
    failed = retry.as_upload_failed("sending part 3")
    assert failed.detail.endswith("while sending part 3.")
    assert failed.retry


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero", "empty", "grow"])
@pytest.mark.parametrize("resumed", [False, True])
async def test_a_file_with_other_bytes_is_never_completed(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes, damage: str, resumed: bool
) -> None:
    """A file that changed after its verification completes no upload, neither a new nor a resumed one."""
    verified = file_parts.VerifiedFile(size_bytes=len(data), crc64=str(fastcrc.crc64.xz(data)))
    notes = scripted_cos.Notes()
    if resumed:
        server.script["complete"] = [scripted_cos.refuse(403, "AccessDenied")]
        with pytest.raises(errors.UploadFailed):
            await scripted_cos.upload(uploader, file, server, notes, verified=verified)
    page = len(data) // 2
    damaged = {
        "flip": data[:page] + bytes((data[page] ^ 1,)) + data[page + 1 :],
        "truncate": data[:page],
        "zero": data[:page] + bytes(4096) + data[page + 4096 :],
        "empty": b"",
        "grow": data + b"x",
    }
    await asyncio.to_thread(file.write_bytes, damaged[damage])
    with pytest.raises(errors.UploadFailed) as caught:
        await scripted_cos.upload(uploader, file, server, notes, verified=verified, state=notes.states[-1] if resumed else None)
    assert (caught.value.reason, caught.value.retry) == ("file-damaged", False)
    assert server.objects == {}
