"""Every history ends well: any events, in any order, repeated, late or never, with any crash at any time.

A history is a list of numbers that Hypothesis shrinks; the world (tests/world.py) plays it against a real store and the real
deciding handlers, then lets every deadline pass. The invariants during and after it are written here by hand, independent of the
machines.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import engines, state_chart, world

COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p", "SecretId": "i", "SecretKey": "k"}
SHAPES: tuple[dict[str, Any], ...] = (
    {"Mode": "00"},
    {"Mode": "02", "Callback": "https://example.com/done"},
    {"Mode": "02", "SubscribeUserIds": ["al", "bo"], "Callback": "https://example.com/done"},
    {"Mode": "01", "UnSubscribeUserIds": ["bo"]},
)
PASSES_MS = (500, 1_000, 2_000, 6_000, 12_000, 31_000, 301_000, 10 * 60_000)

World = world.World
Step = Callable[[World, int, int], Awaitable[None]]
History = list[tuple[int, int, int]]


# --- steps of a history ----------------------------------------------------------------------------------------------
async def start(w: World, a: int, b: int) -> None:
    """A start; for a key that is Open already, a repeat."""
    room = world.ROOMS[a % 2]
    await w.ask("start", SdkAppId=world.APP, **room, UserId=world.REC, UserSig="s", CosConfig=COS, **SHAPES[b % len(SHAPES)])


async def stop(w: World, a: int, _: int) -> None:
    """A stop by key."""
    await w.ask("stop", SdkAppId=world.APP, **world.ROOMS[a % 2], UserId=world.REC)


async def publish(w: World, a: int, b: int) -> None:
    """A speaker switches a track on."""
    w.callback("user-publishing", b % 2, UserId=world.SPEAKERS[a % 2], Kind=("audio", "video")[a // 2 % 2])


async def unpublish(w: World, a: int, b: int) -> None:
    """A speaker switches a track off."""
    w.callback("user-unpublished", b % 2, UserId=world.SPEAKERS[a % 2], Kind=("audio", "video")[a // 2 % 2])


async def leave(w: World, a: int, b: int) -> None:
    """A speaker leaves."""
    w.callback("user-left", b % 2, UserId=world.SPEAKERS[a % 2], Reason=1)


async def remove(w: World, a: int, b: int) -> None:
    """The recording user leaves, for any of Tencent's reasons."""
    w.callback("user-left", b % 2, UserId=world.REC, Reason=1 + a % 5)


async def dismiss(w: World, _: int, b: int) -> None:
    """The room is dismissed."""
    w.callback("room-destroyed", b % 2)


async def deliver(w: World, a: int, b: int) -> None:
    """Some mail arrives, out of order."""
    for _ in range(1 + b):
        await w.deliver(a)


async def lose(w: World, a: int, _: int) -> None:
    """A callback is lost."""
    w.lose(a)


async def obey(w: World, a: int, b: int) -> None:
    """Some commands reach workers."""
    await w.relay()
    for _ in range(1 + a):
        await w.obey(0 if b % 2 else a, world.NODES[b % 2])


async def flow(w: World, a: int, _: int) -> None:
    """All pending events and commands arrive, in order, and captures bring media."""
    for _ in range(2):
        await w.relay()
        while w.commands:
            await w.obey(0, world.NODES[a % 2])
        while w.mail:
            await w.deliver(0)
    for run in list(w.runs.values()):
        await w.media(run)


async def media(w: World, a: int, _: int) -> None:
    """Media arrives in a capture."""
    if run := w.run(a):
        await w.media(run)


async def end(w: World, a: int, b: int) -> None:
    """A job ends in one of its ways."""
    if run := w.run(a):
        ends = world.CAPTURE_ENDS if run.type == "start-capture" else ("ok", "ok", "again", "never")
        await w.end(run, ends[b % len(ends)])


async def depart(w: World, a: int, b: int) -> None:
    """A speaker leaves, the stream ends, and LINGER passes, or nearly."""
    await leave(w, a, 0)
    await flow(w, 0, 0)
    for run in list(w.runs.values()):
        if run.type == "start-capture":
            await w.end(run, "eof")
    await flow(w, 0, 0)
    await w.pass_time((29_000, 31_000)[b % 2])
    await flow(w, 0, 0)


