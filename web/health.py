"""Probes: `/healthz` (the process is alive) and `/readyz` (the node can take work).

Rule: `/healthz` checks nothing, so that a slow database never gets the process killed; `/readyz` checks everything. What needs
attention makes no node unready, and neither does a fault in looking for it.
"""

from __future__ import annotations

import fastapi

from machine import errors
from web import attention_watch, dependencies, models, openapi, responses

# What an operator must do although the node can take work. A header, because the body is fixed by the contract.
WARNING = "Recorder-Warning"


def router(api: dependencies.Api, watch: attention_watch.AttentionWatch) -> fastapi.APIRouter:
    """The two routes of one service."""
    routes = fastapi.APIRouter(tags=["health"])

    @routes.get(
        "/healthz",
        summary="Is the process alive?",
        response_model=models.AliveBody,
        response_description="It is.",
        responses=openapi.failures(anywhere=(500,)),
    )
    async def healthz(request: fastapi.Request) -> fastapi.Response:
        return responses.ok(request, {"Status": "alive", "Version": api.version})

    @routes.get(
        "/readyz",
        summary="Can this node take work?",
        response_model=models.ReadyBody,
        response_description="It can.",
        responses=openapi.failures(503, anywhere=(500,)),
    )
    async def readyz(request: fastapi.Request) -> fastapi.Response:
        # The database first: what else does not work is often for its sake.
        reasons = [*await _database(api), *api.ready()]
        if reasons:
            raise errors.Unavailable(" ".join(reasons))
        answer = responses.ok(request, {"Status": "ready"})
        # Without the subjects: anyone may call a probe.
        for each in await watch.look_for_probe():
            answer.headers.append(WARNING, each.text)
        return answer

    return routes


async def _database(api: dependencies.Api) -> list[str]:
    try:
        await api.ping()
    except errors.RecorderError as error:
        return [error.message]
    except (TimeoutError, OSError) as error:
        return [f"The database does not answer: {type(error).__name__}."]
    return []
