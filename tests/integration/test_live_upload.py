"""Live uploads: the parts of a growing file leave before its end, and the object equals the finished file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import fastcrc
import pytest
import structlog

from assembly import live_uploads
from machine import errors
from machine.reasons import Reason
from tencent import cos, cos_requests, cos_upload, file_parts, live_upload
from tests import scrapes, waiting
from tests.integration import scripted_cos

MIB = scripted_cos.MIB
HEAD = 8192


@pytest.fixture
async def server() -> AsyncIterator[scripted_cos.Cos]:
    async with scripted_cos.serving() as running:
        yield running


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    one = cos.CosUploader(threads=2, first_part_bytes=MIB, pauses_s=(0, 0, 0), silence_timeout_s=5)
    await one.start()
    yield one
    await one.stop()


class Growing:
    """A file that grows, and its live upload."""

    def __init__(self, path: Path, server: scripted_cos.Cos, uploader: cos.CosUploader) -> None:
        self.path = path
        self.data = b""
        self._server = server
        self._uploader = uploader
        self.live: live_upload.LiveUpload = uploader.live(path, scripted_cos.target(server))

    async def grow(self, size_bytes: int) -> None:
        """Append random bytes, and look."""
        fresh = os.urandom(size_bytes)
        self.data += fresh
        with self.path.open("ab") as file:
            file.write(fresh)
        await self.look()

    async def look(self) -> None:
        """Look once at the file."""
        await self.live.look(self._connect)

    async def _connect(self) -> cos_requests.Client:
        return self._uploader.connect(scripted_cos.target(self._server), scripted_cos.KEYS)

    async def finish(self, notes: scripted_cos.Notes | None = None, *, same_process: bool = False) -> None:
        """Put a head before the file, change its first bytes, and upload the rest."""
        self.data = os.urandom(HEAD + 100) + self.data[100:]
        self.path.write_bytes(self.data)
        state = self.live.state
        await self.live.close()
        verified = file_parts.VerifiedFile(size_bytes=len(self.data), crc64=str(fastcrc.crc64.xz(self.data)))
        resumed = replace(state, head_bytes=(state.head_bytes or 0) + HEAD)
        if not same_process:
            resumed = cos_upload.UploadState.from_json(resumed.to_json())
        known = resumed if state.upload_id else None
        await scripted_cos.upload(self._uploader, self.path, self._server, notes, state=known, verified=verified)


@pytest.fixture
def growing(tmp_path: Path, server: scripted_cos.Cos, uploader: cos.CosUploader) -> Growing:
    return Growing(tmp_path / "a.part", server, uploader)


@pytest.mark.parametrize("same_process", [True, False])
async def test_parts_leave_while_the_file_grows(growing: Growing, server: scripted_cos.Cos, same_process: bool) -> None:
    """Whole parts but the first are sent before the end; afterwards only the first and the rest follow, and the object is the
    file. The metrics count each byte once. Another process than the one that sent the parts asks COS for them."""
    before = scrapes.of_this_process()
    await growing.look()
    await growing.grow(MIB + MIB // 2)
    assert server.operations == []
    await growing.grow(MIB)
    await growing.grow(2 * MIB)
    assert server.operations == ["begun", "create", "part", "part", "part"]
    await growing.live.close()
    with growing.path.open("ab") as file:  # of which no look sends a part
        file.write(bytes(MIB))
    growing.data += bytes(MIB)
    await growing.finish(same_process=same_process)
    assert server.objects[scripted_cos.KEY] == growing.data
    assert server.operations[5:] == ["parts"] * (not same_process) + ["part"] * 3 + ["complete", "head"]
    assert scrapes.grown(before)["recorder_upload_bytes_total"] == len(growing.data)


async def test_a_file_that_begins_again(growing: Growing, server: scripted_cos.Cos) -> None:
    """Another file under the name aborts the upload and begins a new one: no byte of the old one is in the object."""
    await growing.grow(3 * MIB)
    growing.path.unlink()
    growing.data = b""
    await growing.grow(3 * MIB + 5)
    assert server.operations == ["begun", "create", "part", "part", "abort", "begun", "create", "part", "part"]
    await growing.finish()
    assert server.objects[scripted_cos.KEY] == growing.data
    assert server.uploads == {}


async def test_a_file_that_begins_again_while_the_keys_are_away(
    growing: Growing, server: scripted_cos.Cos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a client the old upload cannot be aborted yet. No later look continues it with the new file's bytes."""
    await growing.grow(3 * MIB)
    growing.path.unlink()
    growing.data = b""

    async def away() -> cos_requests.Client:
        raise errors.UploadFailed("no credentials", reason=Reason.EXPIRED_TOKEN, retry=True)

    with monkeypatch.context() as keys:
        keys.setattr(growing, "_connect", away)
        with pytest.raises(errors.UploadFailed, match="no credentials"):
            await growing.grow(3 * MIB + 5)
    await growing.look()
    await growing.finish()
    assert server.objects[scripted_cos.KEY] == growing.data
    assert server.uploads == {}
    assert server.operations.count("complete") == 1


