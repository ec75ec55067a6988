"""The routes of the console: every page registers its own here."""

from __future__ import annotations

import fastapi

from web import attention_watch, authentication, dependencies
from web.console import bulk, keys, live, nodes, overview, parked, session, sessions, signin
from web.console import frame as frames


def router(
    api: dependencies.Api,
    watch: attention_watch.AttentionWatch,
    frame: frames.Frame,
    authenticator: authentication.Authenticator,
) -> fastapi.APIRouter:
    """The routes of one service's console."""
    routes = fastapi.APIRouter(prefix=frames.PREFIX, route_class=frame.route_class(), include_in_schema=False)
    frames.install(routes, frame)
    signin.add(routes, frame, api, authenticator)
    feed = live.Feed(api, watch)
    live.add(routes, frame, api, feed, authenticator)
    overview.add(routes, frame, api, watch)
    sessions.add(routes, frame, api, watch)
    session.add(routes, frame, api, watch)
    if (operations := api.operations) is not None:
        bulk.add(routes, frame, api, watch)
        nodes.add(routes, frame, api, operations)
        parked.add(routes, frame, operations)
        keys.add(routes, frame, operations)

    # Last, because it has every address that no page has.
    @routes.get("/{rest:path}")
    async def missing(request: fastapi.Request, rest: str) -> fastapi.Response:
        return frame.error(request, 404, "") if rest else frame.back(request, frames.PREFIX)

    return routes
