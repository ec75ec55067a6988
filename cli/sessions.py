"""Commands for sessions: start, stop, sessions, show, results, replay, resend. Each is a client of the HTTP API.

Rule: RECORDER_URL and RECORDER_TOKEN name the service; the exit codes are those of `cli.exits`.
"""

from __future__ import annotations

import collections
import enum
import os
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import bulk, client, exits, live_screen, output, polling, request_input, task_ids, times
from machine import errors

PAGE = 100
RATE_LIMIT_PAUSE_S = 1.0
RATE_LIMIT_TRIES = 60
# The lists of a session that come in pages.
PAGED = ("Recordings", "Timeline", "Results")


class Stage(enum.StrEnum):
    """Stages that a replay can start from."""

    JOINING = "joining"
    TRANSCODING = "transcoding"
    UPLOADING = "uploading"


class State(enum.StrEnum):
    """States of a session."""

    OPEN = "Open"
    CLOSING = "Closing"
    FINISHED = "Finished"


class Code(enum.StrEnum):
    """Codes of recordings that have ended."""

    SUCCESS = "Success"
    PARTIAL = "Partial"
    FAILED_RECORDING = "FailedRecording"
    FAILED_TRANSCODE = "FailedTranscode"
    FAILED_COS_WRITE = "FailedCosWrite"


class Mode(enum.StrEnum):
    """Recorded tracks."""

    AUDIO = "00"
    VIDEO = "01"
    BOTH = "02"


ID = "Id of the session, or its first 6 characters or more."
TaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help=ID)]
OneTaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help=ID, show_default=False)]
# The filters of a bulk action, which takes the place of a TASK_ID.
RoomOf = Annotated[str, typer.Option("--room", help="All sessions in this room, integer or string.")]
AppOf = Annotated[int, typer.Option("--app", min=0, help="All sessions of this TRTC application.")]
SinceOf = Annotated[str, typer.Option("--since", help="All sessions opened since: 2h, 7d or a time such as 2026-11-02T08:00.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Act on all sessions that match, without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done, or the sessions that match.")]
UserSig = Annotated[str, typer.Option(help=f"UserSig of the recording user; better in {request_input.USER_SIG}.")]
SecretId = Annotated[str, typer.Option(help=f"COS secret id; better in {request_input.SECRET_ID}.")]
SecretKey = Annotated[str, typer.Option(help=f"COS secret key; better in {request_input.SECRET_KEY}.")]
Token = Annotated[str, typer.Option(help=f"Session token of temporary COS credentials; better in {request_input.TOKEN}.")]


def start(
    sdk_app_id: Annotated[int | None, typer.Option(help="TRTC application.")] = None,
    room: Annotated[int | None, typer.Option(help="Integer room.")] = None,
    str_room: Annotated[str, typer.Option(help="String room.")] = "",
    user: Annotated[str, typer.Option(help="Recording user, unique in the room.")] = "",
    user_sig: UserSig = "",
    region: Annotated[str, typer.Option(help="COS region, such as ap-shanghai.")] = "",
    bucket: Annotated[str, typer.Option(help="Bucket, such as lessons-1250000000.")] = "",
    path: Annotated[str, typer.Option(help="Folder in the bucket; / for its root.")] = "",
    secret_id: SecretId = "",
    secret_key: SecretKey = "",
    token: Token = "",
    mode: Annotated[Mode | None, typer.Option(help="00 audio (MP3), 01 video, 02 both (MP4).")] = None,
    callback: Annotated[str, typer.Option(help="URL that receives the result.")] = "",
    subscribe: Annotated[list[str] | None, typer.Option(help="Record only this speaker; may be repeated.")] = None,
    unsubscribe: Annotated[list[str] | None, typer.Option(help="Record all speakers but this; may be repeated.")] = None,
    body: Annotated[str, typer.Option(help="The request as JSON; options override it.")] = "",
    file: Annotated[Path | None, typer.Option(help="The request as a JSON file; - is standard input.")] = None,
    key: Annotated[str, typer.Option(help="Idempotency-Key: a repeat with the same key changes nothing.")] = "",
    as_json: output.AsJson = False,
) -> None:
    """Start recording a room. Prints the TaskId."""
    fields: dict[str, Any] = {"SdkAppId": sdk_app_id, "RoomId": room, "StrRoomId": str_room, "UserId": user, "UserSig": user_sig}
    fields |= {"Mode": mode.value if mode else None, "Callback": callback}
    fields |= {"SubscribeUserIds": subscribe, "UnSubscribeUserIds": unsubscribe}
    cos = {"Region": region, "Bucket": bucket, "Path": path, "SecretId": secret_id, "SecretKey": secret_key, "Token": token}
    # Whoever gives a body thinks in its fields.
    words = {} if body or file else request_input.OPTIONS
    with exits.handled(as_json=as_json, words=words):
        answer = _service().start(request_input.start(request_input.body(body, file), fields, cos, os.environ), key=key)
        if as_json:
            output.as_json(answer)
            return
        output.line(answer["TaskId"])
        if answer["Repeated"]:
            output.failure("This room is being recorded already; its session now has the new secrets.")
        for warning in answer["Warnings"]:
            output.failure(f"warning: {exits.translated(warning, words)}")


