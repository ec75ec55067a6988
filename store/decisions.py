"""Decisions: claim the event, load, decide, write, in one transaction.

Rules: an event's claim, writes, journal lines and messages commit together or not at all. Decisions that wait together share one
commit; a decision that fails has no effect on the others, and one whose write fails is repeated alone.
Decisions that wait together form a batch of chains. A chain holds the decisions of one session, in their order: its data is
loaded once, a later decision reads it as the earlier ones changed it, and their changes are written as one. No two chains touch
the same session, room or API key. A program that is older than the database allows decides nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from events import codec, requests
from machine import changes, encryption, errors, failpoints, internal_events, job_key, ports, supervised_task
from store import connections, database_time, outages, saving, schema, side_by_side, snapshot, statements, unsaved
from store.sql import Step, Steps

log = structlog.get_logger()

MAX_DECISIONS = 20
# So many conflicts are repeated at once; after that the pause grows by PAUSE_S each time.
AT_ONCE = 4
PAUSE_S = 0.1
MAX_BATCH = 64
# So many decisions of one session: the batch has places for others.
MAX_CHAIN = 32
BATCHES = 2
MAX_READS = 50

Value = TypeVar("Value")
Outcome = ports.Answer | Exception


@dataclass(slots=True, eq=False)
class _Work:
    """One decision that waits."""

    event: codec.Event
    plan: ports.Plan
    decide: ports.Decide
    lane: object
    # After a failed transaction: decided in a transaction of its own, not before `due_s` (the loop's time).
    alone: bool = False
    attempts: int = 0
    due_s: float = 0.0
    done: asyncio.Future[ports.Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True, eq=False)
class _Chain:
    """Decisions of one lane in one transaction: those that are left, what was loaded for them, and the changes so far."""

    works: deque[_Work] = field(default_factory=deque)
    values: dict[ports.Need, Any] = field(default_factory=dict)
    made: changes.Changes | None = None


class _Deferred(Exception):
    """Another chain of the batch touches the same rows, or the decision needs what is not written yet."""


class Decisions:
    """The decisions of one database (machine.ports.Decisions). `changed` is called after each commit."""

    def __init__(
        self,
        database: connections.Connections,
        *,
        time: database_time.DatabaseTime,
        keyring: encryption.Keyring,
        changed: Callable[[], None],
    ) -> None:
        self._database = database
        self._time = time
        self._keyring = keyring
        self._changed = changed
        self._locks = database.engine.dialect.name == "postgresql"
        self._waiting: list[_Work] = []
        self._lanes: set[object] = set()
        # Counted apart from the tasks: a task that has ended leaves its set only after the callers that it woke.
        self._running = 0
        self._batches: set[asyncio.Task[None]] = set()

    async def decide(self, event: codec.Event, plan: ports.Plan, decide: ports.Decide) -> ports.Answer:
        """Decide an event once. A repeat gets the first answer and changes nothing. `plan` is loaded first, all else on demand.

        Raises the errors of `decide`; then nothing is written, not even the claim. Raises KeyReused for another request under
        the id of an earlier one, and Conflict after `MAX_DECISIONS` conflicts; the caller then has the message retried."""
        work = _Work(event, plan, decide, _lane(event))
        self._waiting.append(work)
        self._begin_batch()
        answer = await work.done
        failpoints.hit("decision.commit.after")
        return answer

    async def answered(self, event_id: str, fingerprint: str = "") -> tuple[ports.Answer, int] | None:
        """The answer of an event and its time (Unix ms); None if the event was not decided yet. Raises KeyReused for a request
        whose fingerprint is not the one of the event."""
        found = await self._database.fetch(statements.ANSWERED, {"at_event_id": event_id})
        if found and not _is_same(found[0]["fingerprint"], fingerprint):
            raise errors.KeyReused
        return (json.loads(found[0]["answer"] or "{}"), int(found[0]["at_ms"])) if found else None

    async def read(self, query: Callable[[ports.Snapshot], Value]) -> Value:
        """Read data as a decision would, and release it at once."""

        def steps() -> Steps[Value]:
            now_ms = yield from self._time.read()
            seen = snapshot.LoadedSnapshot(now_ms)
            return (yield from _until_loaded(snapshot.Loader(self._keyring, now_ms, locks=False), seen, query))

        return await self._database.run(steps)

    async def write(self, written: changes.Changes) -> None:
        """Write changes that no event caused. Raises Conflict."""

        def steps() -> Steps[None]:
            now_ms = yield from self._time.read()
            yield from saving.Saver(self._keyring, now_ms).save([written])

        await self._database.run(steps)
        self._changed()

    # --- batches ----------------------------------------------------------------------------------------------------------
    async def stop(self) -> None:
        """Wait for the running batches. Idempotent."""
        await asyncio.gather(*self._batches, return_exceptions=True)

    def _begin_batch(self) -> None:
        if self._running < BATCHES:
            self._running += 1
            task = asyncio.create_task(self._run_batches(), name="decisions")
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _run_batches(self) -> None:
        try:
            while batch := self._next_batch():
                lanes = {work.lane for work in batch}
                self._lanes |= lanes
                try:
                    await self._run_batch(batch)
                finally:
                    self._lanes -= lanes
        finally:
            self._running -= 1

    def _next_batch(self) -> list[_Work]:
        """Take the oldest decisions of lanes that no running batch touches. Whatever waits holds up its lane."""
        taken: list[_Work] = []
        held, lengths, ids, left = set(self._lanes), Counter[object](), set(), []
        now_s = asyncio.get_running_loop().time()
        for work in self._waiting:
            if work.done.done():
                continue
            full = len(taken) >= MAX_BATCH or (bool(taken) and (work.alone or taken[0].alone)) or lengths[work.lane] >= MAX_CHAIN
            if not full and work.due_s <= now_s and work.lane not in held and work.event.inbox_id not in ids:
                taken.append(work)
                lengths[work.lane] += 1
                ids.add(work.event.inbox_id)
            else:
                left.append(work)
                held.add(work.lane)
        self._waiting = left
        return taken

    async def _run_batch(self, batch: list[_Work]) -> None:
        try:
            outcomes: Sequence[Outcome] = await self._database.run(lambda: self._steps(batch))
        except Exception as error:  # noqa: BLE001 - not swallowed: the callers get it, or each is decided alone and meets its own
            self._repeat(batch, error)
            return
        # Here, because a caller may be gone.
        self._changed()
        deferred = []
        for work, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, _Deferred):
                deferred.append(work)
            else:
                _settle(work.done, outcome)
        self._waiting = deferred + self._waiting

    def _repeat(self, batch: list[_Work], error: Exception) -> None:
        """Put decisions back whose transaction failed: each alone, and one that conflicts again and again after a growing pause,
        in which others run."""
        again = []
        for work in batch:
            conflicts = isinstance(error, errors.Conflict) and work.attempts + 1 < MAX_DECISIONS
            # A damaged page of one session fails a batch; the other sessions need other pages.
            away = isinstance(error, errors.DatabaseUnavailable) and not isinstance(error, outages.Damaged)
            if away or (len(batch) == 1 and not conflicts):
                _settle(work.done, error)
                continue
            work.alone = True
            if len(batch) == 1:
                work.attempts += 1
                self._pause(work)
            again.append(work)
        if again:
            about = {"event_id": again[0].event.id, "event_type": again[0].event.type} if len(again) == 1 else {}
            log.info("decisions.repeated", decisions=len(again), attempts=again[0].attempts, reason=str(error), **about)
        self._waiting = again + self._waiting

    def _pause(self, work: _Work) -> None:
        loop = asyncio.get_running_loop()
        pause_s = supervised_task.jittered_s(PAUSE_S * max(0, work.attempts - AT_ONCE))
        if pause_s:
            work.due_s = loop.time() + pause_s
            loop.call_later(pause_s, self._begin_batch)

    # --- one transaction --------------------------------------------------------------------------------------------------
    def _steps(self, batch: Sequence[_Work]) -> Steps[list[Outcome]]:
        """Claim, load, decide and write; the outcome of each decision."""
        failpoints.hit("inbox.claim.before")
        outcomes, now_ms = yield from _claim(batch, self._time.parameters())
        new = [work for work in batch if work.event.inbox_id not in outcomes]
        failpoints.hit("inbox.claim.after")
        chains, ignored = _chains(new), set[str]()
        yield from self._decide(chains, outcomes, ignored, now_ms)
        written = [chain.made for chain in chains if chain.made is not None]
        yield from saving.Saver(self._keyring, now_ms).save(written)
        yield from _answer(new, outcomes, ignored)
        failpoints.hit("decision.commit.before")
        return [outcomes[work.event.inbox_id] for work in batch]

    def _decide(self, chains: Sequence[_Chain], outcomes: dict[str, Outcome], ignored: set[str], now_ms: int) -> Steps[None]:
        """Decide the first events of all chains together, then the second ones, and so on."""
        loader = snapshot.Loader(self._keyring, now_ms, locks=self._locks)
        owners: dict[Any, _Chain] = {}
        going = chains
        while going:
            works = [chain.works.popleft() for chain in going]
            seen = [snapshot.LoadedSnapshot(now_ms, chain.values, chain.made) for chain in going]
            results = yield from _decide_all(loader, seen, works)
            for chain, work, each, result in zip(going, works, seen, results, strict=True):
                touched = each.touched()
                if isinstance(result, unsaved.Unknown) or any(owners.get(key, chain) is not chain for key in touched):
                    outcomes |= {deferred.event.inbox_id: _Deferred() for deferred in (work, *chain.works)}
                    chain.works.clear()
                    continue
                owners |= dict.fromkeys(touched, chain)
                if isinstance(result, Exception):
                    outcomes[work.event.inbox_id] = result
                    continue
                outcomes[work.event.inbox_id], made = result
                if not made.moves and work.event.type in internal_events.TYPES:
                    ignored.add(work.event.inbox_id)
                if chain.made is None:
                    chain.made = made
                else:
                    chain.made.add(made)
            going = [chain for chain in going if chain.works]


def _chains(works: Sequence[_Work]) -> list[_Chain]:
    chains: dict[object, _Chain] = {}
    for work in works:
        chains.setdefault(work.lane, _Chain()).works.append(work)
    return list(chains.values())


def _claim(batch: Sequence[_Work], time: dict[str, int | None]) -> Steps[tuple[dict[str, Outcome], int]]:
    """Claim the events; returns the first answers of those that were decided before, and the database's time."""
    prints = {work.event.inbox_id: _fingerprint(work.event) for work in batch}
    ids = list(prints)
    claimed = yield Step(statements.CLAIM, [{"event_id": id_, "fingerprint": prints[id_]} | time for id_ in sorted(ids)])
    if claimed:
        side_by_side.check(claimed[0]["oldest"], schema.HEAD)
    new = {row["event_id"] for row in claimed}
    now_ms = max((int(row["at_ms"]) for row in claimed), default=0)
    repeated = [id_ for id_ in ids if id_ not in new]
    if not repeated:
        return {}, now_ms
    found = yield Step(statements.ANSWERED, [{"at_event_id": id_} for id_ in repeated])
    known: dict[str, Outcome] = {
        row["event_id"]: json.loads(row["answer"] or "{}")
        if _is_same(row["fingerprint"], prints[row["event_id"]])
        else errors.KeyReused()
        for row in found
    }
    if len(known) < len(repeated):
        raise errors.Conflict("another transaction claimed the event's id and rolled back")
    log.info("decision.repeated", event_ids=repeated)
    return known, now_ms


