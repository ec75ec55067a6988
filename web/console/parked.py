"""The pages of parked messages: the list, one message with its masked body, requeue and drop of some."""

from __future__ import annotations

from typing import Annotated, Literal

import fastapi

from web import dependencies, parked
from web.console import frame as frames

PATH = "/console/parked"
LISTED = parked.MOST
# A form names each chosen message by a field of its own: PICK and its id.
PICK = "pick:"
Action = Annotated[Literal["requeue", "drop"], fastapi.Path(alias="Action")]


def add(routes: fastapi.APIRouter, frame: frames.Frame, operations: dependencies.Operations) -> None:
    """Register the pages and the actions."""
    acts = {"requeue": operations.requeue_parked, "drop": operations.drop_parked}

    @routes.get("/parked")
    async def listing(request: fastapi.Request) -> fastapi.Response:
        found = await operations.parked(LISTED)
        return frame.page(request, "parked.html", active="parked", messages=found["Messages"], count=found["Count"], pick=PICK)

    @routes.get("/parked/{Id}")
    async def show(request: fastapi.Request, id_: parked.Id) -> fastapi.Response:
        message = await operations.show_parked(id_)
        return frame.page(request, "parked_message.html", active="parked", message=message, pick=PICK)

    @routes.post("/parked/{Action}")
    async def act(request: fastapi.Request, action: Action) -> fastapi.Response:
        form = request.state.form
        ids = [name.removeprefix(PICK) for name in form if name.startswith(PICK)][:LISTED]
        if not ids:
            return frame.back(request, PATH, notice="parked.none_picked")
        if action == "drop" and not form.get("confirmed"):
            kept = {PICK + id_: "on" for id_ in ids} | {"confirmed": "yes"}
            return frame.page(
                request, "confirm.html", active="parked", subject="parked.drop", count=len(ids), items=ids, kept=kept, back=PATH
            )
        done = await parked.outcomes(ids, acts[action], request.state.caller)
        refused = [each for each in done["Outcomes"] if each["Code"] != "ok"]
        if refused:
            return frame.page(request, "outcomes.html", active="parked", done=done["Done"], refused=refused, back=PATH)
        return frame.back(request, PATH, notice=f"parked.did.{action}", count=done["Done"])
