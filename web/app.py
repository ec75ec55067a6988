"""The HTTP application: sessions, results, TRTC callbacks, probes, and the document that describes them.

Imports only this room. Rule: built from one `Api` value; it opens nothing, connects to nothing and reads no environment.
"""

from __future__ import annotations

import fastapi

from web import dependencies, health, middleware, openapi, responses, results, scopes, segment_download, sessions, trtc_callbacks

Api = dependencies.Api

DESCRIPTION = "Records live TRTC rooms, one file per speaker, and never loses one."


def create(api: dependencies.Api, *, faces: bool = True) -> fastapi.FastAPI:
    """The ASGI application of one service. Without `faces` it has only the probes and what other nodes fetch: a node that is
    not in the role `api`. Raises RuntimeError for a route of which nobody said what it asks for."""
    app = fastapi.FastAPI(
        title="recorder",
        version=api.version,
        description=DESCRIPTION,
        # The pages that come with the framework load their scripts from a foreign host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    outside = (sessions.router(api), results.router(api), trtc_callbacks.router(api)) if faces else ()
    for router in (*outside, health.router(api), segment_download.router(api)):
        app.include_router(router)
    responses.install(app)
    openapi.install(app)
    unguarded = scopes.missing(app.routes)
    if unguarded:
        raise RuntimeError(f"A route without a line in web/scopes.py: {', '.join(unguarded)}")
    app.add_middleware(middleware.Door, api=api)
    return app
