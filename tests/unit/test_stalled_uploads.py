"""Stalled uploads: when they leave their slots, to whom, and how many there may be."""

from __future__ import annotations

from collections.abc import Collection

from machine import errors, job_key, states
from worker import leased_job, stalled_uploads

SLOTS = 2
SILENT, OTHER = "silent-12345", "b-12345"


class Uploads:
    """The uploads of a worker, by the test's word, and the queue that it asks."""

    def __init__(self) -> None:
        self.jobs: dict[int, leased_job.AnyJob] = {}
        self.waiting: set[str] = set()
        self.asked: list[Collection[str]] = []
        self.away = False
        self.stalled = stalled_uploads.StalledUploads(self.jobs, slots=SLOTS, others_wait=self.others_wait, is_to=self.is_to)

    def begin(self, bucket: str, *, stalled: bool = True, kind: str = states.UPLOAD) -> leased_job.AnyJob:
        """Begin a job; of one that has stalled COS has confirmed nothing for longer than STALLED_S."""
        owner = job_key.RecordingKey("0" * 26, f"s{len(self.jobs)}", 1)
        job = self.jobs[len(self.jobs)] = leased_job.LeasedJob(owner=owner, epoch=1, kind=kind, bucket=bucket)
        job.moved_s -= 2 * stalled_uploads.STALLED_S if stalled else -3600
        return job

    async def others_wait(self, buckets: Collection[str]) -> bool:
        """As the store does."""
        self.asked.append(buckets)
        if self.away:
            raise errors.DatabaseUnavailable("away")
        return bool(self.waiting - set(buckets))

    async def is_to(self, task_id: str, buckets: Collection[str]) -> bool:
        """As the store does; here a session is named as its bucket."""
        return task_id in buckets


async def test_uploads_that_move_never_leave_a_slot() -> None:
    """While COS confirms parts, the queue is not even read, whoever waits. A job of another kind, or one whose bucket is not read
    yet, has not stalled."""
    uploads = Uploads()
    uploads.waiting = {OTHER}
    uploads.begin(SILENT, stalled=False)
    uploads.begin("")
    uploads.begin(SILENT, kind=states.TRANSCODE)
    uploads.begin(SILENT).ended = True
    await uploads.stalled.look()
    assert (uploads.stalled.left(), uploads.asked) == (0, [])


async def test_a_single_bucket_keeps_its_slots() -> None:
    """All uploads go to one bucket, which does not answer, and more of them wait: everything stays as without this rule."""
    uploads = Uploads()
    uploads.waiting = {SILENT}
    for _ in range(SLOTS):
        uploads.begin(SILENT)
    await uploads.stalled.look()
    assert (uploads.asked, uploads.stalled.left()) == ([[SILENT]], 0)
    assert await uploads.stalled.refusal(SILENT) == ""


async def test_an_upload_whose_bucket_is_not_read_yet_may_be_to_any() -> None:
    """One upload has stalled, and another has only just begun: their bucket may be the same, and then it has its slots."""
    uploads = Uploads()
    uploads.waiting = {SILENT}
    uploads.begin(SILENT)
    uploads.begin("")
    await uploads.stalled.look()
    assert (uploads.asked, uploads.stalled.left()) == ([[SILENT]], 0)


async def test_stalled_uploads_leave_their_slots_to_other_buckets() -> None:
    """Once an upload to another bucket waits, stalled ones take no slot. No more of their bucket begin, and others do. One whose
    bytes COS confirms again counts."""
    uploads = Uploads()
    uploads.waiting = {SILENT, OTHER}
    first, _ = uploads.begin(SILENT), uploads.begin(SILENT)
    await uploads.stalled.look()
    assert uploads.stalled.left() == SLOTS
    assert await uploads.stalled.refusal(SILENT) == f"{SLOTS} uploads to its bucket run"
    assert await uploads.stalled.refusal(OTHER) == ""
    first.moved_s += 3600
    assert uploads.stalled.left() == SLOTS - 1
    uploads.waiting.clear()
    await uploads.stalled.look()
    assert uploads.stalled.left() == 0


async def test_many_silent_buckets_have_a_bound() -> None:
    """However many buckets do not answer, a worker runs at most MOST times as many uploads as it has slots."""
    uploads = Uploads()
    uploads.waiting = {OTHER}
    for number in range(20 * SLOTS):
        uploads.begin(f"silent-{number}-12345")
    await uploads.stalled.look()
    assert uploads.stalled.left() == (stalled_uploads.MOST - 1) * SLOTS


async def test_without_the_database_nothing_is_left_to_others() -> None:
    """If the queue cannot be read, stalled uploads keep their slots, and the next look tries again."""
    uploads = Uploads()
    uploads.waiting = {OTHER}
    uploads.begin(SILENT)
    await uploads.stalled.look()
    assert uploads.stalled.left() == 1
    uploads.away = True
    await uploads.stalled.look()
    assert uploads.stalled.left() == 0
    uploads.away = False
    await uploads.stalled.look()
    assert uploads.stalled.left() == 1
