"""What every engine of the store must do, whichever it is: the one conformance suite. The parameter's id names the engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from events import codec, requests
from machine import errors, model, template
from store import reading, transaction
from store import store as stores
from tests import engines

ROOM = requests.Room(sdk_app_id=1400000001, room_id=88)
TASK = "01" + "0" * 23 + "1"
OTHER = "01" + "0" * 23 + "2"
LEASE_MS = 30_000
SECRETS = requests.Secrets(user_sig="sig", secret_id="id", secret_key="key", token="token")


def _request(**changes: Any) -> requests.StartRequest:
    plain = requests.StartRequest(room=ROOM, user_id="rec", region="ap-shanghai", bucket="b-12345", path="p", subscribe=("al",))
    return dataclasses.replace(plain, **changes)


def _session(task_id: str = TASK, **changes: Any) -> model.Session:
    plain = model.Session(task_id=task_id, request=_request(), opened_ms=engines.START_MS, idle_from_ms=engines.START_MS)
    return dataclasses.replace(plain, **changes)


def _recording(task_id: str = TASK, speaker: str = "al", **changes: Any) -> model.Recording:
    job = model.Job(kind="capture", state="queued")
    plain = model.Recording(task_id=task_id, speaker=speaker, n=1, epoch=1, job=job, opened_ms=engines.START_MS)
    return dataclasses.replace(plain, **changes)


def _event(id_: str = "e1", type_: str = "stop") -> codec.Event:
    return codec.Event(id=id_, type=type_, time_ms=engines.START_MS, data={"TaskId": TASK})


async def _open(store: stores.Store, *recordings: model.Recording, session: model.Session | None = None) -> None:
    async with store.transaction() as tx:
        await tx.add_session(session or _session(), SECRETS)
        for recording in recordings:
            await tx.add_recording(recording)


async def _saved(store: stores.Store, recording_id: str) -> model.Recording:
    async with store.transaction() as tx:
        found = await tx.recording(recording_id)
    assert found is not None
    return found


async def _move(store: stores.Store, recording_id: str, **changes: Any) -> model.Recording:
    async with store.transaction() as tx:
        found = await tx.recording(recording_id)
        assert found is not None
        return await tx.save_recording(found, dataclasses.replace(found, **changes))


# --- inbox ------------------------------------------------------------------------------------------------------------
async def test_an_event_is_claimed_once(store: stores.Store) -> None:
    """The first claim of an id is ours; every later one gets the first answer."""
    async with store.transaction() as tx:
        assert await tx.claim("e1") is None
        await tx.answer("e1", '{"a":1}')
    async with store.transaction() as tx:
        assert await tx.claim("e1") == '{"a":1}'
        assert await tx.claim("e2") is None
    async with store.transaction() as tx:
        assert await tx.claim("e2") == ""


async def test_two_claims_at_once_have_one_winner(store: stores.Store) -> None:
    """Deliveries of one event at the same time are decided once, and all get the same answer."""
    decided = []

    async def handler(tx: Any, event: codec.Event) -> dict[str, Any]:
        decided.append(event.id)
        return {"n": len(decided)}

    answers = await asyncio.gather(*(template.decide(store, _event(), handler) for _ in range(5)))
    assert answers == [{"n": 1}] * 5
    assert decided == ["e1"]


async def test_a_rollback_leaves_nothing(store: stores.Store, database: engines.Database) -> None:
    """What a transaction wrote before an error, the claim included, is gone."""

    async def handler(tx: Any, event: codec.Event) -> None:
        await tx.add_session(_session(), SECRETS)
        await tx.add_recording(_recording())
        await tx.arm(TASK, "join", 0)
        await tx.journal(TASK, TASK, event, "", "Open", "x")
        await tx.send("event", event, TASK)
        await tx.note_callback(ROOM.sdk_app_id)
        raise errors.Refused("no")

    with pytest.raises(errors.Refused):
        await template.decide(store, _event(), handler)
    async with store.transaction() as tx:
        assert await tx.claim("e1") is None
        assert await tx.session(TASK) is None
        assert await tx.recording(f"{TASK}/al/1") is None
        assert await tx.secrets(TASK) == requests.Secrets()
        assert not await tx.callbacks_come(ROOM.sdk_app_id)
    assert await store.unsent() == []
    assert await store.due_deadlines() == []
    assert await store.take_lease(f"{TASK}/al/1", 1, "n", LEASE_MS) is False


async def test_a_conflict_is_decided_again(store: stores.Store) -> None:
    """A decision whose row was moved meanwhile is loaded and made again, and its first try leaves nothing."""
    await _open(store, _recording())
    tries = []

    async def handler(tx: Any, event: codec.Event) -> None:
        found = await tx.recording(f"{TASK}/al/1")
        tries.append(found.version)
        await tx.journal(TASK, TASK, event, note=f"try {len(tries)}")
        stale = dataclasses.replace(found, version=found.version - 1) if len(tries) == 1 else found
        await tx.save_recording(stale, dataclasses.replace(stale, detail="x"))

    await template.decide(store, _event(), handler)
    assert len(tries) == 2
    lines = await reading.Reading(store._engine).timeline(TASK)
    assert [line.note for line in lines] == ["try 2"]


# --- guarded updates --------------------------------------------------------------------------------------------------
async def test_an_update_of_a_moved_row_is_a_conflict(store: stores.Store) -> None:
    """Whoever saves from an older version, or from another state, gets a Conflict and writes nothing."""
    await _open(store, _recording())
    old = await _saved(store, f"{TASK}/al/1")
    moved = await _move(store, old.id, state="Recording")
    assert moved.version == old.version + 1
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.save_recording(old, dataclasses.replace(old, state="Failed"))
    lying = dataclasses.replace(moved, state="Joining")
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.save_recording(lying, dataclasses.replace(lying, state="Failed"))
    assert (await _saved(store, old.id)).state == "Recording"


async def test_a_session_and_a_callback_are_guarded_too(store: stores.Store) -> None:
    """Sessions and callbacks are saved only from the version they were loaded in."""
    await _open(store)
    callback = model.Callback(task_id=TASK, revision=1, url="http://x/", body="{}", epoch=1)
    async with store.transaction() as tx:
        old = await tx.session(TASK)
        assert old is not None
        await tx.save_session(old, dataclasses.replace(old, published=True))
        await tx.add_callback(callback)
        await tx.save_callback(callback, dataclasses.replace(callback, tries=1))
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.save_session(old, dataclasses.replace(old, state="Closing"))
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.save_callback(callback, dataclasses.replace(callback, state="failed"))


async def test_what_is_saved_comes_back(store: stores.Store) -> None:
    """Every field of a recording, session and callback survives the way through the database."""
    output = model.Output(duration_ms=5, size_bytes=6, crc64="7", start_ms=8, end_ms=None, gaps=((1, 2), (3, 4)))
    request = _request(room=requests.Room(sdk_app_id=4294967295, str_room_id="房间 ../%2F|~"), callback="https://x/y", mode="02")
    session = _session(request=request, warnings=("w1", "w2"), state="Closing", closing_ms=5, end_reason="Stopped", revision=3)
    full = _recording(
        speaker="a/b#c 说",
        mode="02",
        state="Uploading",
        stop_requested=True,
        epoch=9,
        attempt=2,
        tries=3,
        present=False,
        awaited=True,
        last_pull=True,
        idle_from_ms=2**53,
        step_from_ms=4,
        ended_ms=5,
        first_packet_ms=6,
        last_packet_ms=7,
        media_ms=8,
        code="FailedCosWrite",
        detail="é\n'\"",
        output=output,
        url="https://x",
        job=model.Job(kind="upload", state="queued"),
        files_removed=True,
    )
    await _open(store, full, session=session)
    async with store.transaction() as tx:
        assert await tx.session(TASK) == session
        assert await tx.recordings(TASK) == [full]
        assert await tx.secrets(TASK) == SECRETS
    assert model.split_id(full.id) == (TASK, "a/b#c 说", 1)


# --- the open key -----------------------------------------------------------------------------------------------------
async def test_one_open_session_a_key(store: stores.Store) -> None:
    """A second Open session of a key is a Conflict; other kinds of room, users and applications are other keys."""
    await _open(store)
    with pytest.raises(errors.Conflict):
        await _open(store, session=_session(OTHER))
    others = [
        _request(room=requests.Room(sdk_app_id=ROOM.sdk_app_id, str_room_id="88")),
        _request(user_id="rec2"),
        _request(room=requests.Room(sdk_app_id=2, room_id=88)),
    ]
    for number, request in enumerate(others):
        await _open(store, session=_session("02" + str(number).zfill(24), request=request))
    async with store.transaction() as tx:
        for request in (_request(), *others):
            found = await tx.open_session(request.room, request.user_id)
            assert found is not None
            assert found.request.room == request.room
        assert [s.task_id for s in await tx.sessions_in(ROOM)] == [TASK, "02" + "1".zfill(24)]


async def test_two_starts_at_once_open_one_session(store: stores.Store) -> None:
    """Concurrent starts of one key end with one session and one answer."""
    new_id = engines.ids()

    async def handler(tx: Any, event: codec.Event) -> dict[str, Any]:
        found = await tx.open_session(ROOM, "rec")
        if found is None:
            found = _session(new_id())
            await tx.add_session(found, SECRETS)
        return {"TaskId": found.task_id}

    answers = await asyncio.gather(*(template.decide(store, _event(f"e{n}", "start"), handler) for n in range(5)))
    assert len({a["TaskId"] for a in answers}) == 1
    assert len(await reading.Reading(store._engine).sessions()) == 1


async def test_a_closing_session_frees_its_key(store: stores.Store) -> None:
    """A start during Closing finds no Open session and may open another."""
    await _open(store)
    async with store.transaction() as tx:
        old = await tx.session(TASK)
        assert old is not None
        await tx.save_session(old, dataclasses.replace(old, state="Closing"))
        assert await tx.open_session(ROOM, "rec") is None
        await tx.add_session(_session(OTHER), SECRETS)
        assert [s.task_id for s in await tx.sessions_in(ROOM)] == [TASK, OTHER]


async def test_an_unknown_state_is_refused(store: stores.Store) -> None:
    """The database itself refuses a state that no table of the design has."""
    await _open(store, _recording())
    with pytest.raises((IntegrityError, errors.Conflict)):
        await _move(store, f"{TASK}/al/1", state="Paused")


# --- jobs, leases, epochs ---------------------------------------------------------------------------------------------
async def test_a_lease_is_taken_once(store: stores.Store) -> None:
    """Of several nodes that want a queued job, one gets it; the holder is known."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    taken = await asyncio.gather(*(store.take_lease(owner, 1, f"n{k}", LEASE_MS) for k in range(4)))
    assert sorted(taken) == [False, False, False, True]
    node = f"n{taken.index(True)}"
    assert await store.holds_lease(owner, 1, node)
    assert not await store.holds_lease(owner, 1, "other")
    assert (await _saved(store, owner)).job == model.Job(kind="capture", state="leased", node=node)
    assert [(x.owner, x.epoch, x.kind, x.node) for x in await store.leases(node=node)] == [(owner, 1, "capture", node)]


