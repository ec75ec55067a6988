"""Frozen worker: it freezes past its lease and wakes. On the distributed engine another worker has taken over its jobs by then,
and each of its writes is refused. On the embedded engine no other worker exists, and it continues.

The distributed worker has a database user of its own, and triggers note every row that this user writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import imageio_ffmpeg
import pytest

from simulator.cos import faults
from tests import backends, postgres, process_freeze, service_process, waiting
from tests.chaos import fault_figures
from tests.e2e import cluster, scenes
from tests.e2e.conftest import FFMPEG, NATIVE, World, by_captures, live_for
from tests.e2e.scenes import Scene

LEASE_S = 4.0 * waiting.pace()
DEAD_WITHIN_S = 2.0
USER = "frozen_worker"
WATCHED = ("sessions", "recordings", "jobs", "segments", "uploads", "callbacks", "results", "deadlines", "journal")


class Writes:
    """The rows that the worker's database user has written, noted by triggers."""

    def __init__(self, many: cluster.Cluster) -> None:
        self._many = many
        self.url = many.database.replace("recorder@", f"{USER}@")

    async def watch(self) -> None:
        """Create the user and the triggers."""
        await self._do(
            f"DROP ROLE IF EXISTS {USER}",
            f"CREATE ROLE {USER} LOGIN SUPERUSER",
            "CREATE TABLE written (seq serial, what text, row_as_text text)",
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF current_user = '{USER}' THEN"
            " INSERT INTO written (what, row_as_text) VALUES (TG_OP || ' ' || TG_TABLE_NAME, COALESCE(NEW, OLD)::text); END IF;"
            " RETURN NULL; END $$",
            *(
                f"CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION note()"
                for table in WATCHED
            ),
            "CREATE TRIGGER noted AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION note()",
        )

    async def all(self) -> list[str]:
        """Every row written so far, in order."""
        return [f"{r['what']} {r['row_as_text']}" for r in await self._many.ask("SELECT * FROM written ORDER BY seq")]

    async def forget(self) -> None:
        """Delete the user, after the database."""
        connection = await asyncpg.connect(f"postgresql://recorder@127.0.0.1:{postgres.shared().port}/postgres")
        await connection.execute(f"DROP ROLE IF EXISTS {USER}")
        await connection.close()

    async def _do(self, *statements: str) -> None:
        connection = await asyncpg.connect(self._many.database.replace("+asyncpg", ""))
        for statement in statements:
            await connection.execute(statement)
        await connection.close()


def hesitant(folder: Path) -> str:
    """An ffmpeg that captures as usual and starts no transcode while the file `hold` exists."""
    script = folder / "hesitant-ffmpeg"
    script.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *pipe:0*) while [ -e {folder}/hold ]; do read -t 0.2 <> <(:); done ;; esac\n'
        f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.fixture
async def many(world: World) -> AsyncIterator[cluster.Cluster]:
    """A cluster with one spool for all. Who leaves is waited for until the room ends: the worker that wakes gets no new work."""
    made = cluster.Cluster(world, shared=True, settings={"LEASE": f"{LEASE_S:.1f}s", "LINGER": "60s"})
    yield made
    with contextlib.suppress(ProcessLookupError):
        os.kill(made.nodes["frozen"].pid, signal.SIGCONT)
    await made.stop()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("engine", "capture"), [(backends.DISTRIBUTED, NATIVE), (backends.DISTRIBUTED, FFMPEG)])
