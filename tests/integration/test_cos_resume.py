"""Resumed uploads: after a crash, a lost response, a refused lease or a cancellation, the next call continues or starts again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import fastcrc
import pytest
from aiohttp import web

from machine import errors, failpoints
from tencent import cos, file_parts
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


async def test_lost_answer_to_complete_is_success(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """If COS completed the object but its response was lost, NoSuchUpload and an equal object count as success."""
    server.script["complete"] = [scripted_cos.lose_answer]
    await scripted_cos.upload(uploader, file, server)
    assert server.operations == ["begun", "create", "part", "part", "part", "complete", "complete", "head"]


async def test_lost_answer_and_a_crash_is_success_after_restart(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """After a lost response and a crash, the next run finds the upload gone and an equal object, and sends nothing."""
    notes = scripted_cos.Notes()
    await scripted_cos.upload(uploader, file, server, notes)
    server.operations.clear()
    done = await scripted_cos.upload(uploader, file, server, notes, state=notes.last)
    assert done.size_bytes == len(data)
    assert server.operations == ["parts", "head"]


async def test_forgotten_upload_starts_again(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """An upload that COS has dropped starts again, whether listing, a part or Complete reveals it."""
    notes = scripted_cos.Notes()
    stale = cos.UploadState(upload_id="dropped", part_size_bytes=scripted_cos.MIB)
    await scripted_cos.upload(uploader, file, server, notes, state=stale)
    assert server.operations.count("create") == 1
    for operation, after in (("part", [None]), ("complete", [])):
        server.objects.clear()
        server.operations.clear()
        server.script[operation] = [*after, scripted_cos.refuse(404, "NoSuchUpload")]
        await scripted_cos.upload(uploader, file, server, notes)
        assert server.operations.count("create") == 2
        assert server.objects[scripted_cos.KEY] == data


async def test_upload_with_invalid_parts_is_aborted(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """After InvalidPart at Complete, the old upload is aborted and a new one carries the file."""
    server.script["complete"] = [scripted_cos.refuse(400, "InvalidPart")]
    await scripted_cos.upload(uploader, file, server)
    assert server.operations.count("abort") == 1
    assert server.uploads == {}


async def test_unrecorded_upload_is_aborted(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A crash between Create and the save of its id leaves no upload behind; those of other keys stay, and a key without
    permission to list them uploads all the same."""
    for number, key in enumerate((scripted_cos.KEY, scripted_cos.KEY, scripted_cos.KEY + "-other")):
        server.uploads[f"lost-{number}"], server.keys[f"lost-{number}"] = {1: b"x"}, key
    await scripted_cos.upload(uploader, file, server)
    assert list(server.uploads) == ["lost-2"]
    server.script["begun"] = [scripted_cos.refuse(403, "AccessDenied")]
    await scripted_cos.upload(uploader, file, server)
    assert server.operations.count("abort") == 2