async def test_an_older_epoch_gets_no_lease(store: stores.Store) -> None:
    """A superseded epoch, one that never was, and a waiting job give no lease."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    await _move(store, owner, epoch=2, job=model.Job(kind="capture", state="queued"))
    assert not await store.take_lease(owner, 1, "n", LEASE_MS)
    assert not await store.take_lease(owner, 3, "n", LEASE_MS)
    assert not await store.take_lease("nobody", 1, "n", LEASE_MS)
    await _move(store, owner, epoch=3, job=model.Job(kind="capture", state="waiting"))
    assert not await store.take_lease(owner, 3, "n", LEASE_MS)
    await _move(store, owner, job=model.Job(kind="capture", state="queued"))
    assert await store.take_lease(owner, 3, "n", LEASE_MS)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param({"job": None}, id="the job ended"),
        pytest.param({"job": None, "epoch": 2}, id="the job ended under a new epoch"),
        pytest.param({"job": model.Job(kind="transcode", state="queued"), "epoch": 2}, id="the next step"),
        pytest.param({"job": model.Job(kind="capture", state="queued"), "epoch": 4}, id="epochs were left out"),
    ],
)
async def test_a_lease_is_refused_after_the_end(store: stores.Store, end: dict[str, Any]) -> None:
    """Once its job has ended or was superseded, a lease is neither renewed nor held, and nobody's to expire."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    assert await store.take_lease(owner, 1, "n", LEASE_MS)
    assert await store.renew_lease(owner, 1, "n", LEASE_MS)
    assert not await store.renew_lease(owner, 1, "other", LEASE_MS)
    await _move(store, owner, **end)
    assert not await store.renew_lease(owner, 1, "n", LEASE_MS)
    assert not await store.holds_lease(owner, 1, "n")
    assert not await store.take_lease(owner, 1, "n", LEASE_MS)
    assert await store.leases(node="n") == []