async def crash(w: World, _: int, b: int) -> None:
    """All nodes die with their work, and their leases expire."""
    await w.relay()
    while w.commands:
        await w.obey(0, world.NODES[b % 2])
    for node in world.NODES:
        w.die(node)
    await w.pass_time(31_000)
    await flow(w, 0, 0)


async def freeze(w: World, a: int, _: int) -> None:
    """A worker freezes: its lease is not renewed, its job not ended."""
    if run := w.run(a):
        run.frozen = True


async def die(w: World, a: int, _: int) -> None:
    """A node is killed."""
    w.die(world.NODES[a % 2])


async def pass_time(w: World, a: int, _: int) -> None:
    """Time passes."""
    await w.pass_time(PASSES_MS[a % len(PASSES_MS)])


async def be_away(w: World, a: int, _: int) -> None:
    """The service is down for a while."""
    await w.be_away(PASSES_MS[a % len(PASSES_MS)])


async def rest(w: World, _: int, __: int) -> None:
    """No event arrives for so long that everything ends; the history continues after that."""
    await w.come_to_rest()


async def replay(w: World, a: int, b: int) -> None:
    """A session, or one recording of it, is replayed from some stage."""
    sessions = [task_id for (task_id,) in w.rows("SELECT task_id FROM sessions ORDER BY task_id")]
    if sessions:
        stage = ({}, {"From": "joining"}, {"From": "transcoding"}, {"From": "uploading"})[b % 4]
        speaker = {"Speaker": world.SPEAKERS[a % 2]} if b >= 4 else {}
        await w.ask("replay", TaskId=sessions[a % len(sessions)], UserSig="fresh", **stage, **speaker)


STEPS: tuple[Step, ...] = (
    *(flow, flow, flow, flow, flow, publish, publish, publish, deliver, deliver, deliver, obey, obey, media, media),
    *(end, end, end, pass_time, pass_time, pass_time, leave, leave, unpublish, replay, replay, freeze, die),
    *(start, stop, dismiss, remove, lose, be_away, rest, depart, crash),
)


def _history(seed: int) -> History:
    """A history with equally likely steps: Hypothesis' own lists are more monotonous."""
    chance = random.Random(seed)
    return [(chance.randrange(len(STEPS)), chance.randrange(8), chance.randrange(8)) for _ in range(chance.randint(20, 50))]


SHRINKING = st.lists(st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 7), st.integers(0, 7)), min_size=20, max_size=45)
SEEDED = st.integers(0, 2**32).map(_history)
HISTORIES = SEEDED | SEEDED | SHRINKING


# --- invariants during a history -------------------------------------------------------------------------------------
class Watch:
    """Checks the database after every step."""

    def __init__(self) -> None:
        self.epochs: dict[str, int] = {}
        self.revisions: dict[str, int] = {}

    def look(self, w: World) -> None:
        """Epochs and revisions only grow; one job, one Open session per key, one pending delivery; no recording is dropped."""
        for id_, epoch in w.rows("SELECT id, epoch FROM recordings"):
            assert epoch >= self.epochs.get(id_, 0), f"the epoch of {id_} went back"
            self.epochs[id_] = epoch
        for task_id, revision in w.rows("SELECT task_id, revision FROM sessions"):
            assert revision >= self.revisions.get(task_id, 0)
            self.revisions[task_id] = revision
        twofold = w.rows("SELECT owner FROM jobs WHERE state <> 'ended' GROUP BY owner HAVING count(*) > 1")
        assert twofold == [], "two jobs at once"
        keys = "SELECT room FROM sessions WHERE state = 'Open' GROUP BY sdk_app_id, room_kind, room, user_id HAVING count(*) > 1"
        assert w.rows(keys) == [], "a key is Open twice"
        pending = "SELECT task_id FROM callbacks WHERE state = 'pending' GROUP BY task_id HAVING count(*) > 1"
        assert w.rows(pending) == [], "a newer revision cancels older callbacks"
        self._nobody_is_forgotten(w)

    def _nobody_is_forgotten(self, w: World) -> None:
        capturing = "SELECT id, epoch, present, stop_requested FROM recordings WHERE state IN ('Joining', 'Recording')"
        jobs = dict(w.rows("SELECT owner, state FROM jobs WHERE state <> 'ended'"))
        deadlines = set(w.rows("SELECT owner, kind FROM deadlines"))
        asked = {(b["subject"], b["data"]["Epoch"]) for b in _bodies(w, "stop-capture")}
        for id_, epoch, present, stop_requested in w.rows(capturing):
            if stop_requested:
                assert jobs.get(id_) == "leased", f"{id_} waits for nobody"
                assert (id_, epoch) in asked, f"the worker of {id_} was not asked to stop"
            elif present is not None and not present and id_ not in jobs:
                assert (id_, "linger") in deadlines, f"{id_} is not tried one last time"
            else:
                assert id_ in jobs, f"{id_} is not pulled"
        for id_, state in jobs.items():
            assert state != "waiting" or (id_, "retry") in deadlines, f"{id_} waits for ever"


