"""Slots of a worker, on a real store: jobs without a free slot hold no lease, and a slow receiver delays only its own results."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Collection, Sequence

import pytest

from bus import local
from events import codec
from machine import due_work, errors, job_key, model, states, uploaded_object
from machine.reasons import Reason
from store import store as stores
from store import upload_queue
from tests import engines, examples, transactions, waiting
from tests.work_doubles import Node, measured, node
from worker import capacity, command_handlers, cpu_usage, receivers, stalled_uploads

__all__ = ["node"]

SLOW, OTHER = "http://slow.example:8000/", "http://other.example/"
SILENT = "silent-12345"


async def queued_delivery(node: Node, task_id: str, revision: int, url: str, failures: int = 0) -> None:
    """Queue the delivery of a result, and hand its command to the worker."""
    job = model.Job(kind=states.DELIVERY, state=states.QUEUED)
    value = model.Delivery(task_id=task_id, revision=revision, url=url, body="{}", epoch=1, failures=failures, job=job)
    async with transactions.opened(node.store) as tx:
        tx.add_delivery(value)
    data = {**value.key.fields(), "Epoch": 1}
    await command_handlers.handle(node.worker, codec.make("send-callback", id=f"c{value.key}", time_ms=node.clock(), data=data))


async def queued_transcodes(node: Node, task_id: str, speakers: Sequence[str]) -> None:
    """Open a session whose recordings wait for their transcodes, and queue their commands."""
    job = model.Job(kind=states.TRANSCODE, state=states.QUEUED)
    values = [examples.recording(task_id, speaker=s, job=job, state=states.TRANSCODING, stop_requested=True) for s in speakers]
    await examples.opened(node.store, *values, of=examples.session(task_id, request=examples.request(user_id=task_id)))
    async with transactions.opened(node.store) as tx:
        for value in values:
            data = {**value.key.fields(), "Epoch": 1}
            tx.send("command", codec.make("start-transcode", id=value.key.text, time_ms=node.clock(), data=data), task_id)


async def queued_uploads(node: Node, task_id: str, bucket: str) -> None:
    """Open a session whose finished file waits for its upload to this bucket, and queue the command."""
    job = model.Job(kind=states.UPLOAD, state=states.QUEUED)
    value = examples.recording(task_id, job=job, state=states.UPLOADING, stop_requested=True)
    request = examples.request(user_id=task_id, bucket=bucket)
    await examples.opened(node.store, value, of=examples.session(task_id, request=request))
    async with transactions.opened(node.store) as tx:
        command = codec.make(
            "start-upload", id=value.key.text, time_ms=node.clock(), data={**value.key.fields(), "Epoch": value.epoch}
        )
        tx.send("command", command, task_id)


def slots_of(node: Node, transcodes: int) -> tuple[local.LocalBus, capacity.Capacity]:
    """A bus for the node, and what pauses its commands while so many transcodes, or uploads, run."""

    async def on_command(command: codec.Event) -> None:
        followed = node.work.follows(job_key.RecordingKey.of(command.data))
        do = functools.partial(command_handlers.handle, node.worker, command)
        await part.admit(command.type, do, command.data["TaskId"], followed=followed)

    async def no_event(_: codec.Event) -> None:
        return None

    bus = local.LocalBus(node.store, clock=node.clock, on_event=no_event, on_command=on_command)
    queue = upload_queue.UploadQueue(node.store.connections)
    part = capacity.Capacity(
        None,
        slots={"start-transcode": transcodes, capacity.FOLLOWED: 1, "start-upload": transcodes},
        pause=bus.pause,
        resume=bus.resume,
        running=node.worker.running,
        running_of=node.worker.running_of,
        follows=lambda: bool(node.work.following),
        freed=node.worker.freed,
        live=cpu_usage.LiveCpu(dict, cpus=1),
        measure=measured,
        free_bytes=lambda: 0,
        stalled=stalled_uploads.StalledUploads(
            node.worker.leases.jobs, slots=transcodes, others_wait=queue.others_wait, is_to=queue.is_to
        ),
    )
    return bus, part


async def test_many_deliveries_to_a_slow_receiver_delay_no_other_result(node: Node) -> None:
    """A receiver never answers 150 deliveries. The one of another user begins at once and its outcome is published."""
    for task_id, url in ((examples.TASK, SLOW), (examples.OTHER, OTHER)):
        await examples.opened(node.store, of=examples.session(task_id, request=examples.request(callback=url, user_id=task_id)))
    begun: Counter[str] = Counter()

    async def deliver(delivery: model.Delivery) -> None:
        begun[delivery.url] += 1
        if delivery.url == SLOW:
            await asyncio.Event().wait()

    node.work.deliver = deliver  # type: ignore[method-assign]
    for revision in range(1, 151):
        await queued_delivery(node, examples.TASK, revision, SLOW)
    await queued_delivery(node, examples.OTHER, 1, OTHER)
    await waiting.until(lambda: begun[OTHER], what="the delivery to the other receiver")
    await node.relayed("callback-finished")
    assert begun[SLOW] <= 64 // receivers.SHARE


async def test_deliveries_to_a_dead_receiver_fail_without_a_connection(node: Node) -> None:
    """After some posts without an answer the rest of the line fails at once, each with an outcome that its backoff follows."""
    await examples.opened(node.store, of=examples.session(request=examples.request(callback=SLOW)))
    begun: Counter[str] = Counter()
    last = len(node.policy.delivery_backoff_ms)

    async def deliver(delivery: model.Delivery) -> None:
        begun["last" if delivery.failures == last else delivery.url] += 1
        raise errors.DeliveryFailed("no answer", reason=Reason.TIMEOUT, retry=True)

    node.work.deliver = deliver  # type: ignore[method-assign]
    for revision in range(1, 16):
        await queued_delivery(node, examples.TASK, revision, SLOW)

    async def ended() -> bool:
        return sum(m.type == "callback-failed" for m in await node.store.outbox.unsent()) == 15

    await waiting.until(ended, 20, "all outcomes")
    assert receivers.OPENS_AFTER <= begun[SLOW] <= receivers.OPENS_AFTER + 64 // receivers.SHARE
    await queued_delivery(node, examples.TASK, 16, SLOW, failures=last)
    await waiting.until(lambda: begun["last"], what="the last attempt of a delivery, which is always made")


async def test_a_bucket_that_never_answers_delays_no_other_upload(store: stores.Store, clock: engines.Clock) -> None:
    """The bucket of one user takes the requests of 30 uploads and answers none. The uploads of two others, which come later, end
    meanwhile; the bucket has no more uploads than before, and the rest of its files wait without a lease."""
    node, answered = Node(store, clock), asyncio.Event()
    begun: list[str] = []
    ended: list[str] = []

    async def upload(assignment: due_work.Assignment, *_: object) -> uploaded_object.UploadedObject:
        bucket = assignment.session.request.bucket
        begun.append(bucket)
        if bucket == SILENT:
            await answered.wait()
        ended.append(bucket)
        return uploaded_object.UploadedObject(size_bytes=10, crc64="1", url="https://x")

    node.work.upload = upload  # type: ignore[method-assign]
    ids = engines.ids("02")
    for _ in range(30):
        await queued_uploads(node, ids(), SILENT)
    bus, part = slots_of(node, 2)
    for each in (node.worker, bus, part):
        await each.start()
    try:
        await waiting.until(lambda: len(begun) == 2 and part.full("start-upload"), what="uploads to the silent bucket")
        for number in range(2):
            await queued_uploads(node, ids(), "b-12345")
            await waiting.until(lambda n=number: len(ended) > n, 20, what="the upload to the other bucket")  # type: ignore[misc]
        assert (Counter(begun), ended) == ({SILENT: 2, "b-12345": 2}, ["b-12345"] * 2)
        assert not answered.is_set()
        assert len(await store.leases.of_node("node-1")) == len(begun)
        answered.set()
        await waiting.until(lambda: len(ended) == 32, 60, what="the uploads to the bucket that answers again")
    finally:
        for each in (part, bus, node.worker):
            await each.stop()


async def test_a_single_silent_bucket_keeps_its_slots(store: stores.Store, clock: engines.Clock) -> None:
    """Where there is one bucket, and it does not answer, the commands of its other uploads stay paused, as ever."""
    node, answered = Node(store, clock), asyncio.Event()
    begun: list[str] = []

    async def upload(assignment: due_work.Assignment, *_: object) -> uploaded_object.UploadedObject:
        begun.append(assignment.recording.task_id)
        await answered.wait()
        return uploaded_object.UploadedObject(size_bytes=10, crc64="1", url="https://x")

    node.work.upload = upload  # type: ignore[method-assign]
    ids = engines.ids("02")
    for _ in range(10):
        await queued_uploads(node, ids(), SILENT)
    bus, part = slots_of(node, 2)
    stalled, looks, refused = part._stalled, Counter[bool](), []
    assert stalled is not None
    waits, is_to = stalled._waits, stalled._is_to

    async def counted(buckets: Collection[str]) -> bool:
        found = await waits(buckets)
        looks[found] += 1
        return found

    async def noted(task_id: str, buckets: Collection[str]) -> bool:
        refused.append(task_id)
        return await is_to(task_id, buckets)

    stalled._waits, stalled._is_to = counted, noted
    for each in (node.worker, bus, part):
        await each.start()
    try:
        await waiting.until(lambda: looks[False] >= 2, 20, what="looks at stalled uploads")
        assert (len(begun), looks[True], refused) == (2, 0, [])
        assert part.full("start-upload")
        answered.set()
        await waiting.until(lambda: len(begun) == 10, 20, what="the other uploads")
    finally:
        for each in (part, bus, node.worker):
            await each.stop()


async def test_a_transcode_without_a_slot_holds_no_lease(store: stores.Store, clock: engines.Clock) -> None:
    """Of five transcodes on a worker with two slots two hold a lease; the others stay queued for any worker, and follow as slots
    become free."""
    node = Node(store, clock)
    gates: list[asyncio.Event] = []

    async def transcode(*_: object) -> model.Output:
        gates.append(asyncio.Event())
        await gates[-1].wait()
        return model.Output(duration_ms=1000, size_bytes=10)

    node.work.transcode = transcode  # type: ignore[method-assign, assignment]
    await queued_transcodes(node, examples.TASK, [f"s{n}" for n in range(5)])
    bus, part = slots_of(node, 2)

    async def held() -> set[job_key.JobKey]:
        return {lease.owner for lease in await store.leases.of_node("node-1")}

    for each in (node.worker, bus, part):
        await each.start()
    try:
        await waiting.until(lambda: len(gates) == 2, what="two transcodes")
        await waiting.until(lambda: part.full("start-transcode"), what="the pause")
        assert len(await held()) == 2
        for number in range(5):
            await waiting.until(lambda n=number: len(gates) > n, what="the next transcode")  # type: ignore[misc]
            assert node.worker.running(states.TRANSCODE) <= 2
            gates[number].set()
        await waiting.until(lambda: not node.worker.running(states.TRANSCODE), what="the end of all")
        assert len(await held()) == 5
    finally:
        for each in (part, bus, node.worker):
            await each.stop()


async def test_a_followed_recording_waits_for_no_other_transcode(store: stores.Store, clock: engines.Clock) -> None:
    """All slots are taken by transcodes of whole segments, and more of these wait. The recording that this node follows ends at
    once, also behind them, and leaves them their slots."""
    node = Node(store, clock)
    begun: dict[str, asyncio.Event] = {}

    async def transcode(assignment: due_work.Assignment, *_: object) -> model.Output:
        begun[assignment.recording.speaker] = asyncio.Event()
        await begun[assignment.recording.speaker].wait()
        return model.Output(duration_ms=1000, size_bytes=10)

    node.work.transcode = transcode  # type: ignore[method-assign]
    node.work.following.add(job_key.RecordingKey(examples.OTHER, "followed", 1))
    await queued_transcodes(node, examples.TASK, [f"s{n}" for n in range(6)])
    bus, part = slots_of(node, 2)
    for each in (node.worker, bus, part):
        await each.start()
    try:
        await waiting.until(lambda: len(begun) == 2, what="two transcodes")
        await queued_transcodes(node, examples.OTHER, ["followed"])
        await waiting.until(lambda: "followed" in begun, what="the followed one")
        assert (node.worker.running(states.TRANSCODE), node.worker.running(capacity.FOLLOWED)) == (3, 1)
        begun["followed"].set()
        await waiting.until(lambda: not node.worker.running(capacity.FOLLOWED), what="its end")
        assert len(begun) == 3
    finally:
        for each in (part, bus, node.worker):
            await each.stop()


async def test_a_session_with_many_speakers_leaves_slots_to_others(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transcodes of 30 speakers of one session wait in front of those of three other sessions. These do not wait for them."""
    monkeypatch.setattr(capacity, "WAITS_S", capacity.WAITS_S * waiting.pace())
    node = Node(store, clock)
    begun: list[tuple[str, asyncio.Event]] = []

    async def transcode(assignment: due_work.Assignment, *_: object) -> model.Output:
        begun.append((assignment.recording.task_id, asyncio.Event()))
        await begun[-1][1].wait()
        return model.Output(duration_ms=1000, size_bytes=10)

    node.work.transcode = transcode  # type: ignore[method-assign, assignment]
    others = [examples.OTHER[:-1] + letter for letter in "ABC"]
    for task_id, count in ((examples.TASK, 30), *((other, 1) for other in others)):
        await queued_transcodes(node, task_id, [f"s{n}" for n in range(count)])
    bus, part = slots_of(node, 2)
    for each in (node.worker, bus, part):
        await each.start()
    try:
        for number in range(33):
            await waiting.until(lambda n=number: len(begun) > n, 20, what="the next transcode")  # type: ignore[misc]
            begun[number][1].set()
    finally:
        for each in (part, bus, node.worker):
            await each.stop()
    order = [task_id for task_id, _ in begun]
    # Without turns they would be the last three of 33.
    assert max(map(order.index, others)) < 25