async def test_a_lease_makes_a_concurrent_decision_conflict(store: stores.Store) -> None:
    """A decision that saw the job queued must be made again when a worker took the lease meanwhile."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    seen = await _saved(store, owner)
    assert await store.take_lease(owner, 1, "n", LEASE_MS)
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.save_recording(seen, dataclasses.replace(seen, state="Failed", job=None, epoch=2))
    assert await store.holds_lease(owner, 1, "n")


async def test_a_lease_of_a_callback_makes_a_concurrent_decision_conflict(store: stores.Store) -> None:
    """The same for the delivery of a result."""
    await _open(store)
    callback = model.Callback(
        task_id=TASK, revision=1, url="http://x/", body="{}", epoch=1, job=model.Job(kind="callback", state="queued")
    )
    async with store.transaction() as tx:
        await tx.add_callback(callback)
        assert await tx.callbacks(TASK) == [callback]
    assert await store.take_lease(callback.id, 1, "n", LEASE_MS)
    assert not await store.take_lease(callback.id, 1, "m", LEASE_MS)
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.save_callback(callback, dataclasses.replace(callback, state="cancelled", job=None))


async def test_leases_end_by_time_and_renewals_move_that(store: stores.Store, clock: engines.Clock) -> None:
    """A lease is over after its time without a renewal, not before; others are not shown."""
    await _open(store, _recording(), _recording(speaker="bo"))
    for speaker in ("al", "bo"):
        assert await store.take_lease(f"{TASK}/{speaker}/1", 1, "n", LEASE_MS)
    clock.advance(20_000)
    assert await store.renew_lease(f"{TASK}/al/1", 1, "n", LEASE_MS)
    clock.advance(10_001)
    assert [x.owner for x in await store.leases(until_ms=clock())] == [f"{TASK}/bo/1"]
    clock.advance(20_000)
    assert len(await store.leases(until_ms=clock())) == 2
    assert await store.leases(node="elsewhere") == []


async def test_a_renewal_notes_media_for_recording_and_session(store: stores.Store, clock: engines.Clock) -> None:
    """The time of the last packet moves what idleness counts from, forwards only, and disturbs no decision."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    assert await store.take_lease(owner, 1, "n", LEASE_MS)
    seen = await _saved(store, owner)
    for last_ms in (clock() + 5_000, clock() + 2_000):
        assert await store.renew_lease(owner, 1, "n", LEASE_MS, last_packet_ms=last_ms)
    async with store.transaction() as tx:
        saved = await tx.save_recording(seen, dataclasses.replace(seen, detail="a decision beside it"))
        session = await tx.session(TASK)
    assert saved.version == seen.version + 1
    assert session is not None
    assert session.idle_from_ms == clock() + 5_000
    assert (await _saved(store, owner)).idle_from_ms == clock() + 5_000


