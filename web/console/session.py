"""The page of one session: machines, timeline, recordings, results and deliveries; live views and files; stop, replay, resend.

Rules: an action is the event that the API would make of it, so the same handler decides and audits it. A replay is previewed by a
dry run before it is confirmed. Playing needs the scope `watch`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import fastapi
import pydantic
from starlette import responses

from events import errors as event_errors
from machine import api_keys, errors, job_key
from web import attention_watch, dependencies, live, request_body, sessions
from web import responses as api_responses
from web.console import frame as frames
from web.console import session_page, times

RECORDINGS = 50
TIMELINE = 500
_CONFIRMED = re.compile(r"[0-9A-Za-z-]{1,64}")
_CREDENTIALS = ("SecretId", "SecretKey", "Token")


class View(pydantic.BaseModel):
    """Query parameters of the page: the pages of its lists, as in `sessions.SessionPage`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    recordings: int = pydantic.Field(0, ge=0, le=sessions.MAX_NUMBER)
    timeline: int = pydantic.Field(0, ge=0, le=sessions.MAX_CURSOR)


def add(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
    """Register the page, what it plays, and its actions."""

    @routes.get("/sessions/{TaskId}")
    async def show(
        request: fastapi.Request, task_id: sessions.TaskId, query: Annotated[View, fastapi.Query()]
    ) -> fastapi.Response:
        wanted = sessions.SessionPage(recordings=query.recordings, timeline=query.timeline, limit=TIMELINE, results=0)
        snapshot, pages = await sessions.read(api, watch, task_id, wanted, recordings=RECORDINGS)

        updates = await frame.live()

        def made() -> responses.Response:
            page = session_page.page(snapshot, pages, api.progress())
            plays = api_keys.WATCH in request.state.scopes and any(card.playable for card in page.cards)
            return frame.page(
                request,
                "session.html",
                active="sessions",
                live=updates,
                media=[api.file_origin(page.session.request)] if plays else [],
                page=page,
                path=_path(task_id),
                ms=session_page.ms,
                utc=session_page.utc,
                as_json=session_page.as_json,
                duration=times.duration,
            )

        # A large page takes a moment to draw.
        return await asyncio.to_thread(made)

    _add_media(routes, api)
    _add_actions(routes, frame, api)


def _add_media(routes: fastapi.APIRouter, api: dependencies.Api) -> None:
    """What the page plays. A refusal is data: the script of the page shows its message."""

    @routes.get("/sessions/{TaskId}/live")
    async def watch(
        request: fastapi.Request, task_id: sessions.TaskId, speaker: live.Speaker, n: live.Number = 1
    ) -> fastapi.Response:
        try:
            return await live.view(api, request, task_id, speaker, n)
        except errors.RecorderError as error:
            return _refused(request, error)

    @routes.get("/sessions/{TaskId}/file")
    async def file(
        request: fastapi.Request, task_id: sessions.TaskId, speaker: live.Speaker, n: live.Number = 1
    ) -> fastapi.Response:
        try:
            sessions.check_task_id(task_id)
            key = job_key.RecordingKey(task_id, speaker, n)
            address = await api.file_url(key)
        except errors.RecorderError as error:
            return _refused(request, error)
        await api.audit(request.state.caller, "play", key.text, "ok")
        return responses.RedirectResponse(address, 303)


def _add_actions(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api) -> None:
    async def decide(request: fastapi.Request, type_: str, data: dict[str, Any], id_: str) -> dict[str, Any]:
        return await api.decide(request_body.event(api, type_, id=id_, data=data), request.state.caller)

    @routes.post("/sessions/{TaskId}/stop")
    async def stop(request: fastapi.Request, task_id: sessions.TaskId) -> fastapi.Response:
        sessions.check_task_id(task_id)
        await decide(request, "stop", {"TaskId": task_id}, _event_id(request, task_id))
        return frame.back(request, _path(task_id), notice="session.stopped")

    @routes.post("/sessions/{TaskId}/resend")
    async def resend(request: fastapi.Request, task_id: sessions.TaskId) -> fastapi.Response:
        sessions.check_task_id(task_id)
        answer = await decide(request, "resend", {"TaskId": task_id} | _given(request, "Revision"), _event_id(request, task_id))
        return frame.back(request, _path(task_id), notice="session.resent", revision=answer["Revision"])

    @routes.post("/sessions/{TaskId}/replay")
    async def replay(request: fastapi.Request, task_id: sessions.TaskId) -> fastapi.Response:
        sessions.check_task_id(task_id)
        data = {"TaskId": task_id} | _given(request, "Speaker", "N", "From")
        if "confirmed" in request.state.form:
            answer = await decide(request, "replay", data | _fresh(request), _event_id(request, task_id))
            return frame.back(request, _path(task_id), notice="session.replayed", number=len(answer["Recordings"]))
        # Under the id of the form, the answer of the dry run would become that of the replay.
        preview = await decide(request, "replay", data | {"DryRun": True}, api_responses.request_id(request))
        return frame.page(
            request,
            "session_replay.html",
            active="sessions",
            path=_path(task_id),
            task_id=task_id,
            fields=_given(request, "Speaker", "N", "From") | {"id": api.new_id(), "confirmed": "yes"},
            preview=preview,
            as_json=session_page.as_json,
        )


def _path(task_id: str) -> str:
    return f"/console/sessions/{task_id}"


def _refused(request: fastapi.Request, error: errors.RecorderError) -> fastapi.Response:
    return api_responses.failed(api_responses.request_id(request), error.http_status, error.code, error.message)


def _event_id(request: fastapi.Request, task_id: str) -> str:
    """The id of the form's event: a form that is sent twice acts once. Raises InvalidEvent."""
    id_ = request.state.form.get("id", "")
    if not _CONFIRMED.fullmatch(id_):
        raise event_errors.InvalidEvent("id", "is not that of a form of this page")
    return f"console-{task_id}-{request.state.caller.key_id}-{id_}"


def _given(request: fastapi.Request, *names: str) -> dict[str, Any]:
    """These fields of the form, except empty ones. The reader of the event checks them."""
    return {name: value for name in names if (value := request.state.form.get(name, ""))}


def _fresh(request: fastapi.Request) -> dict[str, Any]:
    """The fresh credentials of the form, if there are any."""
    cos = _given(request, *_CREDENTIALS)
    return _given(request, "UserSig") | ({"CosConfig": cos} if cos else {})
