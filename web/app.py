"""The HTTP application: sessions, results, TRTC callbacks, probes, metrics, the console, and the OpenAPI document.

Rule: one `Api` value is its whole input. It opens no connection or file and does not read the environment.
"""

from __future__ import annotations

from collections.abc import Mapping

import fastapi
from starlette import types

from web import (
    attention_watch,
    authentication,
    bulk,
    dependencies,
    health,
    keys,
    live,
    metrics_page,
    middleware,
    nodes,
    openapi,
    parked,
    responses,
    results,
    scopes,
    segment_download,
    sessions,
    trtc_callbacks,
)
from web.console import frame as console_frame
from web.console import router as console_router

Api = dependencies.Api

DESCRIPTION = "Records live TRTC rooms, one file per speaker, and never loses one."


class _Application(fastapi.FastAPI):
    """FastAPI, with routes that it does not serve itself."""

    direct: Mapping[tuple[str, str], types.ASGIApp] = {}

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one request (ASGI)."""
        direct = self.direct.get((scope.get("method", ""), scope.get("path", "")))
        await (direct or super().__call__)(scope, receive, send)


def create(api: dependencies.Api, *, watch: attention_watch.AttentionWatch | None = None, public: bool = True) -> fastapi.FastAPI:
    """The ASGI application of one service. Its caller starts `watch`, if it is to look without being asked. A node without the
    role `api` is not `public`: it has only the probes, the metrics and the route between nodes. Raises RuntimeError for a route
    without a scope."""
    app = _Application(
        title="recorder",
        version=api.version,
        description=DESCRIPTION,
        # FastAPI's own pages load their scripts from a foreign host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    callbacks = trtc_callbacks.router(api)
    watch = watch or attention_watch.AttentionWatch(api)
    authenticator = authentication.Authenticator(api)
    console = console_frame.Frame(api) if public else None
    public_routers = (
        [sessions.router(api, watch), bulk.router(api, watch), live.router(api), results.router(api), callbacks] if public else []
    )
    if public and api.operations is not None:
        operations = api.operations
        public_routers += [nodes.router(api, operations), parked.router(operations), keys.router(operations)]
    probes = (health.router(api, watch), metrics_page.router(api))
    # Taken over as they are: to include a router, FastAPI makes each of its routes a second time.
    for router in (*public_routers, *probes, segment_download.router(api), live.internal_router(api)):
        app.router.routes.extend(router.routes)
    if console is not None:
        app.router.routes.extend(console_router.router(api, watch, console, authenticator).routes)
    responses.install(app)
    openapi.install(app)
    missing = scopes.missing(app.routes)
    if missing:
        raise RuntimeError(f"web/scopes.py has no scope for: {', '.join(missing)}")
    if public:
        app.direct = middleware.direct_routes(callbacks.routes, app.exception_handlers, api.new_id)
    app.add_middleware(middleware.AccessGate, api=api, authenticator=authenticator, console=console)
    app.add_middleware(middleware.RequestFrame, new_id=api.new_id)
    return app
