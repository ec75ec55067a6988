"""The spool is slow, hangs or fails: probes name it, and native captures wait, end with the reason, or are handed over."""

from __future__ import annotations

import asyncio
import errno
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from machine.reasons import Reason
from media import capture, file_threads, native_capture, spool, spool_probe, transcode
from tests import flv_source, spool_faults, waiting
from tests.integration.test_spool_faults import TASK, expected

NUMBERS = spool_faults.NUMBERS


@pytest.fixture
def folder(tmp_path: Path) -> spool.Spool:
    """A spool."""
    made = spool.Spool(tmp_path / "spool")
    made.start()
    return made


PROBED = ("open", "write", "fsync", "replace", "read", "unlink")


@pytest.mark.parametrize("kind", [*NUMBERS, spool_faults.HANG, *spool_faults.CONTENTS])
async def test_a_probe_fails_while_the_fault_lasts(folder: spool.Spool, monkeypatch: pytest.MonkeyPatch, kind: int | str) -> None:
    """Each fault at each operation of the probe is named; a probe that hangs counts as failed, and no second one begins. After
    the fault the spool works, and no file of the probe is left."""
    probe = spool_probe.SpoolProbe(folder)
    with spool_faults.SpoolFaults(folder.root) as faults:
        for operation in sorted(set(PROBED) & spool_faults.FAULTS[kind]):
            with monkeypatch.context() as patched:
                if kind == spool_faults.HANG:
                    patched.setattr(spool_probe, "ANSWER_S", 0.2)
                faults.fail(kind, operation)
                assert str(folder.root) in await probe.run(), operation
                if kind == spool_faults.HANG:
                    assert "does not answer" in await probe.run()
                assert set(faults.seen) == {operation}
            faults.heal()
            assert await waiting.until(lambda: _works(probe), what="a probe that works")
            faults.seen.clear()
    assert [path.name for path in folder.root.iterdir() if "probe" in path.name] == []


async def _works(probe: spool_probe.SpoolProbe) -> bool:
    return await probe.run() == ""


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        *((number, expected(number)) for number in NUMBERS),
        *((number, Reason.ERROR) for number in (errno.EPIPE, errno.ECONNRESET, errno.EMFILE, errno.ENOMEM, errno.EAGAIN)),
    ],
)
def test_only_errors_of_storage_are_faults_of_the_spool(number: int, reason: Reason) -> None:
    """A broken pipe, a lost connection or a limit of this process is retried like any other failure."""
    assert spool.fault_of(OSError(number, "said")) == reason
    assert transcode.storage_failed(OSError(number, "said")).reason == reason


@pytest.fixture
async def source() -> AsyncIterator[flv_source.LiveSource]:
    """A server with one speaker, alice, for three seconds."""
    live = flv_source.LiveSource()
    live.streams["alice"] = flv_source.Stream(tags=flv_source.between(flv_source.content(), 0, 3_000), then="hold")
    await live.start()
    yield live
    await live.stop()


def _native(folder: spool.Spool, source: flv_source.LiveSource, *, made: bool = False) -> native_capture.NativeCapture:
    path = folder.segment_path(TASK, "al", 1, 1, make=made)
    make = bool if made else functools.partial(folder.segment_path, TASK, "al", 1, 1)
    spec = capture.CaptureSpec(
        address=source.address("alice"), path=path, mode="02", make_folder=make, first_media_s=60, stall_after_s=60
    )
    return native_capture.NativeCapture(spec)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("operation", ["open", "write", "fstat"])
async def test_a_native_capture_names_the_fault(
    folder: spool.Spool, source: flv_source.LiveSource, number: int, operation: str
) -> None:
    """A fault at any operation of the writer ends the segment with its reason, and what was written before it stays."""
    running = _native(folder, source, made=True)
    with spool_faults.SpoolFaults(folder.root) as faults:
        if operation != "open":
            await running.start()
            await waiting.until(lambda: running.progress.media_ms > 500, what="media")
        faults.fail(number, operation)
        await running.start()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(20))
        assert operation in faults.seen
    assert ended.reason == expected(number)
    kept = folder.segment_path(TASK, "al", 1, 1, make=False)
    assert (kept.exists() and len(flv_source.read(kept)) > 0) == (operation != "open")


@pytest.mark.parametrize("operation", ["open", "write", "fstat", "close", "stat", "mkdir"])
async def test_a_native_capture_ends_although_its_disk_hangs(
    folder: spool.Spool, source: flv_source.LiveSource, operation: str
) -> None:
    """A capture whose disk hangs is handed over or stopped within moments. When the disk answers, the writer closes the file, and
    the next capture records."""
    running = _native(folder, source)
    with spool_faults.SpoolFaults(folder.root) as faults:
        if operation in ("write", "fstat", "close"):
            await running.start()
            await waiting.until(lambda: running.progress.media_ms > 500, what="media")
        faults.fail(spool_faults.HANG, operation)
        starting = asyncio.create_task(running.start())
        if operation != "close":
            await waiting.until(lambda: operation in faults.seen, what=f"a {operation} that hangs")
        running.stop()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(3 * file_threads.ANSWER_S))
        await starting
        assert ended.reason == Reason.STOPPED
        faults.heal()
        again = _native(spool.Spool(folder.root.with_name("other")), source)
        again._spec.path.parent.mkdir(parents=True)
        await again.start()
        await waiting.until(lambda: again.progress.media_ms > 500, what="media of the next capture")
        again.stop()
        await again.wait()


@pytest.mark.parametrize(("kind", "ms"), [(spool_faults.SLOW, 20), (spool_faults.SLOW, 100), (spool_faults.HANG, 0)])
async def test_a_native_capture_waits_for_its_disk(
    folder: spool.Spool, source: flv_source.LiveSource, kind: str, ms: int
) -> None:
    """While each operation is slow, or none returns, media waits in memory; all of it is in the segment afterwards."""
    running, stream = _native(folder, source), source.streams["alice"]
    stream.then = "close"
    with spool_faults.SpoolFaults(folder.root) as faults:
        if kind == spool_faults.SLOW:
            faults.fail(kind, *spool_faults.OPERATIONS, ms=ms)
        await running.start()
        await waiting.until(lambda: running.progress.media_ms > 500, 20, "media")
        if kind == spool_faults.HANG:
            faults.fail(kind, *spool_faults.OPERATIONS)
            await waiting.until(lambda: faults.seen, what="an operation that hangs")
            before = running.progress
            await waiting.until(lambda: stream.last_sent - stream.first_sent > 2, what="media")
            assert running.progress == before
            faults.heal()
        ended = await asyncio.wait_for(running.wait(), waiting.limit_s(30))
    found = flv_source.read(folder.segment_path(TASK, "al", 1, 1, make=False))
    assert [t.timestamp_ms for t in found if t.is_media] == [t.timestamp_ms for t in stream.tags if t.is_media]
    assert ended.reason == Reason.EOF
