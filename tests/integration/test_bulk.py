"""Bulk actions over HTTP and on the command line: preview, confirmation, idempotence after an interruption, audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from events import codec
from machine import errors, model
from tests import cli_runner, engines
from tests.integration import api_service
from tests.integration.api_service import Service
from tests.integration.test_resend import given_up

MASTER = "master-token"
UNKNOWN = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,)) as running:
        yield running


async def failed(service: Service, count: int) -> list[str]:
    """Sessions with a recording that failed in the upload, oldest first."""
    made = []
    for _ in range(count):
        made.append(await service.open_session())
        await service.failed_recording(made[-1])
    return made


async def replays(service: Service, task_ids: list[str]) -> list[int]:
    """How many replays the timeline of each session has."""
    found = []
    for task_id in task_ids:
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        found.append(sum(line["Event"] == "replay" and line["Of"] == "alice/1" for line in body["Timeline"]))
    return found


async def test_a_replay_of_many_is_done_once(service: Service) -> None:
    """Each session is replayed once, with an entry of its own in the audit; a healthy one is left alone, an unknown one is named.
    The same request again, under its key or another, replays nothing a second time."""
    ids = await failed(service, 3)
    healthy = await service.open_session(RoomId=1)
    asked = {"TaskIds": [*ids, healthy, UNKNOWN]}
    dry = await service.ask("POST", "/bulk/replay", json=asked | {"DryRun": True})
    assert (dry[0], dry[1]["Done"], await replays(service, ids)) == (200, 3, [0, 0, 0])
    status, answer = await service.ask("POST", "/bulk/replay", json=asked, headers={"Idempotency-Key": "k"})
    assert status == 200
    told = [(each["TaskId"], each["Code"]) for each in answer["Outcomes"]]
    assert told == [*((id_, "ok") for id_ in ids), (healthy, "NotNeeded"), (UNKNOWN, "NotFound")]
    assert answer["Outcomes"][0]["Message"] == "alice/1: upload from its files"
    for key in ("k", "other"):
        _, again = await service.ask("POST", "/bulk/replay", json=asked, headers={"Idempotency-Key": key})
        assert [each["Code"] for each in again["Outcomes"]] == ["NotNeeded"] * 4 + ["NotFound"]
    assert await replays(service, ids) == [1, 1, 1]
    lines, _ = await service.audit.list()
    assert Counter((line.subject, line.outcome) for line in lines if line.action == "replay")[ids[0], "ok"] == 1


async def test_a_request_that_was_cut_off_is_sent_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes away after two of four sessions: the answer is 503. The same request under the same key does the rest,
    and each session is stopped by one event."""
    ids = [await service.open_session(RoomId=room) for room in range(1, 5)]
    decide, decided = service.decider.decide, list[str]()

    async def twice(event: codec.Event, by: model.Caller | None = None) -> dict[str, Any]:
        if len(decided) == 2:
            raise errors.Unavailable("The database does not answer.")
        decided.append(event.id)
        return await decide(event, by)

    key = {"Idempotency-Key": "stop them"}
    with monkeypatch.context() as patch:
        patch.setattr(service.decider, "decide", twice)
        assert (await service.ask("POST", "/bulk/stop", json={"TaskIds": ids}, headers=key))[0] == 503
    status, answer = await service.ask("POST", "/bulk/stop", json={"TaskIds": ids}, headers=key)
    assert (status, answer["Done"]) == (200, 4)
    for task_id in ids:
        _, body = await service.ask("GET", f"/sessions/{task_id}")
        assert body["EndReason"] == "Stopped"
    assert len({event.id for event in service.decided if event.type == "stop"}) == 4
    lines, _ = await service.audit.list()
    assert Counter(line.subject for line in lines if line.action == "stop") == dict.fromkeys(ids, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "TaskIds"),
        ({"TaskIds": []}, "TaskIds"),
        ({"TaskIds": ["x"]}, "TaskIds.0"),
        ({"TaskIds": [UNKNOWN] * 101}, "TaskIds"),
        ({"TaskIds": [UNKNOWN], "Room": 1}, "Room"),
    ],
)
async def test_a_wrong_request_names_its_field(service: Service, body: dict[str, Any], field: str) -> None:
    """No session is touched by a request that is not understood whole."""
    status, answer = await service.ask("POST", "/bulk/stop", json=body)
    assert (status, answer["Code"]) == (400, "InvalidParameter")
    assert answer["Message"].startswith(f"{field}: "), answer["Message"]