def _fingerprint(event: codec.Event) -> str:
    return requests.fingerprint(event.type, event.inbox_id, event.data)


def _is_same(known: str, fingerprint: str) -> bool:
    """Whether two requests are the same, as far as both are known: an older node keeps no fingerprint."""
    return not known or not fingerprint or known == fingerprint


def _decide_all(
    loader: snapshot.Loader, seen: Sequence[snapshot.LoadedSnapshot], works: Sequence[_Work]
) -> Steps[list[tuple[ports.Answer, changes.Changes] | Exception]]:
    """Load and decide: whatever decisions miss is loaded together, and these are repeated."""
    yield from _load_planned(loader, seen, works)
    results: dict[int, tuple[ports.Answer, changes.Changes] | Exception] = {}
    left = list(range(len(works)))
    missing: list[tuple[snapshot.LoadedSnapshot, ports.Need]] = []
    for _ in range(MAX_READS):
        missing = []
        for index in left:
            try:
                results[index] = works[index].decide(seen[index].view)
            except ports.NotLoaded as request:
                missing.append((seen[index], request.need))
            except Exception as error:  # noqa: BLE001 - not swallowed: the caller gets it, and the others are decided
                results[index] = error
        if not missing:
            return [results[index] for index in range(len(works))]
        yield from loader.load(missing)
        left = [index for index in left if index not in results]
    asked = {need[0] for _, need in missing}
    event = works[left[0]].event
    raise RuntimeError(
        f"{event.type} {event.id} asked {MAX_READS} times for more data, at last for {sorted(asked)}: {event.subject}"
    )