# --- deadlines --------------------------------------------------------------------------------------------------------
async def test_a_deadline_armed_anew_has_a_new_serial(store: stores.Store, clock: engines.Clock) -> None:
    """Arming again replaces: one deadline, a new serial and a new time; the old serial is worth nothing."""
    async with store.transaction() as tx:
        await tx.arm(TASK, "idle", clock() - 2)
    (first,) = await store.due_deadlines()
    async with store.transaction() as tx:
        await tx.arm(TASK, "idle", clock() - 1)
    (second,) = await store.due_deadlines()
    assert first.serial != second.serial
    async with store.transaction() as tx:
        assert not await tx.spend_deadline(TASK, "idle", first.serial)
        assert await tx.spend_deadline(TASK, "idle", second.serial)
        assert not await tx.spend_deadline(TASK, "idle", second.serial)
    assert await store.due_deadlines() == []


async def test_deadlines_are_due_in_order_and_not_before(store: stores.Store, clock: engines.Clock) -> None:
    """What is over is shown, oldest first, up to the limit; what is disarmed or still to come is not."""
    async with store.transaction() as tx:
        for kind, after_ms in (("join", 30), ("idle", 10), ("max-duration", 20), ("linger", 1_000), ("retry", 5)):
            await tx.arm(TASK, kind, clock() + after_ms)
        await tx.disarm(TASK, "retry")
        await tx.disarm(TASK, "keep")
    assert await store.due_deadlines() == []
    clock.advance(30)
    assert [d.kind for d in await store.due_deadlines()] == ["idle", "max-duration", "join"]
    assert [d.kind for d in await store.due_deadlines(limit=1)] == ["idle"]