def _bodies(w: World, type_: str) -> list[dict[str, Any]]:
    return [json.loads(body) for (body,) in w.rows(f"SELECT body FROM outbox WHERE type = '{type_}'")]


# --- invariants at the end -------------------------------------------------------------------------------------------
def check_the_end(w: World) -> None:
    """Everything has ended, once, and the results match the true course."""
    _nothing_is_left(w)
    _the_journal_follows_the_chart(w)
    _results_are_whole(w)
    _callbacks_are_over(w)
    _outcomes_are_true(w)


def _nothing_is_left(w: World) -> None:
    assert {s for (s,) in w.rows("SELECT state FROM sessions")} <= {"Finished"}
    assert {s for (s,) in w.rows("SELECT state FROM recordings")} <= {"Done", "Failed"}
    assert w.rows("SELECT owner, epoch FROM jobs WHERE state <> 'ended'") == []
    kept = {owner for (owner,) in w.rows("SELECT owner FROM deadlines WHERE kind = 'keep'")}
    assert kept == {i for (i,) in w.rows("SELECT id FROM recordings WHERE state = 'Failed'")}
    assert w.rows("SELECT owner, kind FROM deadlines WHERE kind <> 'keep'") == []


def _the_journal_follows_the_chart(w: World) -> None:
    lines = w.rows("SELECT owner, event_type, from_state, to_state FROM journal ORDER BY seq")
    moves: dict[str, list[tuple[str, str]]] = {}
    for owner, type_, source, target in lines:
        if source == target or "#" in owner:
            continue
        assert state_chart.may(owner, type_, source, target), f"{owner} went from {source} to {target} by {type_}"
        moves.setdefault(owner, []).append((source, target))
    for owner, chain in moves.items():
        for (_, reached), (left, _) in itertools.pairwise(chain):
            assert reached == left, f"{owner}: {chain}"
    ends = dict(w.rows("SELECT id, state FROM recordings")) | dict(w.rows("SELECT task_id, state FROM sessions"))
    assert {owner: chain[-1][1] for owner, chain in moves.items()} == ends


def _results_are_whole(w: World) -> None:
    bodies: dict[str, list[Any]] = {}
    for task_id, revision, body in w.rows("SELECT task_id, revision, body FROM results ORDER BY task_id, revision"):
        bodies.setdefault(task_id, []).append(json.loads(body))
        assert bodies[task_id][-1]["Revision"] == revision == len(bodies[task_id]), "revisions have no gaps"
    sent: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for event in w.results:
        if event.type == "session-finished":
            key = (event.data["TaskId"], event.data["Revision"])
            sent.setdefault(key, set()).add((event.id, json.dumps(event.data)))
    assert {key: len(said) for key, said in sent.items()} == {
        (task_id, n): 1 for task_id, all_ in bodies.items() for n in range(1, len(all_) + 1)
    }, "each revision went out once, under one id, with one body"
    for task_id, reason, revision in w.rows("SELECT task_id, end_reason, revision FROM sessions"):
        last = bodies[task_id][-1]
        assert (last["EndReason"], last["Revision"]) == (reason, revision)
        entries = w.rows(f"SELECT speaker, code, url, delivered FROM recordings WHERE task_id = '{task_id}' AND NOT awaited")
        wanted = []
        for speaker, code, url, delivered in entries:
            # What was delivered before a replay stays; a replay adds a file or nothing.
            before = [(speaker, file["Code"], file["Url"]) for file in json.loads(delivered or "[]")]
            wanted += [entry for entry in before if entry[2] != url] + ([(speaker, code, url)] if url or not before else [])
        assert sorted((f["UserId"], f["Code"], f["RecordFile"]) for f in last["Files"]) == sorted(wanted)
        reported = [{f["RecordFile"] for f in body["Files"] if f["Status"]} for body in bodies[task_id]]
        assert all(older <= newer for older, newer in itertools.pairwise(reported)), "a revision withdraws a delivered file"
        for file in itertools.chain(*(b["Files"] for b in bodies[task_id])):
            assert (file["Message"], file["Status"]) == state_chart.CODES[file["Code"]]


