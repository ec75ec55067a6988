"""Sessions with a long life and many speakers: their lists come in bounded pages, and `show` follows them."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import insert, text

from events import codec
from store import queries, tables
from tests import engines, examples, transactions
from tests.integration import api_service
from tests.integration.api_service import Service, now_ms
from tests.integration.test_commands import run
from web import responses, sessions, views

CYCLES = 900
SPEAKERS = sessions.RECORDINGS + 130
PULLS = queries.SEGMENTS + 70
REVISIONS = queries.RESULTS + 25
LARGE = 120_000


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database) as running:
        yield running


async def _insert(service: Service, table: Any, rows: list[dict[str, Any]]) -> None:
    async with service.store.connections.write(limited=False) as connection:
        await connection.execute(insert(table), rows)


async def flapping(service: Service) -> str:
    """A session whose one speaker came and went: three events in each cycle, and a move after a third and two thirds."""
    task_id = await service.open_session()
    owner, rows = f"{task_id}/alice/1", []
    kinds = (("deadline-passed", "pull again"), ("ffmpeg-exit", "eof after 2 s"), ("user-publishing", "ignored: it runs"))
    for cycle in range(CYCLES):
        moves = cycle in (CYCLES // 3, 2 * CYCLES // 3)
        for kind, note in (*kinds, *([("replay", "by hand")] if moves else [])):
            states = ("Failed", "Joining") if kind == "replay" else ("Joining", "Joining")
            row = {"task_id": task_id, "owner": owner, "at_ms": now_ms(), "event_id": "e", "event_type": kind}
            rows.append(row | {"from_state": states[0], "to_state": states[1], "note": note})
    await _insert(service, tables.journal, rows)
    return task_id


async def crowded(service: Service) -> str:
    """A session with many speakers, the first of whom has many pulls of a second each."""
    task_id = await service.open_session()
    made = [
        examples.recording(task_id, f"s{n:03}", job=None, state="Done", opened_ms=n, ended_ms=n, code="Success")
        for n in range(SPEAKERS)
    ]
    async with transactions.opened(service.store) as tx:
        for recording in made:
            tx.add_recording(recording)
    pull = {"node": "n", "media_ms": 1_000, "size_bytes": 1, "reason": "eof", "task_id": task_id}
    pulls = [
        pull
        | {"recording_id": made[0].key.text, "epoch": n, "registered_ms": n, "first_packet_ms": 2_000 * n}
        | {"last_packet_ms": 2_000 * n + 1_000}
        for n in range(1, PULLS + 1)
    ]
    await _insert(service, tables.segments, pulls)
    return task_id


async def test_a_long_timeline_comes_in_folded_pages(service: Service) -> None:
    """A page has the newest lines. Repeats are one line with their number, and no line is lost or shown twice on the way back."""
    task_id = await flapping(service)
    counts, lines, cursor = [], [], ""
    while True:
        status, body = await service.ask("GET", f"/sessions/{task_id}?timeline={cursor or 0}")
        assert status == 200
        assert len(body["Timeline"]) <= 12
        counts.append(sum(line["Count"] for line in body["Timeline"]))
        lines = [*body["Timeline"], *lines]
        cursor = body["TimelineNext"]
        if not cursor:
            break
    assert sum(counts) == 3 * CYCLES + 2 + 1 > 2 * sessions.TIMELINE
    assert counts[:-1] == [sessions.TIMELINE] * (len(counts) - 1)
    assert counts[-1] <= sessions.TIMELINE
    assert lines[0]["Event"] == "start"
    assert sum(line["Event"] == "replay" for line in lines) == 2
    assert all(line["FirstTime"] <= line["Time"] for line in lines)
    _, body = await service.ask("GET", f"/sessions/{task_id}?limit=7")
    assert sum(line["Count"] for line in body["Timeline"]) == 7
    assert body["TimelineNext"]


async def test_a_page_of_a_timeline_has_a_largest_size(service: Service) -> None:
    """A caller may ask for fewer lines than a page has, and the API refuses a request for more, or for none, by the parameter's
    name."""
    task_id = await service.open_session()
    assert (await service.ask("GET", f"/sessions/{task_id}?limit={sessions.TIMELINE}"))[0] == 200
    for limit in (sessions.TIMELINE + 1, 2**63, 0, -1):
        status, answer = await service.ask("GET", f"/sessions/{task_id}?limit={limit}")
        assert (status, answer["Message"].partition(":")[0]) == (400, "limit")


async def test_a_cursor_at_the_end_of_its_range(service: Service) -> None:
    """The largest cursors are valid, and larger ones are refused by name."""
    task_id = await service.open_session()
    for name, largest in (("timeline", 2**63 - 1), ("recordings", 2**31 - 1), ("results", 2**31 - 1)):
        assert (await service.ask("GET", f"/sessions/{task_id}?{name}={largest}"))[0] == 200
        status, answer = await service.ask("GET", f"/sessions/{task_id}?{name}={largest + 1}")
        assert (status, answer["Message"].partition(":")[0]) == (400, name)


async def test_large_answers_are_made_off_the_event_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API collects and renders a large answer in another thread. Other requests do not wait meanwhile."""
    collected_in: list[threading.Thread] = []
    rendered_in: list[threading.Thread] = []
    collect, render = views.details, responses.Answer.render

    def details(*args: Any) -> Any:
        collected_in.append(threading.current_thread())
        return collect(*args)

    def rendered(answer: responses.Answer, content: Any) -> bytes:
        if "Timeline" in content:
            rendered_in.append(threading.current_thread())
        return render(answer, content)

    task_id = await service.open_session()
    monkeypatch.setattr(views, "details", details)
    monkeypatch.setattr(responses.Answer, "render", rendered)
    assert (await service.ask("GET", f"/sessions/{task_id}"))[0] == 200
    assert len(collected_in) == len(rendered_in) == 1
    assert threading.main_thread() not in collected_in + rendered_in