@pytest.mark.parametrize("listed", [True, False])
async def test_the_upload_of_a_process_that_died(
    growing: Growing, server: scripted_cos.Cos, uploader: cos.CosUploader, listed: bool
) -> None:
    """The next process aborts it before it begins its own, or leaves it if the key may not list uploads."""
    await growing.grow(3 * MIB)
    (left,) = server.uploads
    await growing.live.close()
    growing.live = uploader.live(growing.path, scripted_cos.target(server))
    server.script["begun"] = [] if listed else [scripted_cos.refuse(403, "AccessDenied")]
    await growing.look()
    assert (left in server.uploads) == (not listed)
    await growing.finish()
    assert server.objects[scripted_cos.KEY] == growing.data
    assert server.uploads.keys() == (set() if listed else {left})


async def test_cos_is_away_for_a_while(growing: Growing, server: scripted_cos.Cos) -> None:
    """A look that fails says so and loses nothing: a later one sends the same part and those behind it."""
    server.script["part"] = [scripted_cos.refuse(503, "ServiceUnavailable")]
    with pytest.raises(errors.UploadFailed) as failed:
        await growing.grow(3 * MIB)
    assert failed.value.retry
    await growing.look()
    await growing.finish()
    assert server.objects[scripted_cos.KEY] == growing.data


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("gone", [True, False])
async def test_an_upload_that_cos_has_dropped(growing: Growing, server: scripted_cos.Cos, gone: bool, same_process: bool) -> None:
    """If COS has dropped the upload, or holds other bytes than were sent, the finished file is uploaded from its beginning."""
    await growing.grow(4 * MIB)
    (upload_id,) = server.uploads
    if gone:
        del server.uploads[upload_id]
    else:
        server.uploads[upload_id][2] = bytes(MIB)
    await growing.finish(same_process=same_process)
    assert server.objects[scripted_cos.KEY] == growing.data


async def test_the_saved_state_resumes(growing: Growing, server: scripted_cos.Cos) -> None:
    """Each part of the end is saved together with those that were sent live, so that a restart sends none of them again."""
    await growing.grow(4 * MIB)
    notes = scripted_cos.Notes()
    server.script["complete"] = [scripted_cos.refuse(403, "AccessDenied")]
    with pytest.raises(errors.UploadFailed):
        await growing.finish(notes)
    assert [part.number for part in notes.states[-1].parts] == [1, 2, 3, 4]
    server.operations.clear()
    verified = file_parts.VerifiedFile(size_bytes=len(growing.data), crc64=str(fastcrc.crc64.xz(growing.data)))
    uploader = growing._uploader
    await scripted_cos.upload(uploader, growing.path, server, state=notes.states[-1], verified=verified)
    assert server.operations == ["parts", "complete", "head"]
    assert server.objects[scripted_cos.KEY] == growing.data


async def test_the_log_tells_once_that_cos_is_away_and_back(growing: Growing, server: scripted_cos.Cos) -> None:
    """Hours without COS are two lines for each recording, not one for each look."""
    uploads = live_uploads.LiveUploads(look_every_s=0.01)
    server.script["part"] = [scripted_cos.refuse(503, "ServiceUnavailable")] * 40
    await growing.grow(0)
    growing.path.write_bytes(os.urandom(3 * MIB))
    with structlog.testing.capture_logs() as lines:
        uploads.begin("T/al/1", growing.live, scripted_cos.target(server), growing._connect)
        await waiting.until(lambda: uploads.sent_parts() == 2, 20)
        await waiting.until(lambda: any(line["event"] == "upload.live_resumed" for line in lines))
    await uploads.drop("T/al/1")
    told = [(line["event"], line["log_level"]) for line in lines if line["event"].startswith("upload.live")]
    assert told == [("upload.live_failed", "warning"), ("upload.live_resumed", "info")]
    assert server.operations.count("part") == 42


async def test_an_unexpected_error_is_no_return_of_cos(
    growing: Growing, server: scripted_cos.Cos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COS is away before and after an error that nobody expected: the log tells it away once, and back once."""
    away = errors.UploadFailed("COS is away.", reason=Reason.MISMATCH, retry=True)
    looks: list[Exception | None] = [away, ValueError("unexpected"), away, None]

    async def look(*_: object) -> None:
        if looks and (error := looks.pop(0)) is not None:
            raise error

    await growing.grow(0)
    monkeypatch.setattr(live_upload.LiveUpload, "look", look)
    uploads = live_uploads.LiveUploads(look_every_s=0.01)
    with structlog.testing.capture_logs() as lines:
        uploads.begin("T/al/1", growing.live, scripted_cos.target(server), growing._connect)
        await waiting.until(lambda: not looks and any(line["event"] == "upload.live_resumed" for line in lines))
    await uploads.drop("T/al/1")
    told = [line["log_level"] for line in lines if line["event"].startswith("upload.live")]
    assert told == ["warning", "error", "info"]