def stop(
    task_id: OneTaskId = "",
    room: RoomOf = "",
    sdk_app_id: AppOf = 0,
    since: SinceOf = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: output.AsJson = False,
) -> None:
    """Stop a session, or all Open ones that match filters.

    Their files are then finished and uploaded.
    """
    with exits.handled(as_json=as_json):
        if filters := _bulk(task_id, {}, room, sdk_app_id, since, yes=yes or dry_run):
            bulk.run("stop", filters | {"state": "Open"}, yes=yes, dry_run=dry_run, as_json=as_json)
            return
        service = _service()
        answer = service.stop(task_ids.resolve(service, task_id))
        output.as_json(answer) if as_json else output.line(f"{answer['TaskId']} {answer['State']}")


def sessions(
    state: Annotated[State | None, typer.Option(help="Only sessions in this state.", case_sensitive=False)] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only sessions that need attention, with the reason and the command.")
    ] = False,
    room: Annotated[str, typer.Option(help="Only sessions in this room, integer or string.")] = "",
    sdk_app_id: Annotated[int, typer.Option("--app", min=0, help="Only sessions of this TRTC application.")] = 0,
    user: Annotated[str, typer.Option(help="Only sessions of this recording user.")] = "",
    speaker: Annotated[str, typer.Option(help="Only sessions with this speaker.")] = "",
    node: Annotated[str, typer.Option(help="Only sessions of which this node holds a job now.")] = "",
    code: Annotated[Code | None, typer.Option(help="Only sessions with a recording of this Code.", case_sensitive=False)] = None,
    since: Annotated[str, typer.Option(help="Only sessions opened since: 2h, 7d or a time such as 2026-11-02T08:00.")] = "",
    until: Annotated[str, typer.Option(help="Only sessions opened before: 2h, 7d or a time such as 2026-11-02T08:00.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Number of sessions.")] = 50,
    before: Annotated[str, typer.Option(help="Only sessions older than this TaskId.")] = "",
    utc: times.Utc = False,
    as_json: output.AsJson = False,
) -> None:
    """List sessions, newest first."""
    with exits.handled(as_json=as_json):
        filters = {"state": state.value if state else "", "stuck": "true" if stuck else "", "room": room, "before": before}
        filters |= {"app": str(sdk_app_id) if sdk_app_id else "", "since": request_input.since(since, time.time())}
        filters |= {"user": user, "speaker": speaker, "node": node, "code": code.value if code else ""}
        filters["until"] = request_input.since(until, time.time(), "--until")
        answer = _pages(_service(), limit, filters)
        if as_json:
            output.as_json(answer)
        elif stuck:
            output.stuck(answer)
        else:
            output.sessions(answer)
        if answer["Next"]:
            output.failure(f"Older ones: recorder sessions{_options(filters | {'before': answer['Next']})}")


def _options(filters: dict[str, str]) -> str:
    """The options of `recorder sessions` with these filters."""
    given = ((name, "" if text == "true" else f" {shlex.quote(text)}") for name, text in filters.items() if text)
    return "".join(f" --{name}{text}" for name, text in given)


def show(
    task_id: TaskId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show progress until the session is Finished.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.1, max=3600, help="Seconds between two updates.")] = 1.0,
    utc: times.Utc = False,
    as_json: output.AsJson = False,
) -> None:
    """Show a session: recordings, gaps, timeline and next command."""
    with exits.handled(as_json=as_json):
        service = _service()
        task_id = task_ids.resolve(service, task_id)
        if watch:
            _watch(service, task_id, every_s, as_json=as_json)
            return
        answer = _whole_session(service, task_id)
        output.as_json(answer) if as_json else output.session(answer)