async def test_downtime_is_forgiven(store: stores.Store, clock: engines.Clock) -> None:
    """Join, idle and linger move by the time away, and so does what idleness counts from; the others keep their time."""
    await _open(store, _recording(idle_from_ms=clock()), _recording(speaker="bo", state="Done", idle_from_ms=clock(), job=None))
    async with store.transaction() as tx:
        for kind in ("join", "idle", "linger", "max-duration", "result-wait", "retry", "keep"):
            await tx.arm(TASK, kind, clock() + 1_000)
    clock.advance(60_000)
    await store.forgive_downtime(60_000)
    assert {d.kind for d in await store.due_deadlines()} == {"max-duration", "result-wait", "retry", "keep"}
    clock.advance(1_000)
    assert len(await store.due_deadlines()) == 7
    async with store.transaction() as tx:
        session = await tx.session(TASK)
        assert session is not None
        assert session.idle_from_ms == engines.START_MS + 60_000
        assert {r.speaker: r.idle_from_ms - engines.START_MS for r in await tx.recordings(TASK)} == {"al": 60_000, "bo": 0}


async def test_the_last_heartbeat_of_any_node_is_known(store: stores.Store, clock: engines.Clock) -> None:
    """None in a new database, then the newest of all nodes."""
    assert await store.last_seen_ms() is None
    await store.heartbeat("a")
    clock.advance(5_000)
    await store.heartbeat("b")
    await store.heartbeat("b")
    assert await store.last_seen_ms() == clock()


# --- outbox and journal -----------------------------------------------------------------------------------------------
async def test_the_outbox_keeps_the_order_and_forgets_what_is_sent(store: stores.Store) -> None:
    """Messages come in the order they were written, whole, until they are marked; a parked one does not come again."""
    async with store.transaction() as tx:
        await tx.send("event", _event("a"), TASK)
        await tx.send("command", _event("b"), TASK)
    await store.send("result", _event("c"))
    first = await store.unsent()
    assert [codec.decode(m.body, now_ms=0).id for m in first] == ["a", "b", "c"]
    assert [m.channel for m in first] == ["event", "command", "result"]
    assert [m.seq for m in await store.unsent(limit=2)] == [m.seq for m in first[:2]]
    await store.mark_sent(first[1].seq)
    await store.mark_sent(first[0].seq, parked="unknown type")
    assert [m.seq for m in await store.unsent()] == [first[2].seq]
    assert first[0].seq < first[1].seq < first[2].seq


async def test_a_commit_rings_the_bell(store: stores.Store) -> None:
    """`changed` is set by a commit, and not by a rollback."""
    with pytest.raises(errors.Refused):
        async with store.transaction():
            raise errors.Refused
    assert not store.changed.is_set()
    async with store.transaction():
        pass
    assert store.changed.is_set()


async def test_the_journal_is_read_in_order(store: stores.Store, clock: engines.Clock) -> None:
    """A session's timeline holds its lines and nobody else's, oldest first."""
    async with store.transaction() as tx:
        await tx.journal(TASK, TASK, _event("a", "start"), "", "Open", "one")
        await tx.journal(OTHER, OTHER, _event("a", "start"), "", "Open", "other")
    clock.advance(10)
    async with store.transaction() as tx:
        await tx.journal(TASK, f"{TASK}/al/1", _event("b"), "Joining", "Failed", "two")
    lines = await reading.Reading(store._engine).timeline(TASK)
    assert [(x.at_ms - engines.START_MS, x.event_type, x.to_state, x.note) for x in lines] == [
        (0, "start", "Open", "one"),
        (10, "stop", "Failed", "two"),
    ]