def _load_planned(loader: snapshot.Loader, seen: Sequence[snapshot.LoadedSnapshot], works: Sequence[_Work]) -> Steps[None]:
    """Load what the plans name; the same stage of all plans together."""
    plans = [(each, work.event, work.plan(each.view)) for each, work in zip(seen, works, strict=True)]
    while plans:
        stages = [(each, event, plan, _next_stage(event, plan)) for each, event, plan in plans]
        yield from loader.load((each, need) for each, _, _, needs in stages for need in needs or ())
        plans = [(each, event, plan) for each, event, plan, needs in stages if needs is not None]


def _next_stage(event: codec.Event, plan: Iterator[Sequence[ports.Need]]) -> Sequence[ports.Need] | None:
    """The next stage of a plan; None after the last. A plan that fails must not fail the batch: its handler meets the same error,
    or loads on demand."""
    try:
        return next(plan, None)
    except Exception:
        log.exception("decision.plan_failed", event_id=event.id, event_type=event.type)
        return None


def _until_loaded(
    loader: snapshot.Loader, seen: snapshot.LoadedSnapshot, query: Callable[[ports.Snapshot], Value]
) -> Steps[Value]:
    while True:
        try:
            return query(seen.view)
        except ports.NotLoaded as request:
            yield from loader.load([(seen, request.need)])


def _answer(works: Sequence[_Work], outcomes: dict[str, Outcome], ignored: Set[str]) -> Steps[None]:
    """Save the answers for repeats, and give up the claims of the decisions that failed and of ignored outcomes: after a restore
    of the database, their epochs and ids come again."""
    failed, answered = [], []
    for id_ in (work.event.inbox_id for work in works):
        outcome = outcomes[id_]
        if isinstance(outcome, Exception) or id_ in ignored:
            failed.append({"at_event_id": id_})
        elif outcome:
            answered.append({"at_event_id": id_, "answer": json.dumps(outcome, ensure_ascii=False)})
    if failed:
        yield Step(statements.UNCLAIM, failed)
    if answered:
        yield Step(statements.SET_ANSWER, answered)


def _settle(done: asyncio.Future[ports.Answer], outcome: Outcome) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _lane(event: codec.Event) -> object:
    """The session or room that an event is about; of one lane, one decision is made at a time."""
    data = event.data
    if "TaskId" in data:
        return data["TaskId"]
    if "Owner" in data:
        try:
            return job_key.parse(data["Owner"]).task_id
        except ValueError:
            return data["Owner"]
    return data.get("SdkAppId"), data.get("RoomId"), data.get("StrRoomId")
