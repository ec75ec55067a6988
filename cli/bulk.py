"""Bulk actions: replay, stop or resend for all sessions that match a filter.

Rules: the matching sessions are listed and counted first, and only these are acted on, after a confirmation. Each part of them is
one request under an Idempotency-Key, so a part that was cut off is sent again and nothing is done twice. After an interruption
the same command goes on: sessions that were dealt with no longer match.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import typer

from cli import client, exits, output, request_input
from machine import errors

PAGE = 100
# Sessions in one request: few, so that the progress moves and no request is long.
PART = 20
PAUSE_S = 1.0
TRIES = 60
SHOWN = 10
OK, NOT_NEEDED = "ok", "NotNeeded"
Json = dict[str, Any]


def run(action: str, filters: dict[str, str], *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Preview, confirm, act, show the progress. `filters` are those of GET /sessions. Ends the command with REFUSED if a session
    was refused."""
    reached = client.of_environment()
    found = _matching(reached, filters)
    if not found:
        if as_json:
            output.as_json({"Count": 0, "Outcomes": []})
        output.failure("No session matches.")
        return
    if not dry_run and not as_json:
        _preview(action, found)
    if dry_run:
        _listed(found, as_json=as_json)
        return
    if not yes:
        _confirm(action, len(found))
    outcomes = _act(reached, action, [session["TaskId"] for session in found], as_json=as_json)
    if as_json:
        output.as_json({"Count": len(found), "Outcomes": outcomes})
    refused = [each for each in outcomes if each["Code"] not in (OK, NOT_NEEDED)]
    done, left = (sum(each["Code"] == code_ for each in outcomes) for code_ in (OK, NOT_NEEDED))
    output.failure(f"{done} of {len(found)} done, {left} needed nothing any more, {len(refused)} refused.")
    if refused:
        raise typer.Exit(exits.REFUSED)


def _matching(reached: client.ServiceClient, filters: dict[str, str]) -> list[Json]:
    """All sessions that match. The list is read to its end first, because a session leaves it when it is acted on."""
    found: list[Json] = []
    before = ""
    while True:
        page = reached.sessions(**filters, limit=str(PAGE), before=before)
        found += page["Sessions"]
        before = page["Next"]
        if not before:
            return found


def _preview(action: str, found: list[Json]) -> None:
    output.failure(f"{len(found)} sessions match. `{action}` is for:")
    for session in found[:SHOWN]:
        room = session["RoomId"] or session["StrRoomId"]
        why = session["Stuck"][0]["Why"] if session["Stuck"] else session["State"]
        output.failure(f"  {session['TaskId']}  room {room}  {why}")
    if len(found) > SHOWN:
        output.failure(f"  … and {len(found) - SHOWN} more; --dry-run lists all.")


def _listed(found: list[Json], *, as_json: bool) -> None:
    ids = [session["TaskId"] for session in found]
    if as_json:
        output.as_json({"Count": len(ids), "TaskIds": ids})
        return
    for id_ in ids:
        output.line(id_)
    output.failure(f"{len(ids)} sessions match. Nothing was done: this was a dry run.")


def _confirm(action: str, count: int) -> None:
    """Ask on a terminal. Raises UsageError elsewhere: nobody could answer."""
    if not sys.stdin.isatty():
        raise request_input.UsageError(f"{count} sessions match; --yes confirms that all of them are meant.")
    if not typer.confirm(f"{action} {count} sessions?", err=True):
        raise typer.Exit(exits.REFUSED)


def _act(reached: client.ServiceClient, action: str, ids: list[str], *, as_json: bool) -> list[Json]:
    """Act part by part. An outcome is printed as soon as it is known."""
    outcomes: list[Json] = []
    key = f"bulk-{uuid.uuid4().hex}"
    for first in range(0, len(ids), PART):
        try:
            answer = _patiently(reached, action, ids[first : first + PART], key)
        except client.ClientError as error:
            told = f"{error} {len(outcomes)} of {len(ids)} sessions are dealt with; repeat the command for the others."
            raise client.ClientError(told, error.exit_code) from error
        outcomes += answer["Outcomes"]
        if not as_json:
            for each in answer["Outcomes"]:
                output.plain((each["TaskId"], each["Code"], each["Message"]))
            if sys.stderr.isatty():
                output.failure(f"{len(outcomes)} of {len(ids)}")
    return outcomes


def _patiently(reached: client.ServiceClient, action: str, ids: list[str], key: str) -> Json:
    """Send one part; repeat what the rate limit refuses, and what got no answer, which the key makes safe."""
    for tries in range(TRIES):
        try:
            return reached.bulk(action, ids, key=key)
        except client.ClientError as error:
            limited = error.body.get("Code") == errors.QuotaReached.code
            if tries == TRIES - 1 or not (limited or (error.exit_code == exits.UNREACHABLE and tries < 3)):
                raise
        time.sleep(PAUSE_S)
    raise AssertionError("the last try returns or raises")
