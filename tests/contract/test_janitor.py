"""The janitor on a real spool, on every engine: it deletes exactly the files that nothing can need any more."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from assembly import work as node_work
from config import settings
from machine import job_key, model
from media import spool
from store import store as stores
from tencent import credentials
from tests import engines, examples, transactions
from worker import janitor

POLICY = model.Policy()
OWNER = job_key.RecordingKey(examples.TASK, "al", 1)
DONE = {"state": "Done", "code": "Success", "ended_ms": 1_000, "job": None, "epoch": 4}
OUTPUT = model.Output(duration_ms=1, size_bytes=1, epoch=3)


class Disk:
    """A node's spool, and a janitor for it."""

    def __init__(self, root: Path, store: stores.Store, clock: engines.Clock) -> None:
        self.root = root
        folder = spool.Spool(root)
        folder.start()
        self.work = node_work.NodeWork(settings.load({"HOME": str(root)}), folder, credentials.CredentialChain({}, clock=clock))
        self.node = folder.node_id
        self.janitor = janitor.Janitor(store, self.work, policy=POLICY, clock=clock, node=self.node)
        self.close = folder.stop

    def put(self, *names: str, speaker: str = "al", task_id: str = examples.TASK) -> None:
        """Files of a recording."""
        folder = self.root / task_id / f"{speaker}_1"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_bytes(b"x")

    def holds(self) -> set[str]:
        """A recording's files, as `speaker/file`."""
        found = (path for path in self.root.glob("*/*/*") if path.is_file())
        return {f"{path.parent.name.removesuffix('_1')}/{path.name}" for path in found}


@pytest.fixture
def disk(tmp_path: Path, store: stores.Store, clock: engines.Clock) -> Callable[[], Disk]:
    """Makes the one spool of a test; its lock ends with the process."""
    return lambda: Disk(tmp_path / "spool", store, clock)


async def _done(store: stores.Store, node: str, *segments: tuple[str, int], **changes: Any) -> None:
    """Recordings that are Done, with these segments (speaker, epoch) on the spool of `node`."""
    speakers = sorted({speaker for speaker, _ in segments})
    await examples.opened(store, *(examples.recording(speaker=speaker) for speaker in speakers))
    for speaker, epoch in segments:
        await store.segments.register(job_key.RecordingKey(examples.TASK, speaker, 1), epoch, node)
    for speaker in speakers:
        await examples.moved(store, job_key.RecordingKey(examples.TASK, speaker, 1), **DONE | changes)


async def test_copies_of_another_nodes_segments_leave(disk: Callable[[], Disk], store: stores.Store) -> None:
    """Soon after Done, files are deleted whatever node finished the recording and whatever a crash left half; live and unknown
    files stay."""
    here = disk()
    await _done(store, "elsewhere", ("al", 1))
    async with transactions.opened(store) as tx:
        tx.add_recording(examples.recording(speaker="bo"))
    here.put("00000001.flv", "00000001.flv.arrivals", "00000002.flv.fetched", "00000002.flv.arrivals.fetched")
    here.put("finished.00000002.mp4.part", "notes.txt")
    here.put("00000001.flv", speaker="bo")
    here.put("00000001.flv", speaker="unknown")
    here.put("00000001.flv", speaker="restored", task_id=examples.OTHER)
    await here.janitor.clean()
    assert here.holds() == {"al/notes.txt", "bo/00000001.flv", "unknown/00000001.flv", "restored/00000001.flv"}
    assert await store.spool_files.given_up("elsewhere") == [OWNER], "those are that node's to delete and to forget"


async def test_a_replay_that_came_first_keeps_its_files(
    disk: Callable[[], Disk], store: stores.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A janitor that froze between its query and its deletion deletes the released files, and none of a newer epoch."""
    here = disk()
    await _done(store, here.node, ("al", 4), output=OUTPUT)
    here.put("00000004.flv", "finished.00000003.mp3")
    question = store.spool_files.of_recording

    async def stands_still(recording_id: str, node: str) -> object:
        answer = await question(recording_id, node)
        job = model.Job(kind="transcode", state="queued")
        await examples.moved(store, OWNER, state="Transcoding", epoch=6, files_removed=False, job=job)
        here.put("00000005.flv", "finished.00000006.mp3")
        return answer

    monkeypatch.setattr(store.spool_files, "of_recording", stands_still)
    await here.janitor.clean()
    assert here.holds() == {"al/00000005.flv", "al/finished.00000006.mp3"}


async def test_what_older_transcodes_made_leaves(disk: Callable[[], Disk], store: stores.Store) -> None:
    """Old outputs are deleted once a newer file is verified and recorded; before that, and while a job runs, everything stays."""
    here = disk()
    live = {"state": "Uploading", "epoch": 6, "job": model.Job(kind="upload", state="queued")}
    await examples.opened(
        store,
        examples.recording(**live, output=model.Output(duration_ms=1, size_bytes=1, epoch=4)),
        examples.recording(speaker="bo", **live | {"state": "Transcoding"}),
    )
    outputs = [f"finished.{epoch:08d}.mp4{end}" for epoch in (2, 3, 4, 5, 6) for end in ("", ".part")]
    for speaker in ("al", "bo"):
        here.put("00000001.flv", "finished.mp4", *outputs, speaker=speaker)
    before = here.holds()
    await here.janitor.clean()
    kept = {"00000001.flv", *(name for name in outputs if "4.mp4" in name or "6.mp4" in name)}
    assert here.holds() == {f"al/{name}" for name in kept} | {name for name in before if name.startswith("bo/")}


async def test_what_cannot_be_deleted_is_named(disk: Callable[[], Disk], store: stores.Store) -> None:
    """An undeletable file is logged with the error and the action; its neighbors and the files of others are still deleted."""
    here = disk()
    await _done(store, here.node, ("al", 1), ("al", 2), ("bo", 1))
    stuck = here.root / examples.TASK / "al_1" / "00000001.flv"
    stuck.mkdir(parents=True)
    here.put("00000002.flv")
    here.put("00000001.flv", speaker="bo")
    with structlog.testing.capture_logs() as lines:
        await here.janitor.clean()
    (told,) = [line for line in lines if line["event"] == "janitor.not_removed"]
    assert (told["owner"], told["file"], told["error"]) == (OWNER, str(stuck), os.strerror(errno.EISDIR))
    assert "by hand" in told["hint"]
    assert here.holds() == set()
    assert await store.spool_files.given_up(here.node) == [OWNER], "looked at again"
