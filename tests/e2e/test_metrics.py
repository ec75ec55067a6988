"""Metrics of the real service, on each engine: a recorded session is in them, and promtool accepts the scrape."""

from __future__ import annotations

import aiohttp

from tests import scrapes, waiting
from tests.e2e.conftest import APP, World, live_for

TOKEN = {"Authorization": "Bearer scrape-token"}
# What one session with one speaker leaves behind.
COUNTED = (
    "recorder_sessions_opened_total",
    'recorder_sessions_finished_total{reason="RoomDestroyed"}',
    'recorder_recordings_ended_total{code="Success"}',
    'recorder_deliveries_ended_total{outcome="delivered"}',
    "recorder_first_packet_seconds_count",
    "recorder_stop_to_done_seconds_count",
    "recorder_transcode_speed_ratio_count",
    'recorder_job_duration_seconds_count{kind="upload"}',
    'recorder_job_wait_seconds_count{kind="capture"}',
    'recorder_jobs_ended_total{kind="transcode",reason="ok"}',
    'recorder_jobs_ended_total{kind="callback",reason="ok"}',
)


async def test_a_recorded_session_is_in_the_metrics(world: World) -> None:
    """Each stage of a session is counted once, its bytes are counted, and nothing is left in the backlog."""
    service = await world.serve(METRICS_TOKEN="scrape-token")

    async def scrape() -> tuple[dict[str, float], str]:
        async with aiohttp.ClientSession() as http, http.get(f"{service.url}/metrics", headers=TOKEN) as response:
            assert response.status == 200
            text = await response.text()
        return scrapes.series(text), text

    started = await service.post("/sessions", world.request(7301, Mode="00"))
    room = world.simulator.create_room(APP, 7301)
    await room.join("alice")
    await waiting.until(lambda: _recording(world, started["TaskId"]), 20, "the recording")
    assert (await scrape())[0]['recorder_jobs_running{kind="capture"}'] == 1
    await live_for(2)
    await room.dismiss()
    await service.finished(started["TaskId"])

    async def delivered() -> dict[str, float]:
        found, _ = await scrape()
        over = found.get('recorder_sessions{state="Open"}') == 0 and found['recorder_jobs_running{kind="callback"}'] == 0
        return found if over and found.get('recorder_deliveries_ended_total{outcome="delivered"}') else {}

    found = await waiting.until(delivered, 30, "the delivery in the metrics")
    assert {name: found.get(name) for name in COUNTED} == dict.fromkeys(COUNTED, 1)
    assert found["recorder_capture_bytes_total"] > 1_000
    assert found["recorder_upload_bytes_total"] > 1_000
    assert (found["recorder_can_accept"], found["recorder_ready"]) == (1, 1)
    distributed = world.engine != "embedded"
    assert found.get("recorder_workers_alive") == (1 if distributed else None)
    assert await scrapes.promtool("check", "metrics", given=(await scrape())[1].encode()) == (0, "")


async def _recording(world: World, task_id: str) -> bool:
    return await world.service.states(task_id) == ["Recording"]
