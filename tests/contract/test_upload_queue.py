"""The queue of uploads by bucket, as a worker whose uploads have stalled reads it."""

from __future__ import annotations

from machine import model, states
from store import store as stores
from store import upload_queue
from tests import examples


async def session_with(store: stores.Store, task_id: str, bucket: str, *, path: str = "p", kind: str, state: str) -> None:
    """A session of this bucket whose one recording has a job."""
    value = examples.recording(task_id, job=model.Job(kind=kind, state=state))
    request = examples.request(user_id=task_id, bucket=bucket, path=path)
    await examples.opened(store, value, of=examples.session(task_id, request=request))


async def test_queued_uploads_are_told_apart_by_bucket(store: stores.Store) -> None:
    """Only a queued upload waits, and only one whose session has none of the given buckets. A bucket whose name is the end of
    another one's, or that a path spells out, is not taken for it."""
    queue = upload_queue.UploadQueue(store.connections)
    assert not await queue.others_wait([])
    await session_with(store, examples.TASK, "a-12345", path='"bucket":"b-12345"', kind=states.UPLOAD, state=states.QUEUED)
    await session_with(store, examples.OTHER, "b-12345", kind=states.TRANSCODE, state=states.QUEUED)
    await session_with(store, examples.TASK[:-1] + "X", "b-12345", kind=states.UPLOAD, state=states.WAITING)
    assert await queue.others_wait([])
    assert not await queue.others_wait(["a-12345"])
    assert await queue.others_wait(["b-12345", "aa-12345"])
    assert await queue.is_to(examples.TASK, ["a-12345", "c-12345"])
    assert not await queue.is_to(examples.TASK, ["b-12345", "-12345", "a-1234"])
    assert not await queue.is_to("unknown", ["a-12345"])
