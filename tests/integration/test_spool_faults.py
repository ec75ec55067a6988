"""Faults of a spool's files: no space, an error of the disk, a stale mount, a mount that is gone. Each has its reason."""

from __future__ import annotations

import asyncio
import errno
import functools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from assembly import work as node_work
from config import settings
from machine import due_work, errors, model
from machine.reasons import Reason
from media import capture, ffmpeg_capture, spool, transcode
from tencent import credentials
from tests import examples, flv_source, spool_faults, waiting
from tests.flv_source import FFMPEG

NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)
TASK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def expected(number: int) -> Reason:
    return Reason.DISK_FULL if number in (errno.ENOSPC, errno.EDQUOT) else Reason.SPOOL_LOST


@pytest.fixture
def folder(tmp_path: Path) -> spool.Spool:
    made = spool.Spool(tmp_path / "spool")
    made.start()
    return made


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("operation", ["mkdir", "stat"])
async def test_a_capture_names_the_fault(folder: spool.Spool, number: int, operation: str) -> None:
    """A folder or file that cannot be made or examined ends the capture before it begins, with a reason that is no stop."""
    make = functools.partial(folder.segment_path, TASK, "al", 1, 1)
    spec = capture.CaptureSpec(address="http://127.0.0.1:9/x", path=make(make=False), mode="00", make_folder=make)
    running = ffmpeg_capture.FfmpegCapture(spec, ffmpeg=FFMPEG)
    with spool_faults.SpoolFaults(folder.root) as faults:
        faults.fail(number, operation)
        await running.start()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(10))
        assert faults.seen
    assert ended.reason == expected(number)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("operation", ["open", "read", "fsync", "replace"])
async def test_a_transcode_names_the_fault(folder: spool.Spool, number: int, operation: str) -> None:
    """A fault at any operation is retryable, leaves the segments, and the same transcode succeeds afterwards."""
    tags = flv_source.between(flv_source.content(), 0, 1_000)
    segment = transcode.SegmentFile(path=flv_source.write(folder.segment_path(TASK, "al", 1, 1), tags))
    output = folder.output_path(TASK, "al", 1, "00", 2)
    made = transcode.Transcoder(FFMPEG)
    with spool_faults.SpoolFaults(folder.root) as faults:
        faults.fail(number, operation)
        with pytest.raises(errors.TranscodeFailed) as failed:
            await made.transcode([segment], "00", output)
        assert (failed.value.reason, failed.value.retry) == (expected(number), True)
        assert not output.exists()
        faults.heal()
        assert (await made.transcode([segment], "00", output)).size_bytes > 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_mount_that_is_gone_takes_nothing(tmp_path: Path, shared: bool) -> None:
    """The folder beneath the mount gets no file, has no space, and nothing in it counts as deleted; the mount may come back."""
    root = tmp_path / "spool"
    made = spool.Spool(root, tmp_path / "identity" if shared else None)
    made.start()
    kept = made.segment_path(TASK, "al", 1, 1)
    kept.write_bytes(b"media")
    root.rename(tmp_path / "mounted")
    root.mkdir()
    assert str(root) in made.lost()
    assert not made.segment_path(TASK, "al", 1, 2).parent.exists()
    with pytest.raises(errors.Unavailable, match="check its mount"):
        made.space()
    with pytest.raises(OSError, match="check its mount"):
        made.remove_files(TASK, "al", 1, 9)
    root.rmdir()
    (tmp_path / "mounted").rename(root)
    assert made.lost() == ""
    assert made.space()[0] > 0
    assert made.remove_files(TASK, "al", 1, 9) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_stale_mount_has_no_space(folder: spool.Spool, number: int) -> None:
    """A mount that answers with an error is not full: starts get 503 and no 507."""
    with spool_faults.SpoolFaults(folder.root) as faults:
        faults.fail(number, *spool_faults.READS)
        with pytest.raises(errors.Unavailable):
            folder.space()
    assert folder.space()[0] > 0


@pytest.fixture
async def work(folder: spool.Spool, tmp_path: Path) -> AsyncIterator[node_work.NodeWork]:
    """The work of a node with that spool."""
    chain = credentials.CredentialChain({}, clock=lambda: 0, home=tmp_path, system_profile=tmp_path / "none")
    made = node_work.NodeWork(settings.load({"HOME": str(tmp_path)}), folder, chain)
    await made.uploader.start()
    yield made
    await made.uploader.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("operation", ["scandir", "mkdir", "unlink"])
async def test_a_node_names_the_fault_before_a_transcode(
    folder: spool.Spool, work: node_work.NodeWork, number: int, operation: str
) -> None:
    """Before it reads a segment, a transcode removes what an earlier one left, and makes its folder: a fault there is retryable,
    and does not count as a defect."""
    left = folder.output_path(TASK, "al", 1, "00", 1)
    left.with_name(f"{left.name}.part").write_bytes(b"half")
    if operation == "mkdir":
        shutil.rmtree(left.parent.parent)
    job = due_work.Assignment(session=examples.session(TASK), recording=examples.recording(TASK), secrets=examples.SECRETS)
    with spool_faults.SpoolFaults(folder.root) as faults:
        faults.fail(number, operation, "listdir") if operation == "scandir" else faults.fail(number, operation)
        with pytest.raises(errors.TranscodeFailed) as failed:
            await work.transcode(job, 2, [])
        assert faults.seen
    assert (failed.value.reason, failed.value.retry) == (expected(number), True)


async def test_a_finished_file_on_a_lost_mount_is_not_made_again(
    folder: spool.Spool, work: node_work.NodeWork, tmp_path: Path
) -> None:
    """While the mount is gone there is no file: the upload waits for the mount. Where the mount is there, the file is lost."""
    output = model.Output(duration_ms=1, size_bytes=4, crc64="1", epoch=2)
    done = examples.recording(TASK, mode="00", output=output)
    job = due_work.Assignment(session=examples.session(TASK), recording=done, secrets=examples.SECRETS)

    async def save(_: object) -> None:
        raise AssertionError("nothing is uploaded")

    for reason, retry in ((Reason.SPOOL_LOST, True), (Reason.FILE_MISSING, False)):
        if reason == Reason.SPOOL_LOST:
            folder.root.rename(tmp_path / "mounted")
            folder.root.mkdir()
        else:
            folder.root.rmdir()
            (tmp_path / "mounted").rename(folder.root)
        with pytest.raises(errors.UploadFailed) as failed:
            await work.upload(job, None, save)
        assert (failed.value.reason, failed.value.retry) == (reason, retry)