def _callbacks_are_over(w: World) -> None:
    found = w.rows("SELECT task_id, revision, state FROM callbacks ORDER BY task_id, revision")
    asked = {i for i, r in w.rows("SELECT task_id, request FROM sessions") if json.loads(r)["callback"]}
    results = {(i, r) for i, r in w.rows("SELECT task_id, revision FROM results") if i in asked}
    assert {(i, r) for i, r, _ in found} == results
    last = {task_id: state for task_id, _, state in found}
    assert set(last.values()) <= {"delivered", "failed"}, "only a newer revision cancels"
    assert {state for _, _, state in found} <= {"delivered", "failed", "cancelled"}


def _outcomes_are_true(w: World) -> None:
    segments = dict(w.rows("SELECT recording_id, sum(media_ms) FROM segments GROUP BY recording_id"))
    for id_, code, attempt, awaited in w.rows("SELECT id, code, attempt, awaited FROM recordings"):
        true, held_ms = w.of(id_), segments.get(id_) or 0
        if code == "FailedRecording":
            assert not held_ms or attempt > 1, f"{id_}: media is on disk, and it is called 录制失败"
        else:
            assert held_ms, f"{id_} is {code} without any media"
        assert not (awaited and held_ms), f"{id_} was seen, and leaves no entry"
        assert code != "Success" or true.stored, f"{id_} is Done without an object"
        assert code != "FailedTranscode" or true.transcode_failures
        assert code != "FailedCosWrite" or true.upload_refused or true.upload_failures
    ended = {reason for (reason,) in w.rows("SELECT end_reason FROM sessions")}
    said = {e.type for e in w.delivered}
    assert "Stopped" not in ended or "stop" in said
    assert "RoomDestroyed" not in ended or "room-destroyed" in said
    assert "UserRemoved" not in ended or "user-left" in said


# --- playing ---------------------------------------------------------------------------------------------------------
async def _play(history: History, engine: str, *, twice: bool) -> dict[str, Any]:
    """Play one history to its end in a world of its own, check it after every step, and return its end."""
    with engines.fast_folder() as folder:
        clock = engines.Clock()
        database = engines.fresh(engine, Path(folder))
        store = database.open(clock)
        try:
            w = World(database=database, store=store, clock=clock, seed=len(history), twice=twice)
            await _live(w, history)
            await w.come_to_rest()
            check_the_end(w)
            return _ends(w)
        finally:
            await store.stop()


LOOKED_AT = {"postgresql": 8}  # every how many steps


async def _live(w: World, history: History) -> None:
    watch, chance = Watch(), random.Random(len(history))
    await start(w, 0, history[0][2])
    for kind in (0, 2):
        await publish(w, kind, 0)
    await flow(w, 0, 0)
    for number, (step, a, b) in enumerate(history):
        await STEPS[step](w, a, b)
        if w.twice:
            await w.again(chance.randrange(1_000))
        if number % LOOKED_AT.get(w.database.engine, 1) == 0:
            watch.look(w)


def _ends(w: World) -> dict[str, Any]:
    queries = {
        "sessions": "SELECT task_id, state, end_reason, revision FROM sessions ORDER BY task_id",
        "recordings": "SELECT id, state, code, detail, url, attempt, epoch, media_ms FROM recordings ORDER BY id",
        "results": "SELECT task_id, revision, at_ms, body FROM results ORDER BY task_id, revision",
        "callbacks": "SELECT task_id, revision, state FROM callbacks ORDER BY task_id, revision",
    }
    return {name: [tuple(row) for row in w.rows(query)] for name, query in queries.items()}


ONE_IN = {"sqlite": 12, "postgresql": 32}  # the rules are the same on both, and tests/simulated plays very many more


@pytest.mark.parametrize("engine", engines.NAMES)
def test_every_history_ends_in_one_result(engine: str) -> None:
    """Any history ends with all recordings final and one result per revision; with every event repeated it ends the same way."""

    @settings(max_examples=settings.default.max_examples // ONE_IN[engine])
    @given(history=HISTORIES)
    def played_once_and_twice(history: History) -> None:
        once = asyncio.run(_play(history, engine, twice=False))
        assert asyncio.run(_play(history, engine, twice=True)) == once

    played_once_and_twice()