def results(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new results until interrupted.")] = False,
    after: Annotated[str, typer.Option(help="Only results after this cursor; `now`: only new ones.")] = "",
    types: Annotated[list[str] | None, typer.Option("--type", help="Only results of this type; may be repeated.")] = None,
    utc: times.Utc = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each result as JSON on a line of its own.")] = False,
) -> None:
    """Print the results of all sessions, oldest first."""
    with exits.handled(as_json=as_json):
        for number, found in enumerate(polling.results(_service(), after=after, types=types or (), follow=follow)):
            output.result(found, as_json=as_json, first=number == 0)


def replay(
    task_id: OneTaskId = "",
    stuck: Annotated[bool, typer.Option("--stuck", help="All sessions that need attention.")] = False,
    code: Annotated[
        Code | None, typer.Option(help="All that need attention with a recording of this Code.", case_sensitive=False)
    ] = None,
    room: RoomOf = "",
    sdk_app_id: AppOf = 0,
    since: SinceOf = "",
    yes: Yes = False,
    speaker: Annotated[str, typer.Option(help="Only this speaker's recordings.")] = "",
    n: Annotated[int | None, typer.Option("--n", help="Only this recording of the speaker.")] = None,
    stage: Annotated[Stage | None, typer.Option("--from", help="Start here, not at the latest stage whose files exist.")] = None,
    dry_run: DryRun = False,
    user_sig: UserSig = "",
    secret_id: SecretId = "",
    secret_key: SecretKey = "",
    token: Token = "",
    as_json: output.AsJson = False,
) -> None:
    """Retry failed or stuck recordings of one session, or of many.

    Credentials that are given replace those of the session.
    """
    fields = {"Speaker": speaker, "N": n, "From": stage.value if stage else None, "DryRun": dry_run, "UserSig": user_sig}
    cos = {"SecretId": secret_id, "SecretKey": secret_key, "Token": token}
    with exits.handled(as_json=as_json, words=request_input.OPTIONS):
        wanted = ({"stuck": "true"} if stuck else {}) | ({"code": code.value} if code else {})
        if filters := _bulk(task_id, wanted, room, sdk_app_id, since, yes=yes):
            if any((speaker, n, stage, user_sig, secret_id, secret_key, token)):
                raise request_input.UsageError("--speaker, --n, --from and credentials are for one session: give its TASK_ID.")
            bulk.run("replay", filters | {"stuck": "true"}, yes=yes, dry_run=dry_run, as_json=as_json)
            return
        service = _service()
        answer = service.replay(task_ids.resolve(service, task_id), request_input.replay(fields, cos, os.environ))
        output.as_json(answer) if as_json else output.replay(answer, dry_run=dry_run)


def resend(
    task_id: Annotated[str, typer.Argument(metavar="[TASK_ID]", help=ID, show_default=False)] = "",
    revision: Annotated[int | None, typer.Option(min=1, help="This revision of the result; the newest by default.")] = None,
    all_failed: Annotated[
        bool, typer.Option("--all-failed", help="The newest result of every session whose receiver did not accept it.")
    ] = False,
    room: RoomOf = "",
    sdk_app_id: AppOf = 0,
    since: SinceOf = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: output.AsJson = False,
) -> None:
    """Post a result to its callback URL again.

    It has the same webhook-id as before, so a receiver can deduplicate.
    """
    with exits.handled(as_json=as_json):
        if bool(task_id) == all_failed or (all_failed and revision):
            raise request_input.UsageError("Give TASK_ID, with --revision or without, or --all-failed.")
        if room or sdk_app_id or since or yes or dry_run:
            filters = _bulk(task_id, {"undelivered": "true"}, room, sdk_app_id, since, yes=yes or dry_run)
            bulk.run("resend", filters, yes=yes, dry_run=dry_run, as_json=as_json)
            return
        service = _service()
        if all_failed:
            answers, refused = _resend_all(service)
        else:
            task_id = task_ids.resolve(service, task_id)
            answers, refused = [service.resend(task_id, {"Revision": revision} if revision else {})], []
        output.as_json({"Resent": answers, "Refused": refused} if all_failed else answers[0]) if as_json else output.resent(
            answers, refused
        )
        if refused:
            raise typer.Exit(exits.REFUSED)


