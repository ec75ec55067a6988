"""Routes of sessions: start, list, show, stop, replay, resend.

Rule: a POST becomes one event, which this process decides. The response is sent after the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import fastapi
import pydantic
import structlog

from events import codec, reader
from events import errors as event_errors
from machine import errors, job_key
from web import (
    attention_watch,
    dependencies,
    examples,
    models,
    openapi,
    request_body,
    responses,
    session_filter,
    session_models,
    stuck,
    stuck_sessions,
    views,
)

# The types of the columns: PostgreSQL refuses larger numbers.
MAX_NUMBER = 2**31 - 1
MAX_CURSOR = 2**63 - 1
RECORDINGS = 200
TIMELINE = 1_000
CONFLICT = {"model": models.ConflictBody, "description": "Another session records this room under this UserId."}
DRY_RUN = {"model": session_models.ReplayedBody, "description": "A dry run: the effect that a replay would have."}

Filter = Annotated[session_filter.SessionFilter, fastapi.Query()]
TaskId = Annotated[str, fastapi.Path(alias="TaskId", description="Id of the session, a ULID.")]


class SessionPage(pydantic.BaseModel):
    """Query parameters of GET /sessions/{TaskId}: the pages of its lists; any other parameter is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    recordings: int = pydantic.Field(0, ge=0, le=MAX_NUMBER, description="`RecordingsNext` of the page before.")
    timeline: int = pydantic.Field(0, ge=0, le=MAX_CURSOR, description="`TimelineNext` of the page before: older lines follow.")
    results: int = pydantic.Field(0, ge=0, le=MAX_NUMBER, description="`ResultsNext` of the page before: older revisions follow.")
    limit: int = pydantic.Field(
        TIMELINE, ge=1, le=TIMELINE, description="The largest number of timeline lines, before repeats are folded."
    )


def router(api: dependencies.Api, watch: attention_watch.AttentionWatch) -> fastapi.APIRouter:
    """The routes of one service."""
    routes = fastapi.APIRouter(prefix="/sessions", tags=["sessions"])
    _add_requests(routes, api)
    _add_queries(routes, api, watch)
    return routes


def _add_requests(routes: fastapi.APIRouter, api: dependencies.Api) -> None:
    """Start, stop, replay and resend: each POST becomes one event."""

    @routes.post(
        "",
        status_code=202,
        summary="Start recording a room",
        response_model=session_models.AcceptedBody,
        response_description="The start was accepted.",
        responses={**openapi.failures(400, 408, 413, 415, 422, 503, 507), 409: CONFLICT},
        openapi_extra=openapi.request_body("start", examples.START),
    )
    async def start(request: fastapi.Request) -> fastapi.Response:
        event_id = request_body.event_id(request, "start")
        event = request_body.event(api, "start", id=event_id, data=await request_body.json_object(request))
        answer = await api.decide(event, request.state.caller)
        structlog.contextvars.bind_contextvars(task_id=answer["TaskId"], repeated=answer["Repeated"])
        return responses.ok(request, answer, 202)

    @routes.post(
        "/{TaskId}/stop",
        status_code=202,
        summary="End a session",
        response_model=session_models.StoppedBody,
        response_description="The session closes.",
        responses=openapi.failures(400, 404, 408, 413, 415, 422),
        openapi_extra=openapi.request_body("stop-body", examples.STOP, required=False),
    )
    async def stop(request: fastapi.Request, task_id: TaskId) -> fastapi.Response:
        return responses.ok(request, await _decide(api, request, "stop", await _body(request, task_id)), 202)

    @routes.post(
        "/{TaskId}/replay",
        status_code=202,
        summary="Resume failed or stuck recordings",
        response_model=session_models.ReplayedBody,
        response_description="The effect on each recording.",
        responses={200: DRY_RUN, **openapi.failures(400, 404, 408, 409, 413, 415, 422)},
        openapi_extra=openapi.request_body("replay-body", examples.REPLAY, required=False),
    )
    async def replay(request: fastapi.Request, task_id: TaskId) -> fastapi.Response:
        data = await _body(request, task_id)
        # Under the Idempotency-Key, the answer of the dry run would become the answer of the real replay.
        dry = data.get("DryRun") is True
        answer = await _decide(api, request, "replay", data, responses.request_id(request) if dry else "")
        return responses.ok(request, answer, 200 if dry else 202)

    @routes.post(
        "/{TaskId}/resend",
        status_code=202,
        summary="Post a result again",
        response_model=session_models.ResentBody,
        response_description="The result is posted again under the same `webhook-id`.",
        responses=openapi.failures(400, 404, 408, 409, 413, 415, 422),
        openapi_extra=openapi.request_body("resend-body", examples.RESEND, required=False),
    )
    async def resend(request: fastapi.Request, task_id: TaskId) -> fastapi.Response:
        return responses.ok(request, await _decide(api, request, "resend", await _body(request, task_id)), 202)


