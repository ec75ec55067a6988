"""Metrics in Prometheus' text format: `GET /metrics`, on every node whatever its roles.

Rule: a scrape reads memory only; the figures of the database are read by a task of their own.
"""

from __future__ import annotations

import fastapi

from machine import metrics
from web import dependencies

PATH = "/metrics"


def router(api: dependencies.Api) -> fastapi.APIRouter:
    """The route of one node."""
    routes = fastapi.APIRouter(include_in_schema=False)

    @routes.get(PATH)
    async def scrape() -> fastapi.Response:
        return fastapi.Response(metrics.text(await api.gauges()), media_type=metrics.CONTENT_TYPE)

    return routes
