"""The page of the nodes: what each reports, and cordon, drain and uncordon."""

from __future__ import annotations

from typing import Annotated, Literal

import fastapi

from machine import nodes
from web import dependencies
from web import nodes as node_routes
from web.console import frame as frames

PATH = "/console/nodes"
Action = Annotated[Literal["cordon", "drain", "uncordon"], fastapi.Path(alias="Action")]


def add(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, operations: dependencies.Operations) -> None:
    """Register the page and its action."""

    @routes.get("/nodes")
    async def listing(request: fastapi.Request) -> fastapi.Response:
        found = await node_routes.found(api, operations)
        # Away nodes last: nobody can act on them.
        found.sort(key=lambda node: (not node.alive, node.node))
        return frame.page(
            request,
            "nodes.html",
            active="nodes",
            nodes=found,
            actions=_actions,
            alone=not api.distributed,
            live=await frame.live(),
        )

    @routes.post("/nodes/{Node}/{Action}")
    async def act(request: fastapi.Request, node: node_routes.Node, action: Action) -> fastapi.Response:
        done = await operations.cordon(node, node_routes.ACTIONS[action][0], request.state.caller)
        return frame.back(request, PATH, notice=f"nodes.did.{action}", node=done.node)


def _actions(node: nodes.NodeRow) -> list[str]:
    """What an operator can ask of a node now."""
    if not node.is_worker:
        return []
    return {nodes.ACTIVE: ["cordon", "drain"], nodes.CORDONED: ["uncordon", "drain"]}.get(node.cordon, ["uncordon"])
