"""The operator's commands: start, stop, sessions, show, results, replay. Clients of the HTTP API. Imports nothing of ours but
this room.

Rules: RECORDER_URL and RECORDER_TOKEN say which service; the exit codes are those of `EPILOG`. `service.py` adds the commands
that are the service, and `doctor`.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import client, live_screen, output, polling, request_input
from cli import doctor_checks as doctor

PAGE = 100
EPILOG = (
    "Exit codes: 0 done; 1 refused or failed, or `doctor` found a failure; 2 wrong usage or settings; 3 the service cannot be"
    " reached or is not ready; 4 there is no such session or recording; 130 interrupted (Ctrl-C)."
    " Output is a table on a terminal, lines with tabs when piped, JSON with --json; errors are on standard error."
)

app = typer.Typer(
    name="recorder",
    help="Records live TRTC rooms, one file per speaker. The commands ask the service at RECORDER_URL with RECORDER_TOKEN.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Stage(enum.StrEnum):
    """Where a replay may begin."""

    JOINING = "joining"
    TRANSCODING = "transcoding"
    UPLOADING = "uploading"


class State(enum.StrEnum):
    """What a session may be."""

    OPEN = "Open"
    CLOSING = "Closing"
    FINISHED = "Finished"


class Mode(enum.StrEnum):
    """What is recorded."""

    AUDIO = "00"
    VIDEO = "01"
    BOTH = "02"


TaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help="Id of the session.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
UserSig = Annotated[str, typer.Option(help=f"UserSig of the recording user; better in {request_input.USER_SIG}.")]
SecretId = Annotated[str, typer.Option(help=f"COS secret id; better in {request_input.SECRET_ID}.")]
SecretKey = Annotated[str, typer.Option(help=f"COS secret key; better in {request_input.SECRET_KEY}.")]
Token = Annotated[str, typer.Option(help=f"Session token of temporary COS credentials; better in {request_input.TOKEN}.")]


@app.command()
def start(
    sdk_app_id: Annotated[int | None, typer.Option(help="TRTC application.")] = None,
    room: Annotated[int | None, typer.Option(help="Integer room.")] = None,
    str_room: Annotated[str, typer.Option(help="String room.")] = "",
    user: Annotated[str, typer.Option(help="The recording user, unique in the room.")] = "",
    user_sig: UserSig = "",
    region: Annotated[str, typer.Option(help="COS region, such as ap-shanghai.")] = "",
    bucket: Annotated[str, typer.Option(help="Bucket, such as lessons-1250000000.")] = "",
    path: Annotated[str, typer.Option(help="Folder in the bucket; / for its top.")] = "",
    secret_id: SecretId = "",
    secret_key: SecretKey = "",
    token: Token = "",
    mode: Annotated[Mode | None, typer.Option(help="00 audio (MP3), 01 video, 02 both (MP4).")] = None,
    callback: Annotated[str, typer.Option(help="URL the result is posted to.")] = "",
    subscribe: Annotated[list[str] | None, typer.Option(help="Only this speaker; may be repeated.")] = None,
    unsubscribe: Annotated[list[str] | None, typer.Option(help="All speakers but this; may be repeated.")] = None,
    body: Annotated[str, typer.Option(help="The request as JSON; options win over it.")] = "",
    file: Annotated[Path | None, typer.Option(help="The request as a JSON file; - is standard input.")] = None,
    key: Annotated[str, typer.Option(help="Idempotency-Key: the same start again under it changes nothing.")] = "",
    as_json: AsJson = False,
) -> None:
    """Start recording a room. Prints the TaskId."""
    fields: dict[str, Any] = {"SdkAppId": sdk_app_id, "RoomId": room, "StrRoomId": str_room, "UserId": user, "UserSig": user_sig}
    fields |= {"Mode": mode.value if mode else None, "Callback": callback}
    fields |= {"SubscribeUserIds": subscribe, "UnSubscribeUserIds": unsubscribe}
    cos = {"Region": region, "Bucket": bucket, "Path": path, "SecretId": secret_id, "SecretKey": secret_key, "Token": token}
    with _exits(as_json=as_json):
        answer = _service().start(request_input.start(request_input.body(body, file), fields, cos, os.environ), key=key)
        if as_json:
            output.as_json(answer)
            return
        output.line(answer["TaskId"])
        if answer["Repeated"]:
            output.failure("This room was being recorded already; the session took the fresh secrets.")
        for warning in answer["Warnings"]:
            output.failure(f"warning: {warning}")


@app.command()
def stop(task_id: TaskId, as_json: AsJson = False) -> None:
    """End a session: what was recorded is finished and uploaded."""
    with _exits(as_json=as_json):
        answer = _service().stop(task_id)
        output.as_json(answer) if as_json else output.line(f"{answer['TaskId']} {answer['State']}")


@app.command()
def sessions(
    state: Annotated[State | None, typer.Option(help="Only sessions in this state.", case_sensitive=False)] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only those that a person should look at: why, and what to type.")
    ] = False,
    room: Annotated[str, typer.Option(help="Only sessions in this room, integer or string.")] = "",
    sdk_app_id: Annotated[int, typer.Option("--app", min=0, help="Only sessions of this TRTC application.")] = 0,
    since: Annotated[str, typer.Option(help="Only sessions opened since: 2h, 7d, or a time such as 2026-11-02T08:00.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    before: Annotated[str, typer.Option(help="Only sessions older than this TaskId.")] = "",
    as_json: AsJson = False,
) -> None:
    """List sessions, newest first."""
    with _exits(as_json=as_json):
        filters = {"state": state.value if state else "", "stuck": "true" if stuck else "", "room": room, "before": before}
        filters |= {"app": str(sdk_app_id) if sdk_app_id else "", "since": request_input.since(since, time.time())}
        answer = _pages(_service(), limit, filters)
        if as_json:
            output.as_json(answer)
        elif stuck:
            output.stuck(answer)
        else:
            output.sessions(answer)


@app.command()
def show(
    task_id: TaskId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it is Finished.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show a session: its recordings, what is missing in them, what happened, and what to type next."""
    with _exits(as_json=as_json):
        if watch:
            _watch(_service(), task_id, every_s, as_json=as_json)
            return
        answer = _service().session(task_id)
        output.as_json(answer) if as_json else output.session(answer)


