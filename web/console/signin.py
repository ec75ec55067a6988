"""Sign-in with an API key, sign-out, and the choice of language and theme.

Rules: wrong keys are counted for all strangers together, so that their number fills neither memory nor audit; a right key is
accepted at any time. Each sign-in, accepted or refused, is in the audit.
"""

from __future__ import annotations

import fastapi

from machine import api_keys, errors, model
from web import authentication, dependencies, rate_limit
from web.console import frame as frames

WRONG_PER_MINUTE = 10
STRANGER = model.Caller(name="console", operates=False)
_ALL = "strangers"


def add(
    routes: fastapi.APIRouter, frame: frames.Frame, api: dependencies.Api, authenticator: authentication.Authenticator
) -> None:
    """Register the routes."""
    wrong = rate_limit.RateLimiter(WRONG_PER_MINUTE)

    @routes.get("/signin", include_in_schema=False)
    async def form(request: fastapi.Request, back: str = frames.PREFIX) -> fastapi.Response:
        if await authenticator.open_to_all():
            return frame.back(request, back)
        return frame.page(request, "signin.html", back=frames.own_path(back), error="")

    @routes.post("/signin", include_in_schema=False)
    async def sign_in(request: fastapi.Request) -> fastapi.Response:
        given = request.state.form.get("key", "").strip()
        back = frames.own_path(request.state.form.get("back", ""))
        identity = await authenticator.identify(f"Bearer {given}")
        if identity is not None and api_keys.READ in identity.scopes:
            await api.audit(identity.caller, "sign-in", "", "ok")
            frame.visit(request, given)
            return frame.back(request, back)
        t = frame.translator(frame.language(request))
        if wrong.wait_s(_ALL):
            return frame.page(request, "signin.html", status=429, back=back, error=t("signin.often"))
        caller = STRANGER if identity is None else identity.caller
        await api.audit(caller, "sign-in", api_keys.id_of(given), errors.Unauthorized().code)
        return frame.page(request, "signin.html", status=401, back=back, error=t("signin.wrong"))

    @routes.post("/signout", include_in_schema=False)
    async def sign_out(request: fastapi.Request) -> fastapi.Response:
        frame.visit(request, "")
        return frame.back(request, "/console/signin", notice="signin.signedout")

    @routes.post("/preferences", include_in_schema=False)
    async def preferences(request: fastapi.Request) -> fastapi.Response:
        sent = request.state.form
        answer = frame.back(request, sent.get("back", ""))
        frame.prefer(request, answer, sent.get("language", ""), sent.get("theme", ""))
        return answer
