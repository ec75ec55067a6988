"""Routes of nodes: list, cordon, uncordon, drain.

Rule: a cordon is a wish in the node's row, which the node follows with its next heartbeat, within seconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import fastapi

from events import codec
from machine import nodes, states
from web import dependencies, openapi, operator_models, request_body, responses

Node = Annotated[str, fastapi.Path(alias="Node", max_length=64, pattern=request_body.TEXT, description="Name of the node.")]
ACTIONS = {
    "cordon": (
        nodes.CORDONED,
        "Give a worker no new captures",
        "From its next heartbeat on it takes none; its work goes on.",
    ),
    "drain": (nodes.DRAINING, "Hand a worker's captures over to others", "It is cordoned, and hands its captures over."),
    "uncordon": (nodes.ACTIVE, "Give a worker captures again", "It takes captures from its next heartbeat on."),
}


def router(api: dependencies.Api, operations: dependencies.Operations) -> fastapi.APIRouter:
    """The routes of one service."""
    routes = fastapi.APIRouter(prefix="/nodes", tags=["nodes"])

    @routes.get(
        "",
        summary="List the nodes",
        response_model=operator_models.NodesBody,
        response_description="The living nodes, and the workers that are away.",
        responses=openapi.failures(),
    )
    async def listing(request: fastapi.Request) -> fastapi.Response:
        return responses.ok(request, {"Nodes": [view(node) for node in await found(api, operations)]})

    for action in ACTIONS:
        _add_action(routes, operations, action)
    return routes


def _add_action(routes: fastapi.APIRouter, operations: dependencies.Operations, action: str) -> None:
    cordon, summary, description = ACTIONS[action]

    @routes.post(
        f"/{{Node}}/{action}",
        name=f"{action}_node",
        summary=summary,
        response_model=operator_models.NodeBody,
        response_description=description,
        responses=openapi.failures(400, 404, 409),
    )
    async def act(request: fastapi.Request, node: Node) -> fastapi.Response:
        return responses.ok(request, view(await operations.cordon(node, cordon, request.state.caller)))


async def found(api: dependencies.Api, operations: dependencies.Operations) -> list[nodes.NodeRow]:
    """The nodes. A single node tells the space of its spool here, because no other node needs it from the heartbeat."""
    rows = list(await operations.list_nodes())
    if api.own_node is None:
        return rows
    own = await api.own_node()
    return [replace(row, free_bytes=own.free_bytes, needed_bytes=own.needed_bytes) if row.alive else row for row in rows]


def view(node: nodes.NodeRow) -> dict[str, Any]:
    """One node as JSON."""
    report = node.report
    return {
        "Node": node.node,
        "Host": report.host if report else "",
        "Address": report.address if report else "",
        "Roles": list(report.roles) if report else [],
        "Version": report.version if report else "",
        "State": node.state,
        "Cordon": node.cordon,
        "Started": codec.iso(report.started_ms) if report else "",
        "LastHeartbeat": codec.iso(node.seen_ms),
        "Captures": node.leases.get(states.CAPTURE, 0),
        "Leases": dict(node.leases),
        "Slots": {kind: {"Used": used, "Limit": limit} for kind, (used, limit) in report.slots.items()} if report else {},
        "FreeBytes": node.free_bytes,
        "NeededBytes": node.needed_bytes,
        "Busy": node.busy,
        "ClockAheadMs": node.skew_ms,
    }
