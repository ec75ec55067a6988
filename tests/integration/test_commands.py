"""Commands for sessions against a running API: output for people and programs, and exit codes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from machine import errors
from tests import cli_runner, engines
from tests.integration import api_service
from tests.integration.api_service import Service

ROOM = ["--sdk-app-id", "1400000001", "--room", "8489", "--user", "rec", "--mode", "02"]
COS = ["--region", "ap-shanghai", "--bucket", "lessons-1250000000", "--path", "/"]
SECRETS = {"RECORDER_USER_SIG": "PLANTED-SIG", "COS_SECRET_ID": "PLANTED-ID", "COS_SECRET_KEY": "PLANTED-KEY"}


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, ("right-token",)) as running:
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of a command."""

    exit_code: int
    stdout: str
    stderr: str


async def run(service: Service, *words: str, **environ: str) -> Result:
    """Run a command in a process of its own."""
    whole = {"RECORDER_URL": service.url, "RECORDER_TOKEN": service.token, **SECRETS, **environ}
    answer = await cli_runner.process(whole, *words)
    return Result(exit_code=answer.code, stdout=answer.out, stderr=answer.err)


@asynccontextmanager
async def _page() -> AsyncIterator[str]:
    """A server that is not the recorder."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<h1>It works</h1>")

    page = web.Application()
    page.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(page)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def started(service: Service) -> str:
    result = await run(service, "start", *ROOM, *COS)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout).strip()


async def test_start_prints_only_the_task_id(service: Service) -> None:
    """Only the id is on standard output, for scripts; warnings are on standard error. The secrets come from the environment."""
    result = await run(service, "start", *ROOM, *COS)
    assert (result.exit_code, len(result.stdout.strip())) == (0, 26)
    assert "warning: No callback of application" in result.stderr
    assert service.decided[0].data["UserSig"] == "PLANTED-SIG"
    assert service.decided[0].data["CosConfig"]["SecretKey"] == "PLANTED-KEY"
    again = await run(service, "start", *ROOM, *COS)
    assert again.stdout == result.stdout
    assert "being recorded already" in again.stderr


async def test_start_takes_a_body(service: Service, tmp_path: Path) -> None:
    """The request is a file, and an option overrides it."""
    file = tmp_path / "start.json"
    file.write_text(json.dumps(api_service.start_body()))
    result = await run(service, "start", "--file", str(file), "--mode", "00", "--subscribe", "a", "--subscribe", "b", "--json")
    assert json.loads(result.stdout)["Repeated"] is False
    assert (service.decided[0].data["Mode"], service.decided[0].data["SubscribeUserIds"]) == ("00", ["a", "b"])


async def test_a_refusal_names_the_field(service: Service) -> None:
    """1, and the service's sentence, which names the option, or the field of a given body; with --json its whole answer."""
    result = await run(service, "start", *ROOM)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "--region: is required\n")
    result = await run(service, "start", *ROOM, "--body", "{}")
    assert result.stderr == "CosConfig.Region: is required\n"
    result = await run(service, "start", *ROOM, "--json")
    assert (result.exit_code, json.loads(result.stdout)["Code"]) == (1, "InvalidParameter")


async def test_a_wrong_token(service: Service) -> None:
    """1, and the name of the wrong variable."""
    result = await run(service, "sessions", RECORDER_TOKEN="wrong")
    assert (result.exit_code, "RECORDER_TOKEN" in result.stderr) == (1, True)


async def test_no_such_session(service: Service) -> None:
    """4 for every command that names a session, for any spelling of the name."""
    for task_id in ("01JBX5Q9V7T3M8K2C4D6F8H0ZW", "../sessions", "a b?c"):
        for command in ("show", "stop", "replay"):
            assert (await run(service, command, task_id)).exit_code == 4


async def test_a_service_that_is_not_ready(service: Service) -> None:
    """3: the command can be retried later."""
    service.failure = errors.Unavailable()
    assert (await run(service, "start", *ROOM, *COS)).exit_code == 3


async def test_sessions_are_lines_for_a_pipe(service: Service) -> None:
    """One tab-separated line per session after the headings, with counts of failures; --json prints the whole answer."""
    task_id = await started(service)
    await service.failed_recording(task_id)
    result = await run(service, "sessions", "--state", "finished")
    headings, line = result.stdout.splitlines()
    cells = dict(zip(headings.split("\t"), line.split("\t"), strict=True))
    assert (cells["TaskId"], cells["Room"], cells["Recordings"], cells["End"]) == (
        task_id,
        "room 8489",
        "1 Failed",
        "RoomDestroyed",
    )
    result = await run(service, "sessions", "--json")
    assert json.loads(result.stdout)["Sessions"][0]["TaskId"] == task_id
    result = await run(service, "sessions", "--state", "Open")
    assert (result.exit_code, result.stdout) == (0, "")


async def test_the_next_command_of_show_works(service: Service) -> None:
    """The command that `show` prints replays the recording; no secret is printed."""
    task_id = await started(service)
    await service.failed_recording(task_id)
    shown = await run(service, "show", task_id)
    assert shown.exit_code == 0
    for words in (
        "Finished, RoomDestroyed",
        "FailedCosWrite",
        "The bucket refused the key (403).",
        "Uploading → Failed",
        "upload-failed",
    ):
        assert words in shown.stdout
    command = shown.stdout.rsplit("`recorder ", 1)[1].split("`")[0]
    dry = await run(service, *command.split(), "--dry-run")
    assert "alice\t1\tFailed\tUploading\t2" in dry.stdout
    assert "dry run" in dry.stdout
    replayed = await run(service, *command.split())
    assert (replayed.exit_code, "alice\t1\tFailed\tUploading\t2" in replayed.stdout) == (0, True)
    after = json.loads((await run(service, "show", task_id, "--json")).stdout)
    assert after["Recordings"][0]["State"] == "Uploading"
    assert "PLANTED" not in shown.stdout + replayed.stdout + json.dumps(after)
    assert service.decided[-1].data["CosConfig"] == {"SecretId": "PLANTED-ID", "SecretKey": "PLANTED-KEY"}


async def test_replay_from_an_earlier_stage(service: Service) -> None:
    """--from chooses the stage; a stage without its files is refused with 1."""
    task_id = await started(service)
    await service.failed_recording(task_id)
    result = await run(
        service, "replay", task_id, "--speaker", "alice", "--n", "1", "--from", "transcoding", "--dry-run", "--json"
    )
    assert json.loads(result.stdout)["Recordings"][0]["To"] == "Transcoding"
    assert (await run(service, "replay", task_id, "--n", "1")).exit_code == 1


async def test_stop(service: Service) -> None:
    """It prints the new state."""
    task_id = await started(service)
    result = await run(service, "stop", task_id)
    assert (result.exit_code, result.stdout) == (0, f"{task_id} Finished\n")


async def test_another_server_answers(service: Service) -> None:
    """3, because the answer is not the recorder's."""
    async with _page() as url:
        result = await run(service, "sessions", RECORDER_URL=url)
    assert (result.exit_code, "is not the recorder" in result.stderr) == (3, True)
