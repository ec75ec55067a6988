"""Live view of a speaker who is being recorded: `GET /sessions/{TaskId}/live`, fragmented MP4 that a browser plays as it comes;
and the segment behind it for other nodes, `GET /internal/live`.

Rules: a view needs the scope `watch`, because it shows people. It ends with its segment, with its viewer, and when the service
stops; what it opened is closed in each case.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import fastapi
from fastapi import responses
from starlette import types

from machine import job_key
from web import dependencies, openapi, request_body, segment_download, sessions

Speaker = Annotated[
    str, fastapi.Query(min_length=1, max_length=64, pattern=request_body.TEXT, description="Id of the speaker, as in `Speaker`.")
]
Number = Annotated[int, fastapi.Query(ge=1, le=sessions.MAX_NUMBER, description="Number of the speaker's recording, as in `N`.")]
MP4: dict[str, Any] = {
    "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
    "description": "Fragmented MP4, for as long as the segment grows; audio/mp4 without a picture.",
}


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route for viewers."""
    routes = fastapi.APIRouter(prefix="/sessions", tags=["sessions"])

    @routes.get(
        "/{TaskId}/live",
        summary="Watch a speaker who is being recorded",
        response_class=responses.StreamingResponse,
        responses={200: MP4, **openapi.failures(400, 404, 409)},
    )
    async def live(request: fastapi.Request, task_id: sessions.TaskId, speaker: Speaker, n: Number = 1) -> fastapi.Response:
        return await view(api, request, task_id, speaker, n)

    return routes


def internal_router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route for other nodes."""
    routes = fastapi.APIRouter(include_in_schema=False)

    @routes.get(segment_download.PREFIX + "live")
    async def segment(recording: str, epoch: int, mode: str, authorization: str = fastapi.Header("")) -> fastapi.Response:
        segment_download.check_token(api, authorization)
        opened = contextlib.AsyncExitStack()
        source = await opened.enter_async_context(api.live_segment(recording, epoch, mode))
        return _LiveResponse(api, opened, lambda: anext(source, b""), "application/octet-stream")

    return routes


async def view(api: dependencies.Api, request: fastapi.Request, task_id: str, speaker: str, n: int) -> fastapi.Response:
    """The response with one recording's live view. Raises NotFound, Refused and Unavailable."""
    sessions.check_task_id(task_id)
    opened = contextlib.AsyncExitStack()
    key = job_key.RecordingKey(task_id, speaker, n)
    made = await opened.enter_async_context(api.live_view(key))
    try:
        await api.audit(request.state.caller, "watch", key.text, "ok")
    except BaseException:
        await opened.aclose()
        raise
    return _LiveResponse(api, opened, made.read, made.media_type)


class _LiveResponse(responses.StreamingResponse):
    """Sends what `read` returns until it is empty; then, or if the client leaves, closes its sources."""

    def __init__(
        self, api: dependencies.Api, opened: contextlib.AsyncExitStack, read: Callable[[], Awaitable[bytes]], media_type: str
    ) -> None:
        super().__init__(self._chunks(), media_type=media_type)
        self._draining = api.draining
        self._opened = opened
        self._read = read

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._opened.aclose()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not self._draining() and (data := await self._read()):
            yield data
