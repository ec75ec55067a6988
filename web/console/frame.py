"""The frame of every page: templates, texts, the visit's cookie, the security headers, and the answers that are no page.

Rules: a page runs no script and loads no style but the files of `static/`, talks to no other host, is neither framed nor cached.
A POST without the visit's CSRF token reaches no route.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import fastapi
import jinja2
import markupsafe
import structlog
from fastapi import exceptions as fastapi_exceptions
from fastapi import routing
from starlette import exceptions as starlette_exceptions
from starlette import requests, responses, types

from events import errors as event_errors
from machine import api_keys, errors
from web import dependencies, request_body, scopes
from web import responses as api_responses
from web.console import cookies, texts, times

PREFIX = "/console"
NAVIGATION: list[tuple[str, str]] = [
    ("overview", "/console"),
    ("sessions", "/console/sessions"),
    ("nodes", "/console/nodes"),
    ("parked", "/console/parked"),
    ("audit", "/console/audit"),
    ("keys", "/console/keys"),
]
POLICY = "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'; media-src {media}"
THEMES = ("", "light", "dark")
KEPT_S = 365 * 86_400
NOTICE_S = 60
FOLDER = Path(__file__).parent
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_OWN_PATH = re.compile(r"/console(?:[/?][\x21-\x5b\x5d-\x7e]*)?")
# A browser sends no SameSite=Strict cookie with a link from another site. Loaded again by itself, the page gets it.
_AGAIN = '<!doctype html><meta http-equiv="refresh" content="0"><title>recorder</title>'

Route = Callable[[requests.Request], Coroutine[Any, Any, responses.Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who looks at a page: the caller's name, whether by a key, and its scopes."""

    name: str
    key: bool
    scopes: tuple[str, ...]