@app.command()
def results(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come, until interrupted.")] = False,
    after: Annotated[str, typer.Option(help="Only results behind this cursor; `now`: only those to come.")] = "",
    types: Annotated[list[str] | None, typer.Option("--type", help="Only results of this type; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each result as JSON on a line of its own.")] = False,
) -> None:
    """Print the results of all sessions, oldest first: what became of every file."""
    with _exits(as_json=as_json):
        for number, found in enumerate(polling.results(_service(), after=after, types=types or (), follow=follow)):
            output.result(found, as_json=as_json, first=number == 0)


@app.command()
def replay(
    task_id: TaskId,
    speaker: Annotated[str, typer.Option(help="Only this speaker's recordings.")] = "",
    n: Annotated[int | None, typer.Option("--n", help="Only this recording of the speaker.")] = None,
    stage: Annotated[Stage | None, typer.Option("--from", help="An earlier stage than the latest whose files exist.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    user_sig: UserSig = "",
    secret_id: SecretId = "",
    secret_key: SecretKey = "",
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Try again what failed or is stuck, with fresh credentials if there are any."""
    fields = {"Speaker": speaker, "N": n, "From": stage.value if stage else None, "DryRun": dry_run, "UserSig": user_sig}
    cos = {"SecretId": secret_id, "SecretKey": secret_key, "Token": token}
    with _exits(as_json=as_json):
        answer = _service().replay(task_id, request_input.replay(fields, cos, os.environ))
        output.as_json(answer) if as_json else output.replay(answer, dry_run=dry_run)


def report(found: list[doctor.Finding], *, as_json: bool) -> int:
    """Print what `doctor` found; returns the exit code."""
    verdict = doctor.verdict(found)
    lines = [{name.capitalize(): text for name, text in dataclasses.asdict(f).items()} for f in found]
    if as_json:
        output.as_json({"Status": verdict, "Checks": lines})
    else:
        output.findings(lines, verdict=verdict)
    return client.REFUSED if verdict == doctor.FAIL else client.OK


def _service() -> client.Client:
    url = os.environ.get("RECORDER_URL") or client.DEFAULT_URL
    return client.Client(url=url, token=os.environ.get("RECORDER_TOKEN", ""))


def _pages(service: client.Client, limit: int, filters: dict[str, str]) -> dict[str, Any]:
    """So many sessions, asked for page by page, as one answer."""
    whole: dict[str, Any] = {"Sessions": [], "Next": filters["before"]}
    while len(whole["Sessions"]) < limit:
        page = min(PAGE, limit - len(whole["Sessions"]))
        answer = service.sessions(**filters | {"before": whole["Next"], "limit": str(page)})
        whole = {**answer, "Sessions": whole["Sessions"] + answer["Sessions"]}
        if not whole["Next"]:
            break
    return whole


def _watch(service: client.Client, task_id: str, every_s: float, *, as_json: bool) -> None:
    with live_screen.screen(as_json=as_json) as show_it:
        for answer in polling.session(service, task_id, every_s):
            show_it(answer)


@contextmanager
def _exits(*, as_json: bool) -> Iterator[None]:
    """Errors as one sentence on standard error (with --json, the service's answer on standard output), and the exit code."""
    try:
        yield
    except request_input.UsageError as error:
        output.failure(str(error))
        raise typer.Exit(client.USAGE) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(client.INTERRUPTED) from error
    except client.ClientError as error:
        if as_json and error.body:
            output.as_json(error.body)
        else:
            output.failure(str(error))
        raise typer.Exit(error.exit_code) from error
