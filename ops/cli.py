"""The operator's commands: start, stop, sessions, show, replay. Clients of the HTTP API. Imports nothing of ours but this room.

Rules: RECORDER_URL and RECORDER_TOKEN say which service; exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the service
cannot be reached, 4 no such session. `service.py` adds the commands that are the service.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ops import client, printing, requests

app = typer.Typer(
    name="recorder",
    help="Records live TRTC rooms, one file per speaker. The commands ask the service at RECORDER_URL with RECORDER_TOKEN.",
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
UserSig = Annotated[str, typer.Option(help=f"UserSig of the recording user; better in {requests.USER_SIG}.")]
SecretId = Annotated[str, typer.Option(help=f"COS secret id; better in {requests.SECRET_ID}.")]
SecretKey = Annotated[str, typer.Option(help=f"COS secret key; better in {requests.SECRET_KEY}.")]
Token = Annotated[str, typer.Option(help=f"Session token of temporary COS credentials; better in {requests.TOKEN}.")]


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
        answer = _service().start(requests.start(requests.body(body, file), fields, cos, os.environ), key=key)
        if as_json:
            printing.as_json(answer)
            return
        printing.line(answer["TaskId"])
        if answer["Repeated"]:
            printing.failure("This room was being recorded already; the session took the fresh secrets.")
        for warning in answer["Warnings"]:
            printing.failure(f"warning: {warning}")


@app.command()
def stop(task_id: TaskId, as_json: AsJson = False) -> None:
    """End a session: what was recorded is finished and uploaded."""
    with _exits(as_json=as_json):
        answer = _service().stop(task_id)
        printing.as_json(answer) if as_json else printing.line(f"{answer['TaskId']} {answer['State']}")


@app.command()
def sessions(
    state: Annotated[State | None, typer.Option(help="Only sessions in this state.", case_sensitive=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 50,
    before: Annotated[str, typer.Option(help="Only sessions older than this TaskId.")] = "",
    as_json: AsJson = False,
) -> None:
    """List sessions, newest first."""
    with _exits(as_json=as_json):
        answer = _service().sessions(state=state.value if state else "", limit=limit, before=before)
        printing.as_json(answer) if as_json else printing.sessions(answer)


@app.command()
def show(task_id: TaskId, as_json: AsJson = False) -> None:
    """Show a session: its recordings, what happened, and what to type next."""
    with _exits(as_json=as_json):
        answer = _service().session(task_id)
        printing.as_json(answer) if as_json else printing.session(answer)


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
        answer = _service().replay(task_id, requests.replay(fields, cos, os.environ))
        printing.as_json(answer) if as_json else printing.replay(answer, dry_run=dry_run)


def _service() -> client.Client:
    url = os.environ.get("RECORDER_URL") or client.DEFAULT_URL
    return client.Client(url=url, token=os.environ.get("RECORDER_TOKEN", ""))


@contextmanager
def _exits(*, as_json: bool) -> Iterator[None]:
    """Errors as one sentence on standard error (with --json, the service's answer on standard output), and the exit code."""
    try:
        yield
    except requests.UsageError as error:
        printing.failure(str(error))
        raise typer.Exit(client.USAGE) from error
    except client.ClientError as error:
        if as_json and error.body:
            printing.as_json(error.body)
        else:
            printing.failure(str(error))
        raise typer.Exit(error.exit_code) from error