async def _body(request: fastapi.Request, task_id: str) -> dict[str, Any]:
    """The body of a request about one session, with its TaskId."""
    check_task_id(task_id)
    body = await request_body.json_object(request, optional=True)
    if not reader.is_absent(named := body.get("TaskId")) and named != task_id:
        raise event_errors.InvalidEvent("TaskId", "is not the one in the path")
    return {**body, "TaskId": task_id}


async def _decide(
    api: dependencies.Api, request: fastapi.Request, type_: str, data: dict[str, Any], event_id: str = ""
) -> dict[str, Any]:
    """Decide a request about one session. Its id is `event_id`, or follows from the Idempotency-Key."""
    id_ = event_id or request_body.event_id(request, f"{type_}-{data['TaskId']}")
    return await api.decide(request_body.event(api, type_, id=id_, data=data), request.state.caller)


def _add_queries(routes: fastapi.APIRouter, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
    """List and show."""

    @routes.get(
        "",
        summary="List sessions, newest first",
        response_model=session_models.SessionsBody,
        response_description="A page of sessions; `Next` is the `before` of the next page, which a short page may have.",
        responses=openapi.failures(400),
    )
    async def listing(request: fastapi.Request, query: Filter) -> fastapi.Response:
        found, next_page = await (_stuck(api, query, watch) if query.stuck else _page(api, query))
        counts = await api.queries.counts([session.task_id for session, _ in found])
        lines = [views.summary(session, counts[session.task_id], reasons) for session, reasons in found]
        needed = [views.needed(each) for each in await watch.look()] if query.stuck else []
        return responses.ok(request, {"Sessions": lines, "Next": next_page, "Attention": needed})

    @routes.get(
        "/{TaskId}",
        operation_id="look_sessions__TaskId__get",  # published: generated clients name their method after it
        summary="Show one session",
        response_model=session_models.SessionBody,
        response_description="The session and the first page of its recordings, its timeline and its results.",
        responses=openapi.failures(400, 404),
    )
    async def show(request: fastapi.Request, task_id: TaskId, query: Annotated[SessionPage, fastapi.Query()]) -> fastapi.Response:
        snapshot, pages = await read(api, watch, task_id, query)
        return await responses.large(request, lambda: views.details(snapshot, pages, api.progress()))


async def read(
    api: dependencies.Api,
    watch: attention_watch.AttentionWatch,
    task_id: str,
    query: SessionPage,
    *,
    recordings: int = RECORDINGS,
) -> tuple[stuck.Snapshot, views.SessionPages]:
    """One session with a page of each of its lists; `recordings` is the size of that page. Raises NotFound."""
    check_task_id(task_id)
    session = await api.queries.session(task_id)
    if session is None:
        raise _not_found(task_id)
    (snapshot,) = await stuck_sessions.snapshots(api, [session], await watch.alive())
    deliveries = [d.key for d in (*snapshot.parts.deliveries, *snapshot.parts.manifests)]
    pages = await _pages(api, task_id, query, deliveries, recordings)
    return snapshot, pages


async def _pages(
    api: dependencies.Api, task_id: str, query: SessionPage, deliveries: Sequence[job_key.DeliveryKey], size: int
) -> views.SessionPages:
    recordings = await api.queries.recordings(task_id, first=query.recordings, limit=size)
    timeline = await api.queries.timeline(task_id, before=query.timeline, limit=query.limit)
    results = await api.queries.results(task_id, before=query.results)
    return views.SessionPages(
        recordings=recordings,
        segments=await api.queries.segments(task_id, only=[r.key.text for r in recordings]),
        timeline=timeline,
        results=results,
        next_tries=await api.queries.next_tries([*deliveries, *(r.key for r in recordings)]),
        recordings_next=str(query.recordings + size) if len(recordings) == size else "",
        timeline_next=str(timeline[0].seq) if len(timeline) == query.limit else "",
        results_next=str(results[0]["Revision"]) if results and results[0].get("Revision", 1) > 1 else "",
    )


async def _page(api: dependencies.Api, query: session_filter.SessionFilter) -> tuple[stuck_sessions.Found, str]:
    """One page of the list, and the `before` of the page after it."""
    found, next_page = await api.queries.sessions(query.wanted(), before=query.before, limit=query.limit)
    return [(session, []) for session in found], next_page


async def _stuck(
    api: dependencies.Api, query: session_filter.SessionFilter, watch: attention_watch.AttentionWatch
) -> tuple[stuck_sessions.Found, str]:
    """Like `_page`, for sessions that need attention."""
    alive = await watch.alive()
    return await stuck_sessions.page(api, alive, limit=query.limit, before=query.before, wanted=query.wanted())


def check_task_id(task_id: str) -> None:
    """Raise NotFound for a text that cannot be a TaskId."""
    try:
        codec.check("stop", {"TaskId": task_id})
    except event_errors.InvalidEvent:
        raise errors.NotFound from None
    structlog.contextvars.bind_contextvars(task_id=task_id)


def _not_found(task_id: str) -> errors.NotFound:
    return errors.NotFound(f"There is no session {task_id}; `recorder sessions` lists them.")
