"""The pages of a bulk action: preview of the sessions that match a view, and its progress.

Rules: the preview names the sessions, and only these are acted on. The browser holds the rest of them and sends it part by
part, under one key: a part that is sent twice is done once, and the service remembers nothing. Without a script a button
continues.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Annotated, Literal

import fastapi
import pydantic

from events import errors as event_errors
from machine import states
from web import attention_watch, bulk, dependencies, stuck_sessions
from web.console import frame as frames
from web.console import sessions

MOST = 1_000
PART = 10
SHOWN = 20
PAGES = 100
# Refusals that the page keeps.
REFUSED = 50
COUNTED = {"done": "ok", "unneeded": bulk.NOT_NEEDED.code}
Action = Annotated[Literal["replay", "stop", "resend"], fastapi.Path(alias="Action")]


def add(routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, watch: attention_watch.AttentionWatch) -> None:
    """Register the pages."""

    @routes.get("/bulk/{Action}")
    async def preview(
        request: fastapi.Request, action: Action, query: Annotated[sessions.View, fastapi.Query()]
    ) -> fastapi.Response:
        found, more = await matching(api, watch, action, query)
        return frame.page(
            request,
            "bulk.html",
            active="sessions",
            action=action,
            found=found[:SHOWN],
            more=more,
            progress=Progress(
                ids=[session.task_id for session, _ in found],
                key=uuid.uuid4().hex,
                total=len(found),
                back=query.address(),
            ),
        )

    @routes.post("/bulk/{Action}")
    async def act(request: fastapi.Request, action: Action) -> fastapi.Response:
        asked = _progress(request.state.form)
        by = request.state.caller
        key = f"http-console-{by.key_id}-{asked.key}"
        outcomes = await bulk.outcomes(api, watch, action, asked.ids[:PART], key=key, by=by)
        refused = [each for each in outcomes if each["Code"] not in COUNTED.values()]
        counted = {name: getattr(asked, name) + sum(e["Code"] == code for e in outcomes) for name, code in COUNTED.items()}
        changed = {"ids": asked.ids[PART:], "refused": [*asked.refused, *refused][:REFUSED], **counted}
        changed["failed"] = asked.failed + len(refused)
        return frame.page(
            request, "bulk_progress.html", active="sessions", action=action, progress=asked.model_copy(update=changed)
        )


class Progress(pydantic.BaseModel):
    """What a browser holds of a bulk action: the sessions left, and what became of the others."""

    ids: list[bulk.TaskId] = pydantic.Field(max_length=MOST)
    key: str = pydantic.Field(pattern=r"^[0-9a-f]{32}$")
    total: int = pydantic.Field(ge=0, le=MOST)
    done: int = pydantic.Field(default=0, ge=0, le=MOST)
    unneeded: int = pydantic.Field(default=0, ge=0, le=MOST)
    failed: int = pydantic.Field(default=0, ge=0, le=MOST)
    refused: list[dict[str, str]] = pydantic.Field(default=[], max_length=REFUSED)
    back: str = ""

    def fields(self) -> dict[str, str]:
        """The fields of the form that continues."""
        kept = {name: str(value) for name, value in self.model_dump(exclude={"ids", "refused"}).items()}
        return kept | {"ids": " ".join(self.ids), "refused": json.dumps(self.refused)}


def _progress(form: dict[str, str]) -> Progress:
    """Read a form that `fields` wrote. Raises InvalidEvent."""
    try:
        refused = json.loads(form.get("refused") or "[]")
        given = form | {"back": frames.own_path(form.get("back", ""))}
        return Progress.model_validate(given | {"ids": form.get("ids", "").split(), "refused": refused})
    except ValueError:
        raise event_errors.InvalidEvent("", "the form cannot be read; go back to the preview") from None


async def matching(
    api: dependencies.Api, watch: attention_watch.AttentionWatch, action: str, query: sessions.View
) -> tuple[stuck_sessions.Found, bool]:
    """The sessions of a view on which an action would have an effect, newest first, with their reasons for attention; and whether
    there are more than MOST."""
    wanted = query.wanted()
    found: stuck_sessions.Found = []
    before = ""
    for _ in range(PAGES):
        if action == "replay":
            page, before = await stuck_sessions.page(api, await watch.alive(), limit=100, before=before, wanted=wanted)
            found += page
        else:
            only = replace(wanted, state=states.OPEN) if action == "stop" else replace(wanted, undelivered=True)
            listed, before = await api.queries.sessions(only, before=before, limit=100)
            found += [(session, []) for session in listed]
        if not before or len(found) > MOST:
            break
    return found[:MOST], len(found) > MOST or bool(before)
