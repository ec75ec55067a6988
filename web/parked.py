"""Routes of dead letters: list, show, requeue, drop.

Rule: a shown message has its secrets masked. An action takes the messages one after the other; one that is gone, or that may not
be requeued, has its reason in the answer and stops no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import fastapi
import pydantic

from machine import errors, model
from web import dependencies, openapi, operator_examples, operator_models, request_body, responses

MOST = 100
ID = r"^[0-9a-z-]{1,64}$"
Id = Annotated[str, fastapi.Path(alias="Id", pattern=ID, description="Id of the message, as the list has it.")]


class ParkedPage(pydantic.BaseModel):
    """Query parameters of GET /parked; any other parameter is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    limit: int = pydantic.Field(100, ge=1, le=1_000, description="The largest number of messages of each place.")


class ParkedIdsBody(pydantic.BaseModel):
    """The messages to act on."""

    model_config = pydantic.ConfigDict(extra="forbid")

    Ids: list[Annotated[str, pydantic.Field(pattern=ID)]] = pydantic.Field(min_length=1, max_length=MOST)


def router(operations: dependencies.Operations) -> fastapi.APIRouter:
    """The routes of one service."""
    routes = fastapi.APIRouter(prefix="/parked", tags=["parked"])

    @routes.get(
        "",
        summary="List parked messages, oldest first",
        response_model=operator_models.ParkedMessagesBody,
        response_description="The messages that could not be handled, and their number.",
        responses=openapi.failures(400),
    )
    async def listing(request: fastapi.Request, query: Annotated[ParkedPage, fastapi.Query()]) -> fastapi.Response:
        return responses.ok(request, await operations.parked(query.limit))

    @routes.get(
        "/{Id}",
        summary="Show one parked message",
        response_model=operator_models.ParkedMessageBody,
        response_description="The message with its headers and its body, secrets masked.",
        responses=openapi.failures(400, 404),
    )
    async def show(request: fastapi.Request, id_: Id) -> fastapi.Response:
        found = await operations.show_parked(id_)
        return responses.ok(request, found | {"Headers": {name: str(value) for name, value in found["Headers"].items()}})

    _add_action(routes, "requeue", "Publish parked messages again", operations.requeue_parked)
    _add_action(routes, "drop", "Delete parked messages for good", operations.drop_parked)
    return routes


def _add_action(
    routes: fastapi.APIRouter, action: str, summary: str, act: Callable[[str, model.Caller], Awaitable[dict[str, Any]]]
) -> None:
    @routes.post(
        f"/{action}",
        name=f"{action}_parked",
        summary=summary,
        response_model=operator_models.ParkedOutcomesBody,
        response_description="The outcome for each message, in the order of Ids.",
        responses=openapi.failures(400, 408, 413, 415),
        openapi_extra=openapi.body_of(ParkedIdsBody, operator_examples.PARKED_IDS),
    )
    async def on_all(request: fastapi.Request) -> fastapi.Response:
        ids = list(dict.fromkeys((await request_body.model(request, ParkedIdsBody)).Ids))
        return responses.ok(request, await outcomes(ids, act, request.state.caller))


async def outcomes(
    ids: list[str], act: Callable[[str, model.Caller], Awaitable[dict[str, Any]]], by: model.Caller
) -> dict[str, Any]:
    """Act on each message; the outcomes as JSON. Raises only what a repetition of the whole request may cure."""
    listed = []
    for id_ in ids:
        found = operator_models.Outcome(operator_models.OK, "")
        try:
            await act(id_, by)
        except errors.RecorderError as error:
            if error.retry:
                raise
            found = operator_models.Outcome(error.code, error.message)
        listed.append({"Id": id_, "Code": found.code, "Message": found.message})
    return {"Done": sum(each["Code"] == operator_models.OK for each in listed), "Outcomes": listed}