async def test_many_recordings_and_pulls_come_in_pages(service: Service) -> None:
    """Recordings in the order of their opening; of each its newest segments, while its media counts all of them."""
    task_id = await crowded(service)
    _, first = await service.ask("GET", f"/sessions/{task_id}")
    _, second = await service.ask("GET", f"/sessions/{task_id}?recordings={first['RecordingsNext']}")
    assert len(first["Recordings"]) == sessions.RECORDINGS
    names = [r["Speaker"] for r in (*first["Recordings"], *second["Recordings"])]
    assert (names, second["RecordingsNext"]) == ([f"s{n:03}" for n in range(SPEAKERS)], "")
    recording = first["Recordings"][0]
    assert len(recording["Segments"]) + recording["SegmentsOmitted"] == PULLS
    assert recording["Segments"][-1]["Epoch"] == PULLS
    assert recording["MediaSeconds"] == PULLS
    assert recording["Gaps"][0] == {"At": float(recording["SegmentsOmitted"] + 1), "Duration": 1.0}
    assert (await service.ask("GET", f"/sessions/{task_id}?segments=1"))[0] == 400


async def test_many_large_results_come_in_pages(service: Service) -> None:
    """The newest revisions, bounded in number and in bytes; going back shows each once. So do the results of all sessions."""
    task_id = await service.open_session()
    rows, messages = [], []
    for revision in range(1, REVISIONS + 1):
        data = {"TaskId": task_id, "Revision": revision, "Files": [{"Detail": "x" * LARGE}] if revision % 2 else []}
        rows.append({"task_id": task_id, "revision": revision, "at_ms": 1, "body": json.dumps(data)})
        event = codec.Event(id=f"{task_id}.{revision}", type="session-finished", time_ms=1, subject=task_id, data=data)
        row = {"channel": "result", "type": event.type, "task_id": task_id, "node": "", "body": codec.encode(event).decode()}
        messages.append(row | {"created_ms": 1, "claimed_until_ms": 0, "sent_ms": 1, "parked": ""})
    await _insert(service, tables.results, rows)
    await _insert(service, tables.outbox, messages)
    seen, cursor = [], ""
    while True:
        _, body = await service.ask("GET", f"/sessions/{task_id}?results={cursor or 0}")
        assert len(json.dumps(body["Results"])) <= queries.PAGE_BYTES + LARGE
        assert len(body["Results"]) <= queries.RESULTS
        seen = [*(r["Revision"] for r in body["Results"]), *seen]
        if not (cursor := body["ResultsNext"]):
            break
    assert seen == list(range(1, REVISIONS + 1))
    found, after = [], ""
    while True:
        _, body = await service.ask("GET", f"/results?after={after}&limit=100&type=session-finished")
        assert len(json.dumps(body["Results"])) <= queries.PAGE_BYTES + LARGE
        found += [r["Data"]["Revision"] for r in body["Results"]]
        if not body["Results"]:
            break
        after = body["Next"]
    assert found == seen


async def test_show_follows_the_pages(service: Service) -> None:
    """`recorder show` prints every recording and the whole timeline."""
    task_id = await crowded(service)
    row = {"task_id": task_id, "owner": task_id, "at_ms": 1, "event_id": "e", "event_type": "x", "from_state": "", "to_state": ""}
    await _insert(service, tables.journal, [row | {"note": f"line {n}"} for n in range(2 * sessions.TIMELINE)])
    answer = json.loads((await run(service, "show", task_id, "--json")).stdout)
    assert [r["Speaker"] for r in answer["Recordings"]] == [f"s{n:03}" for n in range(SPEAKERS)]
    assert [line["Note"] for line in answer["Timeline"]][-2 * sessions.TIMELINE :] == [
        f"line {n}" for n in range(2 * sessions.TIMELINE)
    ]
    assert (answer["RecordingsNext"], answer["TimelineNext"]) == ("", "")
    task_id = await flapping(service)
    lines = (await run(service, "show", task_id)).stdout.splitlines()
    assert sum(" times since 2" in line for line in lines) >= 9


async def test_what_needs_attention_is_found_among_many(service: Service) -> None:
    """The rules see the recordings that may need attention, however many others a session has."""
    task_id = await crowded(service)
    failed = examples.recording(
        task_id, "early", job=None, state="Failed", opened_ms=1, ended_ms=1, code="FailedCosWrite", detail="no", media_ms=5_000
    )
    async with transactions.opened(service.store) as tx:
        tx.add_recording(failed)
    async with service.store.connections.write(limited=False) as connection:
        await connection.execute(text("UPDATE recordings SET files_removed = (state = 'Done')"))
    _, answer = await service.ask("GET", "/sessions?stuck=true")
    (session,) = answer["Sessions"]
    assert [(f["Rule"], f["Of"]) for f in session["Stuck"]] == [("failed-kept", "early/1")]
    parts = await queries.SessionQueries(service.store.connections).parts([task_id])
    assert len(parts[task_id].recordings) == queries.RECORDINGS
