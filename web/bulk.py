"""Routes of bulk actions: replay, stop and resend of many sessions, named by their TaskIds.

The list of sessions with its filters is the preview: an action takes its TaskIds, and no other session.

Rules:
- Each session is one event of its own, as if the route of that session had been asked, and has its own entry in the audit.
- The id of each event derives from the Idempotency-Key and the TaskId. A request that was cut off is sent again under the same
  key: a decided session keeps its answer, and the rest follows. Nothing is done twice, and nothing must be remembered.
- One session after the other, so that a bulk action holds up nobody else's requests.
- A replay leaves out a session that needs no attention any more: somebody else, or its own retry, was quicker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import fastapi
import pydantic

from events import errors as event_errors
from machine import errors, model
from web import (
    attention_watch,
    dependencies,
    openapi,
    operator_examples,
    operator_models,
    request_body,
    responses,
    stuck,
    stuck_sessions,
)

MOST = 100
NOT_NEEDED = operator_models.Outcome("NotNeeded", "It needs no attention any more, so it is left as it is.")
TaskId = Annotated[str, pydantic.Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$")]


class BulkBody(pydantic.BaseModel):
    """The sessions to act on."""

    model_config = pydantic.ConfigDict(extra="forbid")

    TaskIds: list[TaskId] = pydantic.Field(min_length=1, max_length=MOST)


class BulkReplayBody(BulkBody):
    """The sessions to replay."""

    DryRun: bool = pydantic.Field(False, description="Only tell what a replay of each would do.")


SUMMARIES = {
    "replay": "Resume the failed and stuck recordings of many sessions",
    "stop": "End many sessions",
    "resend": "Post the newest results of many sessions again",
}


def router(api: dependencies.Api, watch: attention_watch.AttentionWatch) -> fastapi.APIRouter:
    """The routes of one service."""
    routes = fastapi.APIRouter(prefix="/bulk", tags=["bulk"])
    for action in SUMMARIES:
        _add(routes, api, watch, action)
    return routes


def _add(routes: fastapi.APIRouter, api: dependencies.Api, watch: attention_watch.AttentionWatch, action: str) -> None:
    kind = BulkReplayBody if action == "replay" else BulkBody

    @routes.post(
        f"/{action}",
        name=f"bulk_{action}",
        summary=SUMMARIES[action],
        response_model=operator_models.BulkBody,
        response_description="The outcome for each session, in the order of TaskIds.",
        responses=openapi.failures(400, 408, 413, 415),
        openapi_extra=openapi.body_of(kind, operator_examples.BULK[action], idempotent=True),
    )
    async def act(request: fastapi.Request) -> fastapi.Response:
        asked = await request_body.model(request, kind)
        ids = list(dict.fromkeys(asked.TaskIds))
        dry = isinstance(asked, BulkReplayBody) and asked.DryRun
        # Under the Idempotency-Key, the answer of a dry run would become that of the real replay.
        key = responses.request_id(request) if dry else request_body.event_id(request, "bulk")
        found = await outcomes(api, watch, action, ids, key=key, by=request.state.caller, more={"DryRun": True} if dry else {})
        return responses.ok(request, {"Done": sum(each["Code"] == operator_models.OK for each in found), "Outcomes": found})


async def outcomes(
    api: dependencies.Api,
    watch: attention_watch.AttentionWatch,
    action: str,
    task_ids: Sequence[str],
    *,
    key: str,
    by: model.Caller,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Act on each session; its event's id derives from `key`, which may come again. `more` are fields of every event. Raises only
    what a repetition may cure."""
    needed = await needing_attention(api, watch, task_ids) if action == "replay" else task_ids
    found = [
        (id_, await _decide(api, action, f"{key}-{action}-{id_}", {"TaskId": id_, **more}, by) if id_ in needed else NOT_NEEDED)
        for id_ in task_ids
    ]
    return [{"TaskId": id_, "Code": told.code, "Message": told.message} for id_, told in found]


async def needing_attention(
    api: dependencies.Api, watch: attention_watch.AttentionWatch, task_ids: Sequence[str]
) -> frozenset[str]:
    """Those of the sessions that need attention now, and those that do not exist, which the decision tells."""
    read = {task_id: await api.queries.session(task_id) for task_id in task_ids}
    found = [session for session in read.values() if session is not None]
    snapshots = await stuck_sessions.snapshots(api, found, await watch.alive())
    needed = {each.session.task_id for each in snapshots if stuck.findings(each)}
    return frozenset(needed | {task_id for task_id, session in read.items() if session is None})


async def _decide(
    api: dependencies.Api, action: str, id_: str, data: dict[str, Any], by: model.Caller
) -> operator_models.Outcome:
    try:
        answer = await api.decide(request_body.event(api, action, id=id_, data=data), by)
    except event_errors.InvalidEvent as error:
        return operator_models.Outcome(responses.CODES[400], str(error))
    except errors.RecorderError as error:
        if error.retry:
            raise
        return operator_models.Outcome(error.code, error.message)
    return operator_models.Outcome(operator_models.OK, _told(action, answer))


def _told(action: str, answer: dict[str, Any]) -> str:
    if action == "replay":
        return "; ".join(f"{each['Speaker']}/{each['N']}: {each['Action']}" for each in answer["Recordings"])
    return f"revision {answer['Revision']} is posted again" if action == "resend" else str(answer["State"])