async def test_a_frozen_worker_wakes(world: World, many: cluster.Cluster, tmp_path: Path, capture: str) -> None:
    """A worker frozen in six captures, two transcodes and an upload, woken after another worker has taken them over, writes
    nothing more, ends its captures and ffmpegs within two seconds, and doubles no recording or result; of a capture whose speaker
    left meanwhile it may report the media on disk, because the media of a superseded capture counts."""
    writes = Writes(many)
    await many.start(one="api,machine")
    await writes.watch()
    (tmp_path / "hold").touch()
    settings = {"CAPTURE": capture, "DATABASE_URL": writes.url, "FFMPEG_BINARY": hesitant(tmp_path)}
    frozen = await many.add("frozen", "worker", **settings)
    live = [Scene(world, name) for name in ("frozen-a", "frozen-b", "frozen-c")]
    transcoded, uploaded = Scene(world, "frozen-transcode"), Scene(world, "frozen-upload")
    for scene in (*live, transcoded):
        await scene.start("02")
        await asyncio.gather(scene.join("alice"), scene.join("bob"))
    await asyncio.gather(*(scene.recordings("Recording", "Recording") for scene in (*live, transcoded)))
    await _freeze_in_upload(world, uploaded, tmp_path)
    await transcoded.room.dismiss()
    await transcoded.recordings("Transcoding", "Transcoding")
    leased = await _leased(many)
    await waiting.until(lambda: len(service_process.work(frozen.pid)) >= 8, 15, "six captures and two transcodes to run")
    running = service_process.work(frozen.pid)

    process_freeze.freeze(frozen.pid)
    await many.add("other", "worker", CAPTURE=capture)
    await asyncio.gather(transcoded.result("RoomDestroyed"), uploaded.result("RoomDestroyed"))

    async def taken_over() -> bool:
        rows = await many.ask("SELECT node FROM jobs WHERE state = 'leased' AND kind = 'capture'")
        return len(rows) == 6 and not {row["node"] for row in rows} & {node for _, _, node in leased}

    await waiting.until(taken_over, 40, "the other worker to have every capture", every_s=0.3)
    await asyncio.gather(*(scene.recordings("Recording", "Recording") for scene in live))

    async def tidied() -> bool:
        return not await many.ask(f"SELECT 1 FROM segments WHERE recording_id ~ '{transcoded.task_id}|{uploaded.task_id}'")

    # Any worker may clean up after Done; the woken one must find nothing to clean up.
    await waiting.until(tidied, 20, "the other worker to have deleted what is Done", every_s=0.3)
    await live[2].room.speakers["bob"].leave()
    left = f"{live[2].task_id}/bob/1"
    if capture == FFMPEG:
        alive = functools.partial(_of, frozen, running)
        await waiting.until(lambda: len(alive()) == len(running) - 1, 20, "its ffmpeg of who left to have ended by itself")
    before = await writes.all()
    assert before, "the triggers note what the worker writes"

    os.kill(frozen.pid, signal.SIGCONT)
    woken_s = time.monotonic()
    await waiting.until(lambda: not _of(frozen, running), DEAD_WITHIN_S, "its captures and ffmpegs to have ended")
    dead_s = time.monotonic() - woken_s
    assert dead_s <= waiting.limit_s(DEAD_WITHIN_S)
    fault_figures.note(f"frozen worker, {capture}: ended after waking", f"{dead_s:.2f} s ({len(running)} of them)")
    stale = [job for job in leased if job[0] != left]
    refused = await waiting.until(lambda: _refused(frozen, stale), 10, "each of its jobs to be refused")
    await live_for(LEASE_S / 2)
    after = (await writes.all())[len(before) :]
    allowed = [row for row in after if row.startswith("INSERT outbox") and "ffmpeg-exit" in row and left in row]
    assert after == allowed
    assert len(allowed) <= 1
    figure = f"{len(leased)}, {len(refused)}, {len(after)} (of who left meanwhile: {len(allowed)})"
    fault_figures.note("frozen worker: jobs leased, refused, rows written after waking", figure)
    (tmp_path / "hold").unlink()
    for scene in live:
        await scene.room.dismiss()
    await asyncio.gather(*(scene.files("RoomDestroyed") for scene in (*live, transcoded, uploaded)))
    expected = [(scene, speaker) for scene in (*live, transcoded) for speaker in ("alice", "bob")]
    await fault_figures.audited(world, many.database, [*expected, (uploaded, "carol")])
    await many.stop()
    await writes.forget()


async def _freeze_in_upload(world: World, scene: Scene, folder: Path) -> None:
    """Bring a recording to its upload, whose first part COS delays."""
    late = faults.Fault(action=faults.DELAY, operation="upload-part", key="*carol_1*", delay_s=25)
    world.simulator.cos.faults.set(late)
    await scene.start("02")
    await scene.join("carol")
    await scene.recordings("Recording")
    await live_for(1.5)
    (folder / "hold").unlink()
    await scene.room.dismiss()
    await scene.recordings("Uploading")
    (folder / "hold").touch()


async def _leased(many: cluster.Cluster) -> list[tuple[str, int, str]]:
    """The jobs that the only worker has leased: (owner, epoch, node)."""

    async def all_leased() -> list[Any]:
        rows = await many.ask("SELECT owner, epoch, node FROM jobs WHERE state = 'leased' AND kind <> 'callback'")
        return rows if len(rows) == 9 else []

    rows = await waiting.until(all_leased, 20, "six captures, two transcodes and an upload to be leased", every_s=0.1)
    return [(row["owner"], row["epoch"], row["node"]) for row in rows]


def _of(node: service_process.ServiceProcess, work: list[str]) -> set[str]:
    """What a node still does of this work."""
    return {*work} & {*service_process.work(node.pid)}


def _refused(node: service_process.ServiceProcess, leased: list[tuple[str, int, str]]) -> list[str]:
    """The log lines about refused leases, once there is one for each of these jobs."""
    lines = [line for line in node.log.read_text().splitlines() if '"lease.refused"' in line or '"job.superseded"' in line]
    complete = all(any(f'"{owner}"' in line and f'"epoch": {epoch}' in line for line in lines) for owner, epoch, _ in leased)
    return lines if complete else []


@pytest.mark.timeout(120)
@by_captures
async def test_a_frozen_service_wakes(world: World, engine: str, capture: str) -> None:
    """When the only node freezes past its lease, no capture counts as lost, no idle time passes, and every file is complete:
    ffmpegs run on, and for a native capture the kernel keeps what arrives."""
    service = await world.serve(CAPTURE=capture, LEASE=f"{LEASE_S:.1f}s", LINGER="3s", IDLE_TIMEOUT="8s")
    scene = Scene(world, "asleep")
    await scene.start("02")
    await asyncio.gather(scene.join("alice"), scene.join("bob"))
    await scene.recordings("Recording", "Recording")
    running = service_process.work(service.pid)
    process_freeze.freeze(service.pid)
    try:
        await live_for(LEASE_S + 6)
    finally:
        os.kill(service.pid, signal.SIGCONT)
    await live_for(LEASE_S + 2)
    assert service_process.work(service.pid) == running
    await scene.room.dismiss()
    files = await scene.files("RoomDestroyed")
    assert [scenes.gaps(entry) for entries in files.values() for entry in entries] == [[], []], (engine, files)
    assert all(entry["Duration"] > 2 * LEASE_S for entries in files.values() for entry in entries)
    assert world.backend is not None
    await fault_figures.audited(world, world.backend.database, [(scene, "alice"), (scene, "bob")])
