"""One node's segments for the others: `GET /internal/segments`, with the token that the nodes share. May import `machine`.

Rule: it serves files of this node's spool by recording and epoch, never by a path; without a token set there is no such route.
"""

from __future__ import annotations

import hmac

import fastapi
from fastapi import responses

from machine import errors
from web import dependencies

PREFIX = "/internal/"
WRITTEN = "x-written-ms"
"""When the segment was last written (Unix ms): of one that nobody told of, its times are reckoned from that."""


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The one route, for one node."""
    routes = fastapi.APIRouter(include_in_schema=False)

    @routes.get(PREFIX + "segments")
    async def segment(recording: str, epoch: int, authorization: str = fastapi.Header("")) -> fastapi.Response:
        # A header's bytes arrive as latin-1, and nodes send the token as UTF-8.
        known = hmac.compare_digest(authorization.encode("latin-1"), f"Bearer {api.cluster_token}".encode())
        if not api.cluster_token or not known:
            raise errors.Unauthorized("The nodes' CLUSTER_TOKEN is missing or another one.")
        path = api.segment_path(recording, epoch)
        if path is None or not path.is_file():
            raise errors.NotFound("This node has no such segment.")
        written_ms = path.stat().st_mtime_ns // 1_000_000
        return responses.FileResponse(path, media_type="video/x-flv", headers={WRITTEN: str(written_ms)})

    return routes
