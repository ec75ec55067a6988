"""Routes of API keys and of the audit.

Rule: the text of a key is in the answer to its creation, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any

import fastapi
import pydantic

from events import errors as event_errors
from machine import api_keys
from web import dependencies, openapi, operator_examples, operator_models, request_body, responses

MAX_QUOTA = 10**6
ID = r"^[0-9a-z]{1,16}$"
Id = Annotated[str, fastapi.Path(alias="Id", pattern=ID, description="Id of the key, as the list has it.")]


class NewKeyBody(pydantic.BaseModel):
    """A key to create."""

    model_config = pydantic.ConfigDict(extra="forbid")

    Name: str = pydantic.Field(min_length=1, max_length=64, description="Name of the owner, shown in lists and in the audit.")
    Scopes: list[str] = pydantic.Field(
        min_length=1, max_length=len(api_keys.SCOPES), description=f"Some of {', '.join(api_keys.SCOPES)}."
    )
    Quota: int = pydantic.Field(0, ge=0, le=MAX_QUOTA, description="Limit of Open sessions; 0: the limit of API_SESSIONS.")


class AuditPage(pydantic.BaseModel):
    """Query parameters of GET /audit; any other parameter is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    limit: int = pydantic.Field(100, ge=1, le=1_000, description="The largest number of entries.")
    before: int = pydantic.Field(0, ge=0, le=2**63 - 1, description="`Next` of the previous page: only older entries.")


def router(operations: dependencies.Operations) -> fastapi.APIRouter:
    """The routes of one service."""
    routes = fastapi.APIRouter(tags=["keys"])
    _add_keys(routes, operations)

    @routes.get(
        "/audit",
        summary="Who did what, newest first",
        response_model=operator_models.AuditBody,
        response_description="A page of the audit; `Next` is the `before` of the next page, 0 after the last one.",
        responses=openapi.failures(400),
    )
    async def audit(request: fastapi.Request, query: Annotated[AuditPage, fastapi.Query()]) -> fastapi.Response:
        lines, before = await operations.audit(query.before, query.limit)
        return responses.ok(request, {"Audit": list(lines), "Next": before})

    return routes


def _add_keys(routes: fastapi.APIRouter, operations: dependencies.Operations) -> None:
    @routes.get(
        "/keys",
        summary="List the API keys, revoked ones included",
        response_model=operator_models.KeysBody,
        response_description="The keys, oldest first.",
        responses=openapi.failures(),
    )
    async def listing(request: fastapi.Request) -> fastapi.Response:
        return responses.ok(request, {"Keys": [view(key) for key in await operations.list_keys()]})

    @routes.post(
        "/keys",
        status_code=201,
        summary="Create an API key",
        response_model=operator_models.CreatedKeyBody,
        response_description="The key; its text is not shown again.",
        responses=openapi.failures(400, 408, 413, 415),
        openapi_extra=openapi.body_of(NewKeyBody, operator_examples.NEW_KEY),
    )
    async def create(request: fastapi.Request) -> fastapi.Response:
        asked = await request_body.model(request, NewKeyBody)
        return responses.ok(request, view(await create_key(operations, asked, request)), 201)

    @routes.post(
        "/keys/{Id}/revoke",
        summary="Revoke an API key for good",
        response_model=operator_models.KeyBody,
        response_description="The key; the service refuses it within a second.",
        responses=openapi.failures(400, 404),
    )
    async def revoke(request: fastapi.Request, id_: Id) -> fastapi.Response:
        return responses.ok(request, view(await operations.revoke_key(id_, request.state.caller)))


async def create_key(operations: dependencies.Operations, asked: NewKeyBody, request: fastapi.Request) -> dict[str, Any]:
    """Create the key. Raises InvalidEvent."""
    try:
        return await operations.create_key(asked.Name, asked.Scopes, asked.Quota, request.state.caller)
    except ValueError as error:
        raise event_errors.InvalidEvent("", str(error)) from None


def view(key: dict[str, Any]) -> dict[str, Any]:
    """One key as JSON."""
    return key | {"Scopes": key["Scopes"].split(",")}
