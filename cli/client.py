"""HTTP client of the service's API, for the commands.

Rules: no proxy and no redirect, so that the token goes only to the service. An error message names the remedy.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cli import exits

DEFAULT_URL = "http://127.0.0.1:8080"

Json = dict[str, Any]


class ClientError(exits.CommandError):
    """The service cannot be reached, or refused the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceClient:
    """One service. `url` includes a path prefix, if there is one; `token` is an API key or one of its API_TOKENS."""

    url: str = DEFAULT_URL
    token: str = field(default="", repr=False)
    timeout_s: float = 30.0

    def start(self, body: Mapping[str, Any], *, key: str = "") -> Json:
        """POST /sessions; `key` is the Idempotency-Key. Raises ClientError, as all of these do."""
        return self._request("POST", "/sessions", body=body, key=key)

    def stop(self, task_id: str) -> Json:
        """POST /sessions/{TaskId}/stop."""
        return self._request("POST", f"/sessions/{quote(task_id, safe='')}/stop", body={})

    def replay(self, task_id: str, body: Mapping[str, Any]) -> Json:
        """POST /sessions/{TaskId}/replay."""
        return self._request("POST", f"/sessions/{quote(task_id, safe='')}/replay", body=body)

    def resend(self, task_id: str, body: Mapping[str, Any]) -> Json:
        """POST /sessions/{TaskId}/resend."""
        return self._request("POST", f"/sessions/{quote(task_id, safe='')}/resend", body=body)

    def sessions(self, **filters: str) -> Json:
        """GET /sessions: one page; `filters` are the query's parameters, empty ones left out."""
        return self._request("GET", "/sessions" + _query(filters.items()))

    def session(self, task_id: str, **cursors: str) -> Json:
        """GET /sessions/{TaskId}: the first page of its lists, or those at these cursors."""
        return self._request("GET", f"/sessions/{quote(task_id, safe='')}" + _query(cursors.items()))

    def results(self, *, after: str, limit: int = 100, wait_s: float = 0, types: Sequence[str] = ()) -> Json:
        """GET /results: those after the cursor `after`. If there is none, the next one within `wait_s`."""
        pairs = [("after", after), ("limit", str(limit)), ("wait", f"{wait_s:g}"), *(("type", name) for name in types)]
        return self._request("GET", "/results" + _query(pairs))

    def nodes(self) -> Json:
        """GET /nodes."""
        return self._request("GET", "/nodes")

    def act_on_node(self, node: str, action: str) -> Json:
        """POST /nodes/{Node}/cordon, drain or uncordon."""
        return self._request("POST", f"/nodes/{quote(node, safe='')}/{action}", body={})

    def bulk(self, action: str, task_ids: Sequence[str], *, key: str) -> Json:
        """POST /bulk/replay, stop or resend; `key` is the Idempotency-Key."""
        return self._request("POST", f"/bulk/{action}", body={"TaskIds": list(task_ids)}, key=key)

    def version(self) -> str:
        """The service's version, from GET /healthz."""
        return str(self._request("GET", "/healthz").get("Version", ""))

    def check_ready(self) -> None:
        """GET /readyz. Raises ClientError with the reasons if the service is not ready."""
        self._request("GET", "/readyz")

    def _request(self, method: str, path: str, *, body: Mapping[str, Any] | None = None, key: str = "") -> Json:
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if key:
            headers["Idempotency-Key"] = key
        payload = None
        if body is not None:
            # As UTF-8 and not escaped: an escape would carry lone surrogates, which are no text.
            payload = json.dumps(body, ensure_ascii=False).encode()
            headers["Content-Type"] = "application/json"
        return _parsed(*self._exchange(method, path, payload, headers))

    def _exchange(self, method: str, path: str, payload: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection, prefix = self._connection()
        try:
            connection.request(method, prefix + path, body=payload, headers=dict(headers))
            response = connection.getresponse()
            return response.status, response.read()
        except ssl.SSLError as error:
            raise ClientError(f"No secure connection to {self.url}: {error.reason}.", exits.UNREACHABLE) from error
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(_unreachable(self.url, error), exits.UNREACHABLE) from error
        except ValueError as error:  # a token or key with characters that a header forbids
            names = "RECORDER_TOKEN or --key has" if "Idempotency-Key" in headers else "RECORDER_TOKEN has"
            raise ClientError(f"{names} characters that an HTTP header cannot carry.", exits.USAGE) from error
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        wrong = "RECORDER_URL must be an address such as http://127.0.0.1:8080."
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ClientError(wrong, exits.USAGE) from error
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
            raise ClientError(wrong, exits.USAGE)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(host, port, timeout=self.timeout_s), parts.path.rstrip("/")


def of_environment() -> ServiceClient:
    """The service that RECORDER_URL and RECORDER_TOKEN name."""
    return ServiceClient(url=os.environ.get("RECORDER_URL") or DEFAULT_URL, token=os.environ.get("RECORDER_TOKEN", ""))


def _query(pairs: Iterable[tuple[str, str]]) -> str:
    given = [(name, text) for name, text in pairs if text]
    return "?" + urlencode(given) if given else ""


def _unreachable(url: str, error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            why = "nothing listens there. Start the service with `recorder serve`, or set RECORDER_URL to its address"
        case TimeoutError():
            why = "it did not answer in time"
        case _:
            why = f"{type(error).__name__}. Is RECORDER_URL right?"
    return f"The service at {url} cannot be reached: {why.removesuffix('.')}."


def _parsed(status: int, raw: bytes) -> Json:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ClientError(f"The server at RECORDER_URL is not the recorder (HTTP {status}, no JSON).", exits.UNREACHABLE)
    if status < http.HTTPStatus.BAD_REQUEST:
        return body
    message = str(body.get("Message") or f"HTTP {status}")
    match status:
        case http.HTTPStatus.NOT_FOUND:
            code = exits.NOT_FOUND
        case http.HTTPStatus.SERVICE_UNAVAILABLE | http.HTTPStatus.BAD_GATEWAY | http.HTTPStatus.GATEWAY_TIMEOUT:
            code = exits.UNREACHABLE
        case _:
            code = exits.REFUSED
    raise ClientError(message, code, body)