async def test_old_ids_are_forgotten_and_results_are_not(store: stores.Store, clock: engines.Clock) -> None:
    """Old claims and sent commands go; unsent, parked and results stay."""
    async with store.transaction() as tx:
        await tx.claim("old")
        for channel in ("command", "event", "result", "command", "command"):
            await tx.send(channel, _event())
    seqs = [m.seq for m in await store.unsent()]
    for seq in seqs[:3]:
        await store.mark_sent(seq)
    await store.mark_sent(seqs[3], parked="why")
    clock.advance(1_000)
    async with store.transaction() as tx:
        await tx.claim("new")
    await store.forget_inbox(clock())
    assert [m.seq for m in await store.unsent()] == [seqs[4]]
    async with store.transaction() as tx:
        assert await tx.claim("new") == ""
        assert await tx.claim("old") is None


async def test_a_revision_exists_once(store: stores.Store) -> None:
    """The second result under one (TaskId, Revision) is a Conflict, whatever it says."""
    await _open(store)
    async with store.transaction() as tx:
        await tx.add_result(TASK, 1, '{"a":1}')
        await tx.add_result(TASK, 2, '{"a":2}')
    with pytest.raises(errors.Conflict):
        async with store.transaction() as tx:
            await tx.add_result(TASK, 1, '{"a":1}')
    assert await reading.Reading(store._engine).results(TASK) == [{"a": 1}, {"a": 2}]


