"""The pages of API keys and of the audit. The text of a key is on the page that answers its creation, and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any

import fastapi
import pydantic

from events import errors as event_errors
from machine import api_keys
from web import dependencies, keys
from web.console import frame as frames

PATH = "/console/keys"
PAGE = 100
Before = Annotated[int, fastapi.Query(ge=0, le=2**63 - 1)]


def add(routes: fastapi.APIRouter, frame: frames.Frame, operations: dependencies.Operations) -> None:
    """Register the pages and the actions."""

    async def page(request: fastapi.Request, **more: Any) -> fastapi.Response:
        found = [keys.view(key) for key in await operations.list_keys()]
        found.sort(key=lambda key: bool(key["Revoked"]))
        shown: dict[str, Any] = {"made": None, "fault": "", "given": {}} | more
        return frame.page(request, "keys.html", active="keys", keys=found, scopes=api_keys.SCOPES, **shown)

    @routes.get("/keys")
    async def listing(request: fastapi.Request) -> fastapi.Response:
        return await page(request)

    @routes.post("/keys")
    async def create(request: fastapi.Request) -> fastapi.Response:
        form = request.state.form
        chosen = [scope for scope in api_keys.SCOPES if form.get(f"scope:{scope}")]
        try:
            asked = keys.NewKeyBody(Name=form.get("name", ""), Scopes=chosen, Quota=int(form.get("quota") or 0))
            made = await keys.create_key(operations, asked, request)
        except (pydantic.ValidationError, event_errors.InvalidEvent, ValueError):
            return await page(request, fault="keys.wrong", given=form)
        return await page(request, made=made)

    @routes.post("/keys/{Id}/revoke")
    async def revoke(request: fastapi.Request, id_: keys.Id) -> fastapi.Response:
        if not request.state.form.get("confirmed"):
            kept = {"confirmed": "yes"}
            return frame.page(
                request, "confirm.html", active="keys", subject="keys.revoke", count=1, items=[id_], kept=kept, back=PATH
            )
        done = await operations.revoke_key(id_, request.state.caller)
        return frame.back(request, PATH, notice="keys.gone", name=done["Name"])

    @routes.get("/audit")
    async def audit(request: fastapi.Request, before: Before = 0) -> fastapi.Response:
        lines, older = await operations.audit(before, PAGE)
        return frame.page(request, "audit.html", active="audit", lines=lines, older=older, before=before)