async def test_upload_with_a_refused_lease_is_aborted(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """A worker that froze while it began an upload and lost the lease aborts that upload and no other."""

    async def refused(_: cos.UploadState) -> None:
        raise errors.LeaseRefused

    with pytest.raises(errors.LeaseRefused):
        await uploader.upload(file, scripted_cos.target(server), scripted_cos.KEYS, state=None, save=refused)
    assert server.uploads == {}
    # It must not abort an upload that its successor has begun or resumed.
    whole = {number: data[(number - 1) * scripted_cos.MIB : number * scripted_cos.MIB] for number in (1, 2, 3)}
    for state in (None, cos.UploadState(upload_id="successor", part_size_bytes=scripted_cos.MIB)):
        server.uploads["successor"], server.keys["successor"] = dict(whole), scripted_cos.KEY
        server.script["complete"] = [scripted_cos.refuse(400, "InvalidPart")]
        with pytest.raises(errors.LeaseRefused):
            await uploader.upload(file, scripted_cos.target(server), scripted_cos.KEYS, state=state, save=refused)
        assert server.uploads == {"successor": whole}


async def test_part_with_other_content_is_sent_again(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """A part that COS has under the right number but with other bytes is sent again."""
    server.uploads["half"] = {1: os.urandom(scripted_cos.MIB), 2: data[scripted_cos.MIB : 2 * scripted_cos.MIB]}
    await scripted_cos.upload(uploader, file, server, state=cos.UploadState(upload_id="half", part_size_bytes=scripted_cos.MIB))
    assert server.operations == ["parts", "part", "part", "complete", "head"]
    assert server.objects[scripted_cos.KEY] == data


async def test_all_pages_of_parts_are_read(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes) -> None:
    """Every page of a long list of parts is read before a part is sent."""
    server.page = 1
    server.uploads["half"] = {1: data[: scripted_cos.MIB], 2: data[scripted_cos.MIB : 2 * scripted_cos.MIB]}
    await scripted_cos.upload(uploader, file, server, state=cos.UploadState(upload_id="half", part_size_bytes=scripted_cos.MIB))
    assert server.operations == ["parts", "parts", "part", "complete", "head"]


async def test_key_without_list_permission_resumes_from_its_state(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path
) -> None:
    """Where listing parts is forbidden, the upload resumes from the saved state."""
    notes = scripted_cos.Notes()
    server.script["part"] = [None, scripted_cos.refuse(403, "ExpiredToken")]
    with pytest.raises(errors.UploadFailed):
        await scripted_cos.upload(uploader, file, server, notes)
    server.operations.clear()
    server.script["parts"] = [scripted_cos.refuse(403, "AccessDenied")]
    await scripted_cos.upload(uploader, file, server, notes, state=notes.last)
    assert server.operations == ["parts", "part", "part", "complete", "head"]


async def test_error_of_save_ends_the_upload(server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path) -> None:
    """A worker whose lease is refused while it saves sends no further part."""

    async def refused(state: cos.UploadState) -> None:
        if state.parts:
            raise errors.LeaseRefused

    with pytest.raises(errors.LeaseRefused):
        await uploader.upload(file, scripted_cos.target(server), scripted_cos.KEYS, state=None, save=refused)
    assert server.operations == ["begun", "create", "part"]


async def test_cancelled_upload_resumes_later(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """A cancellation ends an upload between parts, and the next run resumes from the saved state."""
    notes, release = scripted_cos.Notes(), asyncio.Event()

    async def hold(_: scripted_cos.Cos, request: web.Request) -> None:
        await release.wait()

    server.script["part"] = [None, hold]
    task = asyncio.create_task(scripted_cos.upload(uploader, file, server, notes))
    await waiting.until(lambda: server.operations.count("part") == 2, what="the second part is under way")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert len(notes.last.parts) == 1
    await scripted_cos.upload(uploader, file, server, notes, state=notes.last)
    assert server.objects[scripted_cos.KEY] == data


async def test_crash_after_create_repeats_the_create_only(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes
) -> None:
    """After a crash before the UploadId was saved, the next run starts again, succeeds, and aborts the first upload."""

    def crash(name: str) -> None:
        if name == "upload.create.after":
            raise SystemError(name)

    notes = scripted_cos.Notes()
    failpoints.install(crash)
    try:
        with pytest.raises(SystemError):
            await scripted_cos.upload(uploader, file, server, notes)
    finally:
        failpoints.install(None)
    assert notes.states == []
    await scripted_cos.upload(uploader, file, server, notes)
    assert server.objects[scripted_cos.KEY] == data
    assert server.uploads == {}


async def test_abort_may_be_repeated(server: scripted_cos.Cos, uploader: cos.CosUploader) -> None:
    """Aborting an upload that COS has forgotten is a success; a refusal raises."""
    server.uploads["half"] = {}
    for _ in range(2):
        await uploader.abort(scripted_cos.target(server), scripted_cos.KEYS, "half")
    assert server.uploads == {}
    server.script["abort"] = [scripted_cos.refuse(403, "AccessDenied")]
    with pytest.raises(errors.UploadFailed):
        await uploader.abort(scripted_cos.target(server), scripted_cos.KEYS, "half")


def test_state_survives_json() -> None:
    """A saved state reads back unchanged, and invalid text is refused."""
    part = cos.Part(number=1, size=5, etag="ab")
    state = cos.UploadState(upload_id="u", parts=(part,), part_size_bytes=scripted_cos.MIB)
    assert cos.UploadState.from_json(state.to_json()) == state
    with pytest.raises((ValueError, KeyError, TypeError)):
        cos.UploadState.from_json("[]")


@pytest.mark.parametrize("gone", [False, True])
async def test_a_file_that_is_damaged_after_it_was_stored_is_done(
    server: scripted_cos.Cos, uploader: cos.CosUploader, file: Path, data: bytes, gone: bool
) -> None:
    """COS completed the object, and the worker died before it heard. Now the file is damaged or gone: the object has the verified
    bytes, so nothing is sent and nothing made again."""
    verified = file_parts.VerifiedFile(size_bytes=len(data), crc64=str(fastcrc.crc64.xz(data)))
    notes = scripted_cos.Notes()
    await scripted_cos.upload(uploader, file, server, notes, verified=verified)
    server.operations.clear()
    if gone:
        await asyncio.to_thread(file.unlink)
    else:
        await asyncio.to_thread(file.write_bytes, data[: len(data) // 2])
    done = await scripted_cos.upload(uploader, file, server, notes, state=notes.last, verified=verified)
    assert (done.size_bytes, done.crc64) == (verified.size_bytes, verified.crc64)
    assert server.operations == ["parts", "head"]