async def test_only_a_key_that_operates_acts_on_many(service: Service) -> None:
    """A key that reads gets 403, and nothing is decided."""
    ids = await failed(service, 1)
    _, text = await service.key("read", "start")
    for action in ("replay", "stop", "resend"):
        headers = {"Authorization": f"Bearer {text}"}
        assert (await service.ask("POST", f"/bulk/{action}", json={"TaskIds": ids}, headers=headers))[0] == 403
    assert await replays(service, ids) == [0]


async def test_the_command_replays_all_that_match(service: Service) -> None:
    """In a pipe the command wants --yes, so that nobody acts on more than they saw; --dry-run lists the sessions. With --yes each
    is replayed, a line each, and the same command again finds none."""
    ids = await failed(service, 25)
    environment = {"RECORDER_URL": service.url, "RECORDER_TOKEN": MASTER}

    async def run(*words: str) -> cli_runner.Answer:
        return await cli_runner.inside(environment, *words)

    unsure = await run("replay", "--stuck")
    assert (unsure.code, "25 sessions match" in unsure.err) == (2, True)
    listed = await run("replay", "--stuck", "--code", "FailedCosWrite", "--dry-run")
    assert (listed.code, sorted(listed.out.split())) == (0, ids)
    assert (await run("replay", "--code", "FailedTranscode", "--yes")).err == "No session matches.\n"
    assert await replays(service, ids[:1]) == [0]
    done = await run("replay", "--stuck", "--code", "FailedCosWrite", "--yes")
    assert (done.code, len(done.out.splitlines())) == (0, 25)
    assert done.err.splitlines()[-1] == "25 of 25 done, 0 needed nothing any more, 0 refused."
    assert (await run("replay", "--stuck", "--yes")).err == "No session matches.\n"
    assert set(await replays(service, ids)) == {1}


async def test_the_command_posts_results_again(service: Service) -> None:
    """`resend --all-failed` with a filter lists what it would post with --dry-run, and posts it with --yes: of the room only."""
    mine, other = [await given_up(service, room) for room in (1, 2)]
    environment = {"RECORDER_URL": service.url, "RECORDER_TOKEN": MASTER}
    listed = await cli_runner.inside(environment, "resend", "--all-failed", "--room", "1", "--dry-run")
    assert (listed.code, listed.out) == (0, f"{mine}\n")
    done = await cli_runner.inside(environment, "resend", "--all-failed", "--room", "1", "--yes")
    assert (done.code, done.out) == (0, f"{mine}\tok\trevision 1 is posted again\n")
    left = (await service.ask("GET", "/sessions", params={"undelivered": "true"}))[1]
    assert [session["TaskId"] for session in left["Sessions"]] == [other]


async def test_the_command_stops_a_room(service: Service) -> None:
    """`stop --room` ends the Open sessions of the room and no other one; a TASK_ID together with a filter is wrong usage."""
    mine = [await service.open_session(RoomId=7, UserId=f"rec-{n}") for n in range(2)]
    other = await service.open_session(RoomId=8)
    environment = {"RECORDER_URL": service.url, "RECORDER_TOKEN": MASTER}
    done = await cli_runner.inside(environment, "stop", "--room", "7", "--yes", "--json")
    assert (done.code, sorted(each["TaskId"] for each in done.json["Outcomes"])) == (0, mine)
    assert (await service.ask("GET", f"/sessions/{other}"))[1]["State"] == "Open"
    assert (await cli_runner.inside(environment, "stop", other, "--room", "8")).code == 2
    assert (await cli_runner.inside(environment, "stop")).code == 2