def _resend_all(service: client.ServiceClient) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Post again whatever was given up; returns the answers, and the refusals by TaskId. The list is read to its end first,
    because a session leaves it as soon as its result is posted again."""
    wanted: list[str] = []
    before = ""
    while True:
        page = service.sessions(undelivered="true", limit=str(PAGE), before=before)
        wanted += [session["TaskId"] for session in page["Sessions"]]
        before = page["Next"]
        if not before:
            break
    answers, refused = [], []
    for task_id in wanted:
        try:
            answers.append(_resend_when_allowed(service, task_id))
        except client.ClientError as error:
            if error.exit_code not in (exits.REFUSED, exits.NOT_FOUND):
                done = f"{len(answers)} of {len(wanted)} results are posted again; repeat the command for the others."
                raise client.ClientError(f"{error} {done}", error.exit_code) from error
            refused.append({"TaskId": task_id, "Message": str(error)})
    return answers, refused


def _resend_when_allowed(service: client.ServiceClient, task_id: str) -> dict[str, Any]:
    """Resend, and repeat what the key's rate limit refuses. The limit is one for a minute, so a longer wait is an error."""
    for _ in range(RATE_LIMIT_TRIES):
        try:
            return service.resend(task_id, {})
        except client.ClientError as error:
            if error.body.get("Code") != errors.QuotaReached.code:
                raise
            time.sleep(RATE_LIMIT_PAUSE_S)
    return service.resend(task_id, {})


def _bulk(task_id: str, wanted: dict[str, str], room: str, sdk_app_id: int, since: str, *, yes: bool) -> dict[str, str]:
    """The filters of a bulk action; none for one session. Raises UsageError for both, or neither."""
    given = wanted | {
        "room": room,
        "app": str(sdk_app_id) if sdk_app_id else "",
        "since": request_input.since(since, time.time()),
    }
    filters = {name: value for name, value in given.items() if value}
    if bool(task_id) == bool(filters):
        raise request_input.UsageError("Give TASK_ID, or filters for all sessions that match; `--help` lists them.")
    if task_id and yes:
        raise request_input.UsageError("Only a bulk action is confirmed: it takes filters in place of TASK_ID.")
    return filters


def _service() -> client.ServiceClient:
    url = os.environ.get("RECORDER_URL") or client.DEFAULT_URL
    return client.ServiceClient(url=url, token=os.environ.get("RECORDER_TOKEN", ""))


def _pages(service: client.ServiceClient, limit: int, filters: dict[str, str]) -> dict[str, Any]:
    """Read `limit` sessions page by page, and return them as one answer."""
    whole: dict[str, Any] = {"Sessions": [], "Next": filters["before"]}
    while len(whole["Sessions"]) < limit:
        page = min(PAGE, limit - len(whole["Sessions"]))
        answer = service.sessions(**filters | {"before": whole["Next"], "limit": str(page)})
        whole = {**answer, "Sessions": whole["Sessions"] + answer["Sessions"]}
        if not whole["Next"]:
            break
    return whole


def newest_files(task_id: str) -> list[dict[str, Any]]:
    """The files in the newest result of a session; none before it has one."""
    service = _service()
    results = service.session(task_ids.resolve(service, task_id))["Results"]
    newest: dict[str, Any] = max(results, key=lambda result: result.get("Revision", 1), default={"Files": []})
    return [file for file in newest["Files"] if file["RecordFile"]]


def _whole_session(service: client.ServiceClient, task_id: str) -> dict[str, Any]:
    """Read all pages of a session's lists, and return them as one answer."""
    whole = service.session(task_id)
    while cursors := {name: whole[f"{name}Next"] for name in PAGED if whole.get(f"{name}Next")}:
        page = service.session(task_id, **{name.lower(): cursor for name, cursor in cursors.items()})
        for name in cursors:
            # Recordings continue forwards, the others backwards.
            both = (whole[name], page[name]) if name == "Recordings" else (page[name], whole[name])
            whole = {**whole, name: [*both[0], *both[1]], f"{name}Next": page[f"{name}Next"]}
    return {**whole, "Timeline": _folded(whole["Timeline"])}


def _folded(timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The service folds the repeats of one page; this folds those of several, in the place of the last one."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    moves: collections.Counter[str] = collections.Counter()
    for entry in timeline:
        if entry["To"] and entry["From"] != entry["To"]:
            moves[entry["Of"]] += 1
        key = (moves[entry["Of"]], *(entry[name] for name in ("Of", "Event", "From", "To", "Note")))
        before = found.pop(key, None)
        more = {"Count": before["Count"] + entry["Count"], "FirstTime": before["FirstTime"]} if before else {}
        found[key] = {**entry, **more}
    return list(found.values())


def _watch(service: client.ServiceClient, task_id: str, every_s: float, *, as_json: bool) -> None:
    with live_screen.screen(as_json=as_json) as draw:
        for answer in polling.session(service, task_id, every_s):
            draw(answer)
