"""A worker's capacity for captures."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from machine import errors, nodes
from tests import waiting
from tests.work_doubles import measured
from worker import capacity, cpu_usage, spool_fault


class Bus:
    """Records which commands are paused, and of which of these the node's own go on."""

    def __init__(self) -> None:
        self.paused: set[str] = set()
        self.own: set[str] = set()

    @property
    def wanted(self) -> bool:
        """Whether captures are wanted."""
        return "start-capture" not in self.paused

    async def pause(self, command_type: str, but_own: bool = False) -> None:
        """As the bus does."""
        self.paused.add(command_type)
        (self.own.add if but_own else self.own.discard)(command_type)

    async def resume(self, command_type: str) -> None:
        """As the bus does."""
        self.paused.discard(command_type)


class Captures:
    """Captures that count only after they took their lease, which lets others run."""

    def __init__(self) -> None:
        self.running = 0
        self.others: Counter[str] = Counter()

    async def begin(self) -> None:
        """Take the lease."""
        barrier = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(barrier.set_result, None)
        await barrier
        self.running += 1


class Machine:
    """A simulated machine: CPU seconds by process, and the time of each reading."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.used_s = {cpu_usage.OWN: 0.0}

    def pass_time(self, live: cpu_usage.LiveCpu, seconds: int, **shares: float) -> None:
        """Let this many seconds pass, in which each process (`p7`) uses its share of one CPU; read at the end of each."""
        for _ in range(seconds):
            self.now_s += 1
            for name, share in shares.items():
                pid = int(name[1:])
                self.used_s[pid] = self.used_s.get(pid, 0.0) + share
            live.sample()


async def probed() -> str:
    """The probe of a spool that works."""
    return ""


def limited(
    bus: Bus,
    captures: Captures,
    *,
    free_bytes: int = 100,
    live: cpu_usage.LiveCpu | None = None,
    fault: spool_fault.SpoolFault | None = None,
    cordon: list[str] | None = None,
    hand_over: Callable[[], object] = lambda: None,
    follows: Callable[[], bool] = lambda: False,
) -> capacity.Capacity:
    """A capacity of two captures, half of the CPUs, and 10 bytes, on a machine with a load of 3 per core."""
    limits = capacity.CaptureLimits(captures=2, cpu=0.5, load=0, free_bytes=lambda: 10)
    idle = cpu_usage.LiveCpu(dict, cpus=1)
    return capacity.Capacity(
        limits,
        slots={"start-transcode": 2, capacity.FOLLOWED: 3, "start-upload": 3},
        pause=bus.pause,
        resume=bus.resume,
        running=lambda kind: captures.running if kind == "capture" else captures.others[kind],
        follows=follows,
        freed=asyncio.Event(),
        live=live or idle,
        measure=measured,
        free_bytes=lambda: free_bytes,
        fault=(fault or spool_fault.SpoolFault(probed)).reason,
        cordon=lambda: cordon[-1] if cordon else nodes.ACTIVE,
        hand_over=hand_over,
        load=lambda: 3.0,
    )


async def test_a_burst_does_not_pass_the_limit() -> None:
    """Of five captures delivered together two start; the others go back, and no more are requested until one has ended."""
    bus, captures = Bus(), Captures()
    part = limited(bus, captures)
    answers = await asyncio.gather(*(part.admit("start-capture", captures.begin) for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if answer is not None]
    assert (captures.running, len(refused), bus.wanted) == (2, 3, False)
    assert all(isinstance(answer, errors.Unavailable) and answer.retry for answer in refused)
    captures.running -= 1
    await part.check()
    assert bus.wanted
    await part.admit("start-capture", captures.begin)
    assert (captures.running, bus.wanted) == (2, False)


async def test_a_cordon_takes_no_captures_and_leaves_the_rest() -> None:
    """A cordoned worker takes no capture and goes on with the others and with transcodes. One that drains also hands its captures
    over, once no more can come. Without a cordon it takes captures again."""
    bus, captures, cordon, paused = Bus(), Captures(), [nodes.CORDONED], list[set[str]]()
    part = limited(bus, captures, cordon=cordon, hand_over=lambda: paused.append(set(bus.paused)))
    with pytest.raises(errors.WorkerFull, match="it is cordoned"):
        await part.admit("start-capture", captures.begin)
    await part.admit("start-transcode", captures.begin)
    await part.check()
    assert (captures.running, bus.paused, paused, part.spare().busy) == (1, {"start-capture"}, [], "it is cordoned")
    cordon.append(nodes.DRAINING)
    await part.check()
    assert paused == [{"start-capture"}]
    cordon.append(nodes.ACTIVE)
    await part.check()
    assert (bus.paused, len(paused)) == (set(), 1)


async def test_each_kind_of_job_has_slots_of_its_own() -> None:
    """Of a burst of transcodes only as many begin as there are slots; the others go back before a lease is taken. Uploads and
    commands that need no slot go on. A freed slot resumes the transcodes at once."""
    bus, captures = Bus(), Captures()
    part = limited(bus, captures)

    async def begin() -> None:
        await captures.begin()
        captures.others["transcode"] += 1

    answers = await asyncio.gather(*(part.admit("start-transcode", begin) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(answer, errors.WorkerFull) for answer in answers) == 4
    assert (captures.others["transcode"], bus.paused) == (2, {"start-transcode"})
    captures.running = 0
    await part.admit("start-upload", captures.begin)
    await part.admit("stop-capture", captures.begin)
    assert captures.running == 2
    await part.start()
    try:
        captures.others["transcode"] -= 1
        part._freed.set()
        await waiting.until(lambda: "start-transcode" not in bus.paused, what="the transcodes to be resumed")
    finally:
        await part.stop()


async def test_what_this_worker_follows_waits_for_no_cpu() -> None:
    """While all CPUs transcode whole segments, a followed recording ends at once, in slots of its own, and no other transcode is
    taken: what any worker can do is paused, what is for this one alone goes on until its slots are taken too. One that was
    followed and has to be made from its segments counts among the others."""
    bus, captures, follows = Bus(), Captures(), [True]
    part = limited(bus, captures, follows=lambda: follows[-1])

    def begin(*kinds: str) -> Callable[[], Awaitable[None]]:
        async def count() -> None:
            captures.others.update(kinds)

        return count

    async def refused(*, followed: bool) -> bool:
        try:
            await part.admit("start-transcode", begin("transcode", *["followed"] * followed), followed=followed)
        except errors.WorkerFull:
            return True
        return False

    assert [await refused(followed=False) for _ in range(3)] == [False, False, True]
    assert (bus.paused, bus.own) == ({"start-transcode"}, {"start-transcode"})
    assert [await refused(followed=True) for _ in range(4)] == [False, False, False, True]
    assert (bus.paused, bus.own) == ({"start-transcode"}, set())
    captures.others.subtract(["transcode", "followed"])
    await part.check()
    assert bus.own == {"start-transcode"}
    follows.append(False)
    await part.check()
    assert bus.own == set()
    captures.others.subtract(["transcode"])  # one of the whole ones ends
    assert not await refused(followed=False)
    captures.others.subtract(["transcode"])
    captures.others.subtract(["followed"])  # and one of the followed ones gives up
    assert await refused(followed=False)


async def test_a_worker_whose_spool_failed_leaves_the_job_to_another() -> None:
    """For a moment after a full disk or a lost mount it takes neither captures nor transcodes; uploads and deliveries go on. A
    single worker waits for nobody."""
    bus, captures, now_s = Bus(), Captures(), [0.0]
    fault = spool_fault.SpoolFault(probed, lambda: now_s[0])
    part = limited(bus, captures, fault=fault)
    fault.note("No space left on device")
    for command in ("start-capture", "start-transcode"):
        with pytest.raises(errors.WorkerFull, match="No space left on device"):
            await part.admit(command, captures.begin)
    await part.admit("start-upload", captures.begin)
    assert (captures.running, bus.paused) == (1, {"start-capture", "start-transcode"})
    assert "No space" in part.spare().busy
    now_s[0] += spool_fault.PAUSE_S
    await part.check()
    assert bus.paused == set()
    fault.note("Stale file handle")
    part._limits = None
    assert (part.full("start-transcode"), part.busy()) == ("", "")


async def test_a_full_spool_takes_nothing() -> None:
    """With too little free space the capture does not start, and the reason names the space."""
    bus, captures = Bus(), Captures()
    with pytest.raises(errors.Unavailable, match="full: the spool has"):
        await limited(bus, captures, free_bytes=1).admit("start-capture", captures.begin)
    assert (captures.running, bus.wanted) == (0, False)
    room = limited(bus, captures, free_bytes=1).spare()
    assert (room.free_bytes, room.needed_bytes, room.busy) == (1, 10, "")


async def test_live_work_that_fills_the_cpus_takes_nothing_more() -> None:
    """More than half of two CPUs within half a minute is full; a burst is not, nor is the earlier use of ended captures."""
    bus, captures, machine = Bus(), Captures(), Machine()
    live = cpu_usage.LiveCpu(lambda: machine.used_s, cpus=2, clock_s=lambda: machine.now_s)
    part = limited(bus, captures, live=live)
    machine.pass_time(live, 3, p0=1.0, p7=1.0)
    assert part.full() == ""
    machine.pass_time(live, 30, p0=0.1, p7=0.8)
    assert part.full() == ""
    machine.pass_time(live, 30, p0=0.1, p7=0.8, p8=0.8)
    assert part.full() == "live work takes 85% of the CPUs, MAX_CPU is 50%"
    assert part.spare().busy == part.full()
    await part.check()
    assert not bus.wanted
    del machine.used_s[8]
    machine.pass_time(live, 30, p0=0.1, p7=0.1)
    await part.check()
    assert bus.wanted
    assert live.share == pytest.approx(0.1)


async def test_a_load_limit_is_the_machines() -> None:
    """MAX_LOAD covers the whole machine, and only if it is set."""
    limits = capacity.CaptureLimits(captures=0, cpu=0, load=2, free_bytes=lambda: 0)
    live = cpu_usage.LiveCpu(dict, cpus=1)
    part = capacity.Capacity(
        limits,
        slots={},
        pause=Bus().pause,
        resume=Bus().resume,
        running=lambda _: 0,
        freed=asyncio.Event(),
        live=live,
        measure=measured,
        free_bytes=lambda: 1,
        load=lambda: 3.0,
    )
    assert part.full() == "the load per core is 3.0, MAX_LOAD is 2"


async def test_a_spool_that_cannot_be_read_takes_nothing() -> None:
    """A worker with an unreadable spool takes no capture and names the spool as the reason; its heartbeats continue."""

    def gone() -> int:
        raise errors.Unavailable("the spool is gone")

    limits = capacity.CaptureLimits(captures=0, cpu=0, load=0, free_bytes=lambda: 0)
    live = cpu_usage.LiveCpu(dict, cpus=1)
    bus, captures = Bus(), Captures()
    part = capacity.Capacity(
        limits,
        slots={},
        pause=bus.pause,
        resume=bus.resume,
        running=lambda _: 0,
        freed=asyncio.Event(),
        live=live,
        measure=measured,
        free_bytes=gone,
        load=lambda: 0.0,
    )
    with pytest.raises(errors.WorkerFull, match="the spool is gone"):
        await part.admit("start-capture", captures.begin)
    assert (captures.running, bus.wanted) == (0, False)
    assert part.spare().free_bytes is None


def test_the_cpus_of_a_container_are_its_quota(tmp_path: Path) -> None:
    """A CPU quota of control groups of either version counts; no quota, or an unreadable one, limits nothing."""
    mine = float(len(os.sched_getaffinity(0)))
    assert cpu_usage.usable(tmp_path) == mine
    (tmp_path / "cpu").mkdir()
    (tmp_path / cpu_usage.QUOTA_V1[1]).write_text("100000\n")
    (tmp_path / cpu_usage.QUOTA_V1[0]).write_text("-1\n")
    assert cpu_usage.usable(tmp_path) == mine
    (tmp_path / cpu_usage.QUOTA_V1[0]).write_text("50000\n")
    assert cpu_usage.usable(tmp_path) == 0.5
    (tmp_path / cpu_usage.QUOTA_V2).write_text("25000 100000\n")
    assert cpu_usage.usable(tmp_path) == 0.25
    (tmp_path / cpu_usage.QUOTA_V2).write_text("max 100000\n")
    (tmp_path / cpu_usage.QUOTA_V1[0]).unlink()
    assert cpu_usage.usable(tmp_path) == mine


def test_processes_are_read_from_the_system() -> None:
    """The reading includes this process; a process that is gone is omitted."""
    found = cpu_usage.reading(lambda: [os.getpid(), 2**22 + 1])()
    assert set(found) == {cpu_usage.OWN, os.getpid()}
    assert all(used_s > 0 for used_s in found.values())
