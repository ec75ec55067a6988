"""The routes of sessions: start, list, look, stop, replay. May import `machine` and `events`.

Rule: a POST becomes one event, decided in this process; it is answered after the commit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import fastapi
import pydantic
import structlog

from events import codec
from events import errors as event_errors
from machine import errors
from web import answers, bodies, given, openapi, shapes

TaskId = Annotated[str, fastapi.Path(alias="TaskId", description="Id of the session, a ULID.")]


class Query(pydantic.BaseModel):
    """Which sessions the list holds; anything else in the query is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    state: Literal["", "Open", "Closing", "Finished"] = pydantic.Field("", description="Only sessions in this state.")
    limit: int = pydantic.Field(50, ge=1, le=100, description="At most so many.")
    before: str = pydantic.Field("", max_length=26, description="A TaskId: only older sessions. `Next` of the page before.")


def router(api: given.Api) -> fastapi.APIRouter:
    """The routes, for one service."""
    routes = fastapi.APIRouter(prefix="/sessions", tags=["sessions"])

    @routes.post("", status_code=202, summary="Start recording a room", **openapi.start())
    async def start(request: fastapi.Request) -> fastapi.Response:
        event_id = bodies.event_id(request, "start")
        event = bodies.event(api, "start", id=event_id, data=await bodies.json_object(request))
        answer = await api.decide(event)
        structlog.contextvars.bind_contextvars(task_id=answer["TaskId"], repeated=answer["Repeated"])
        return answers.ok(request, answer, 202)

    @routes.get("", summary="List sessions, newest first", **openapi.listing())
    async def listing(request: fastapi.Request, query: Annotated[Query, fastapi.Query()]) -> fastapi.Response:
        found = await api.reading.sessions(state=query.state, limit=query.limit, before=query.before)
        lines = [shapes.summary(s, await api.reading.recordings(s.task_id)) for s in found]
        next_page = found[-1].task_id if len(found) == query.limit else ""
        return answers.ok(request, {"Sessions": lines, "Next": next_page})

    @routes.get("/{TaskId}", summary="Look at one session", **openapi.session())
    async def look(request: fastapi.Request, task_id: TaskId) -> fastapi.Response:
        _named(task_id)
        session = await api.reading.session(task_id)
        if session is None:
            raise _not_found(task_id)
        body = shapes.whole(
            session,
            await api.reading.recordings(task_id),
            await api.reading.callbacks(task_id),
            await api.reading.timeline(task_id),
            await api.reading.results(task_id),
        )
        return answers.ok(request, body)

    @routes.post("/{TaskId}/stop", status_code=202, summary="End a session", **openapi.stop())
    async def stop(request: fastapi.Request, task_id: TaskId) -> fastapi.Response:
        _named(task_id)
        event_id = bodies.event_id(request, f"stop-{task_id}")
        data = _with_task_id(await bodies.json_object(request, optional=True), task_id)
        answer = await api.decide(bodies.event(api, "stop", id=event_id, data=data))
        return answers.ok(request, answer, 202)

    @routes.post("/{TaskId}/replay", status_code=202, summary="Try again what failed or is stuck", **openapi.replay())
    async def replay(request: fastapi.Request, task_id: TaskId) -> fastapi.Response:
        _named(task_id)
        data = _with_task_id(await bodies.json_object(request, optional=True), task_id)
        # A dry run under the key of the real one to come would be its answer.
        dry = data.get("DryRun") is True
        event_id = answers.request_id(request) if dry else bodies.event_id(request, f"replay-{task_id}")
        answer = await api.decide(bodies.event(api, "replay", id=event_id, data=data))
        return answers.ok(request, answer, 200 if dry else 202)

    return routes


def _named(task_id: str) -> None:
    """What cannot be a TaskId names no session."""
    try:
        codec.check("stop", {"TaskId": task_id})
    except event_errors.InvalidEvent:
        raise errors.NotFound from None
    structlog.contextvars.bind_contextvars(task_id=task_id)


def _not_found(task_id: str) -> errors.NotFound:
    return errors.NotFound(f"There is no session {task_id}; `recorder sessions` lists what there is.")


def _with_task_id(body: dict[str, Any], task_id: str) -> dict[str, Any]:
    if body.get("TaskId", task_id) != task_id:
        raise event_errors.InvalidEvent("TaskId", "is not the one in the path")
    return {**body, "TaskId": task_id}