class Frame:
    """The frame of one service's console."""

    def __init__(self, api: dependencies.Api) -> None:
        self._api = api
        self.catalog = texts.load()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.globals.update(version=api.version, code=code, hour_text=times.hour)
        self.static = {path.name: path.read_bytes() for path in sorted((FOLDER / "static").iterdir())}
        # In the addresses of the files, so that a browser keeps them until they change.
        self._templates.globals["assets"] = hashlib.sha256(b"".join(self.static.values())).hexdigest()[:12]

    # --- the gate's part ----------------------------------------------------------------------------------------------------
    def authorization(self, scope: types.Scope) -> str:
        """Begin or continue the visit of a request; returns the Authorization header that its cookie stands for."""
        request = requests.Request(scope)
        now_ms = self._api.clock()
        known = cookies.read(request.cookies.get(cookies.NAME, ""), self._api.keyring, now_ms)
        request.state.visit = known or cookies.begin("", now_ms)
        request.state.new_visit = known is None
        return f"Bearer {known.key}" if known and known.key else ""

    def refused(self, scope: types.Scope, status: int, message: str, headers: Mapping[str, str] | None) -> responses.Response:
        """The answer to a request that the gate refuses; `message` is the API's."""
        request = requests.Request(scope)
        wants_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if status == HTTPStatus.UNAUTHORIZED and wants_page:
            back = urllib.parse.urlencode({"back": own_path(_here(request))})
            return self._finished(request, responses.RedirectResponse(f"/console/signin?{back}", 303))
        return self.error(request, status, message, headers)

    def again(self, scope: types.Scope) -> responses.Response | None:
        """For a page that was opened from another site: an answer that loads it again, with the cookie; else None."""
        headers = requests.Request(scope).headers
        from_elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if scope["method"] == "GET" and from_elsewhere and headers.get("sec-fetch-mode") == "navigate":
            return responses.HTMLResponse(_AGAIN)
        return None

    # --- answers --------------------------------------------------------------------------------------------------------------
    def page(
        self, request: requests.Request, template: str, *, status: int = 200, media: Sequence[str] = (), **values: Any
    ) -> responses.Response:
        """A page. `media`: origins from which it may play files, in addition to this one."""
        notice = self._notice(request)
        body = self.render(request, template, notice=notice, **values)
        policy = POLICY.format(media=" ".join(("'self'", "blob:", *media)))
        # Under the default, no-referrer, a browser would send `Origin: null` with a form, as a page of another site does.
        answer = responses.HTMLResponse(body, status, {"content-security-policy": policy, "referrer-policy": "same-origin"})
        if notice:
            answer.delete_cookie(NOTICE, path=PREFIX)
        return self._finished(request, answer)

    def render(self, request: requests.Request, template: str, **values: Any) -> str:
        """The text of a template, or of a part of a page, in the visitor's language."""
        language = self.language(request)
        visitor = _visitor(request)
        known: dict[str, Any] = {
            "t": self.translator(language),
            "language": language,
            "html_language": texts.HTML_LANGUAGE[language],
            "theme": _theme(request),
            "here": own_path(_here(request)),
            "visitor": visitor,
            "navigation": [(name, path) for name, path in NAVIGATION if _may_open(visitor, path)],
            "can": lambda scope: visitor is not None and scope in visitor.scopes,
            "csrf": lambda: _csrf(request.state.visit.csrf),
            "time": functools.partial(times.element, now_ms=self._api.clock()),
            "iso": functools.partial(times.of_iso, now_ms=self._api.clock()),
            "active": "",
            "live": "",
            "notice": "",
        }
        return self._templates.get_template(template).render(known | values)

    async def live(self, address: str = PREFIX) -> str:
        """The address of the live updates of a page that is read now; `address` is that of a list. "" if there are none. Raises
        DatabaseUnavailable."""
        queries = self._api.overview_queries
        if queries is None:
            return ""
        query = urllib.parse.urlsplit(address).query
        return f"{PREFIX}/live?{query}{'&' if query else ''}after={await queries.newest_line()}"

    def error(
        self, request: requests.Request, status: int, message: str, headers: Mapping[str, str] | None = None
    ) -> responses.Response:
        """A page that tells why a request was refused."""
        t = self.translator(self.language(request))
        title = t(f"error.{status}") if f"error.{status}" in self.catalog else t("error.title")
        structlog.contextvars.bind_contextvars(code=HTTPStatus(status).name)
        request_id = api_responses.request_id(request)
        answer = self.page(request, "error.html", status=status, title=title, message=message, request_id=request_id)
        for name, value in (headers or {}).items():
            answer.headers[name] = value
        return answer

    def back(self, request: requests.Request, path: str, *, notice: str = "", **values: object) -> responses.Response:
        """End an action: the browser opens `path`, which shows the text `notice` once."""
        answer = responses.RedirectResponse(own_path(path), 303)
        if notice:
            text = base64.urlsafe_b64encode(json.dumps([notice, values]).encode()).decode()
            _set(request, answer, NOTICE, text, NOTICE_S)
        return self._finished(request, answer)

    def visit(self, request: requests.Request, key: str) -> None:
        """Sign this browser in with a key, or out with "". The visit is a new one, with its own CSRF token."""
        request.state.visit, request.state.new_visit = cookies.begin(key, self._api.clock()), True

    def prefer(self, request: requests.Request, answer: responses.Response, language: str, theme: str) -> None:
        """Keep a browser's language and theme."""
        for name, value, known in ((LANGUAGE, language, texts.LANGUAGES), (THEME, theme, THEMES)):
            if value in known:
                _set(request, answer, name, value, KEPT_S)

    def translator(self, language: str) -> Callable[..., str]:
        """`t(key, **values)` of a language."""
        return texts.translator(self.catalog, language)

    def language(self, request: requests.Request) -> str:
        """The language of a browser: chosen, or preferred by its settings."""
        chosen = request.cookies.get(LANGUAGE, "")
        return chosen if chosen in texts.LANGUAGES else texts.preferred(request.headers.get("accept-language", ""))

    def route_class(self) -> type[routing.APIRoute]:
        """The class of the console's routes: it checks the CSRF token of a form, and answers errors with a page."""
        frame = self

        class ConsoleRoute(routing.APIRoute):
            """One route of the console."""

            def get_route_handler(self) -> Route:
                """As FastAPI's."""
                return functools.partial(frame.serve, super().get_route_handler())

        return ConsoleRoute

    async def serve(self, route: Route, request: requests.Request) -> responses.Response:
        """Call a route, for a POST with its form in `request.state.form`."""
        try:
            if request.method == "POST":
                request.state.form = await _form(request)
                if not request.state.visit.has_token(request.state.form.get("csrf", "")):
                    return self.error(request, 403, self.translator(self.language(request))("error.csrf"))
            return await route(request)
        except errors.RecorderError as error:
            if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR and not error.retry:
                raise
            status = HTTPStatus.SERVICE_UNAVAILABLE if error.retry else error.http_status
            return self.error(request, status, error.message, api_responses.retry_after(status))
        except (event_errors.InvalidEvent, fastapi_exceptions.RequestValidationError) as error:
            return self.error(request, 400, api_responses.reason(error))
        except starlette_exceptions.HTTPException as error:
            return self.error(request, error.status_code, str(error.detail), error.headers)

    # --- cookies --------------------------------------------------------------------------------------------------------------
    def _finished(self, request: requests.Request, answer: responses.Response) -> responses.Response:
        if request.state.new_visit:
            text = cookies.write(request.state.visit, self._api.keyring)
            _set(request, answer, cookies.NAME, text, cookies.LIFETIME_MS // 1000)
        return answer

    def _notice(self, request: requests.Request) -> str:
        try:
            key, values = json.loads(base64.urlsafe_b64decode(request.cookies.get(NOTICE, "")))
            return self.translator(self.language(request))(key, **values)
        except (binascii.Error, ValueError, KeyError, TypeError, IndexError):
            return ""


NOTICE, LANGUAGE, THEME = "recorder_notice", "recorder_language", "recorder_theme"


def code(text: str) -> markupsafe.Markup:
    """A sentence of which the parts between backticks are code."""
    pieces = [markupsafe.escape(piece) for piece in text.split("`")]
    marked = [markupsafe.Markup("<code>{}</code>").format(piece) if n % 2 else piece for n, piece in enumerate(pieces)]
    return markupsafe.Markup("").join(marked)


def own_path(path: str) -> str:
    """The path if it is one of the console, else that of the overview: a link must not lead to another site."""
    return path if _OWN_PATH.fullmatch(path) else PREFIX


def _here(request: requests.Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _visitor(request: requests.Request) -> Visitor | None:
    caller = getattr(request.state, "caller", None)
    if caller is None:
        return None
    scopes: tuple[str, ...] = getattr(request.state, "scopes", api_keys.SCOPES)
    return Visitor(name=caller.name, key=bool(request.state.visit.key), scopes=scopes)


def _may_open(visitor: Visitor | None, path: str) -> bool:
    return visitor is not None and scopes.required("GET", path) in visitor.scopes


def _theme(request: requests.Request) -> str:
    chosen = request.cookies.get(THEME, "")
    return chosen if chosen in THEMES else ""


def _csrf(token: str) -> markupsafe.Markup:
    return markupsafe.Markup('<input type="hidden" name="csrf" value="{}">').format(token)


def _set(request: requests.Request, answer: responses.Response, name: str, value: str, age_s: int) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=age_s, path=PREFIX, secure=secure, httponly=True, samesite="strict")


async def _form(request: requests.Request) -> dict[str, str]:
    """The fields of a form. Raises HTTPException."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise starlette_exceptions.HTTPException(415, "A form must be sent as application/x-www-form-urlencoded.")
    body = await request_body.raw(request)
    try:
        return dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body), errors="strict"))
    except ValueError:
        raise starlette_exceptions.HTTPException(400, "The form cannot be read.") from None


def install(routes: fastapi.APIRouter, frame: Frame) -> None:
    """The routes of the frame itself: its files."""

    @routes.get("/static/{name}", include_in_schema=False)
    async def static(request: fastapi.Request, name: str) -> fastapi.Response:
        if name not in frame.static:
            raise starlette_exceptions.HTTPException(404)
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return fastapi.Response(frame.static[name], media_type=TYPES[Path(name).suffix], headers=headers)