# --- segments and uploads ---------------------------------------------------------------------------------------------
async def test_segments_are_named_by_epoch(store: stores.Store) -> None:
    """Registered before anything is known, in the order of epochs; registering again is harmless; media is what counts."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    for epoch in (4, 1, 4):
        await store.register_segment(owner, epoch, "n")
    async with store.transaction() as tx:
        assert not await tx.has_segments(owner)
    await store.note_segment(owner, 4, {"media_ms": 900, "size_bytes": 10, "first_packet_ms": 5})
    async with store.transaction() as tx:
        assert await tx.has_segments(owner)
        await tx.close_segment(owner, 4, {"media_ms": 1_000, "size_bytes": 12, "last_packet_ms": 1_005, "reason": "eof"})
        await tx.close_segment(owner, 9, {"media_ms": 1_000})
    found = await store.segments(owner)
    assert [(s.epoch, s.node, s.media_ms, s.first_packet_ms, s.last_packet_ms) for s in found] == [
        (1, "n", 0, None, None),
        (4, "n", 1_000, 5, 1_005),
    ]


async def test_registering_a_segment_again_loses_nothing(store: stores.Store) -> None:
    """A repeat of the registration does not forget the media that the segment holds."""
    owner = f"{TASK}/al/1"
    await store.register_segment(owner, 1, "n")
    await store.note_segment(owner, 1, {"media_ms": 900})
    await store.register_segment(owner, 1, "n")
    assert [s.media_ms for s in await store.segments(owner)] == [900]


async def test_the_state_of_an_upload_is_kept(store: stores.Store) -> None:
    """What an upload has reached comes back whole, is replaced, and is forgotten."""
    assert await store.upload_state("r") is None
    for body in ({"upload_id": "u", "parts": [[1, 2, "e"]]}, {"upload_id": "v", "parts": []}):
        await store.save_upload_state("r", body)
        assert await store.upload_state("r") == body
    await store.save_upload_state("r", None)
    assert await store.upload_state("r") is None


# --- secrets and presence ---------------------------------------------------------------------------------------------
async def test_secrets_are_replaced_and_wiped(store: stores.Store) -> None:
    """The newest secrets are kept; after wiping there are none."""
    await _open(store)
    fresh = requests.Secrets(user_sig="new")
    async with store.transaction() as tx:
        await tx.put_secrets(TASK, fresh)
        assert await tx.secrets(TASK) == fresh
        await tx.wipe_secrets(TASK)
        assert await tx.secrets(TASK) == requests.Secrets()
        assert await tx.secrets(OTHER) == requests.Secrets()


async def test_presence_is_per_room_and_expires(store: stores.Store, clock: engines.Clock) -> None:
    """Who publishes what is known per kind of room, for 24 h, until the room is gone."""
    twin = requests.Room(sdk_app_id=ROOM.sdk_app_id, str_room_id="88")
    async with store.transaction() as tx:
        blank = await tx.presence(ROOM, "al")
        await tx.put_presence(ROOM, "al", blank | {"audio": True, "audio_ms": 7})
        await tx.put_presence(ROOM, "bo", blank | {"video": True, "audio": True})
        await tx.put_presence(ROOM, "cy", blank | {"left_ms": 9})
        await tx.put_presence(twin, "al", blank | {"video": True})
        assert await tx.presence(ROOM, "al") == blank | {"audio": True, "audio_ms": 7}
        assert await tx.publishers(ROOM) == [("al", ("audio",)), ("bo", ("audio", "video"))]
        assert await tx.publishers(twin) == [("al", ("video",))]
    clock.advance(12 * model.HOUR)
    async with store.transaction() as tx:
        await tx.put_presence(ROOM, "al", blank | {"audio": True})
    clock.advance(13 * model.HOUR)
    async with store.transaction() as tx:
        assert await tx.publishers(ROOM) == [("al", ("audio",))]
        assert await tx.publishers(twin) == []


async def test_an_application_is_known_after_its_first_callback(store: stores.Store) -> None:
    """Callbacks come for an application once one was seen, and for no other."""
    async with store.transaction() as tx:
        assert not await tx.callbacks_come(7)
        await tx.note_callback(7)
        await tx.note_callback(7)
        assert await tx.callbacks_come(7)
        assert not await tx.callbacks_come(8)


# --- the whole file ---------------------------------------------------------------------------------------------------
async def test_everything_is_there_after_reopening(store: stores.Store, database: engines.Database, clock: engines.Clock) -> None:
    """A database that is closed and opened again holds all that was committed, and goes on numbering."""
    owner = f"{TASK}/al/1"
    await _open(store, _recording())
    async with store.transaction() as tx:
        await tx.claim("e1")
        await tx.arm(TASK, "idle", clock())
        await tx.send("command", _event(), TASK)
        await tx.journal(TASK, TASK, _event(), note="x")
    await store.take_lease(owner, 1, "n", LEASE_MS)
    await store.register_segment(owner, 1, "n")
    (before,) = await store.unsent()
    await store.stop()
    again = database.open(clock, engines.ids("03"))
    try:
        await again.start()
        await again.ping()
        async with again.transaction() as tx:
            assert await tx.claim("e1") == ""
            assert await tx.session(TASK) is not None
            assert await tx.secrets(TASK) == SECRETS
        assert await again.renew_lease(owner, 1, "n", LEASE_MS)
        assert [s.epoch for s in await again.segments(owner)] == [1]
        assert [d.kind for d in await again.due_deadlines()] == ["idle"]
        assert await again.unsent() == [before]
        assert [x.note for x in await reading.Reading(again._engine).timeline(TASK)] == ["x"]
    finally:
        await again.stop()


async def test_stopping_twice_is_safe(store: stores.Store) -> None:
    """A store may be stopped again."""
    await store.stop()
    await store.stop()


async def test_writers_do_not_get_in_each_other_s_way(store: stores.Store) -> None:
    """Many decisions, renewals and reads at once all succeed: nobody meets a locked database."""
    await _open(store, _recording())
    owner = f"{TASK}/al/1"
    assert await store.take_lease(owner, 1, "n", LEASE_MS)

    async def decide(n: int) -> None:
        async def handler(tx: transaction.Transaction, event: codec.Event) -> None:
            await tx.session(TASK)
            await tx.journal(TASK, TASK, event, note=str(n))

        await template.decide(store, _event(f"e{n}"), handler)  # type: ignore[arg-type]

    steps: list[Callable[[], Awaitable[Any]]] = []
    for n in range(20):
        steps += [lambda n=n: decide(n), lambda: store.renew_lease(owner, 1, "n", LEASE_MS), store.unsent]
    await asyncio.gather(*(step() for step in steps))
    assert len(await reading.Reading(store._engine).timeline(TASK)) == 20
