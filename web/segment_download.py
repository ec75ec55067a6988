"""Download of this node's segments by other nodes: `GET /internal/segments` and `/internal/arrivals`, with the CLUSTER_TOKEN.

Rules: a segment and its arrival index are named by recording and epoch, never by a path. Without a token in the settings every
request is refused.
"""

from __future__ import annotations

import hmac

import fastapi
from fastapi import responses

from machine import errors, segments
from web import dependencies

PREFIX = "/internal/"


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route of one node."""
    routes = fastapi.APIRouter(include_in_schema=False)

    @routes.get(PREFIX + "segments")
    async def segment(recording: str, epoch: int, authorization: str = fastapi.Header("")) -> fastapi.Response:
        return await _file(api, recording, epoch, "", authorization)

    @routes.get(PREFIX + "arrivals")
    async def arrivals(recording: str, epoch: int, authorization: str = fastapi.Header("")) -> fastapi.Response:
        return await _file(api, recording, epoch, segments.ARRIVALS_SUFFIX, authorization)

    return routes


async def _file(api: dependencies.Api, recording: str, epoch: int, suffix: str, authorization: str) -> fastapi.Response:
    """The segment, or the file of the same name and this suffix. Raises Unauthorized and NotFound."""
    check_token(api, authorization)
    found = await api.segment_file(recording, epoch, suffix)
    if found is None:
        raise errors.NotFound("This node has no such segment.")
    path, written_ms = found
    return responses.FileResponse(path, media_type="application/octet-stream", headers={segments.WRITTEN_HEADER: str(written_ms)})


def check_token(api: dependencies.Api, authorization: str) -> None:
    """Raise Unauthorized unless the header Authorization has this node's CLUSTER_TOKEN."""
    # Header bytes arrive as latin-1; nodes send the token as UTF-8.
    known = hmac.compare_digest(authorization.encode("latin-1"), f"Bearer {api.cluster_token}".encode())
    if not api.cluster_token or not known:
        raise errors.Unauthorized("CLUSTER_TOKEN is missing, or differs from this node's.")
