"""Dependencies of the HTTP API: one frozen value of functions and settings, which `assembly` builds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from events import codec, requests
from machine import (
    api_keys,
    attention,
    backlog,
    encryption,
    errors,
    job_key,
    metrics,
    model,
    nodes,
    overview,
    session_view,
    trtc_callback,
)


class SessionQueries(Protocol):
    """Reads of the database. A Protocol, because `store` implements it and `web` may not import `store`."""

    async def sessions(
        self, wanted: session_view.SessionFilter = ..., *, before: str = "", limit: int = 50
    ) -> tuple[Sequence[model.Session], str]: ...
    async def session(self, task_id: str) -> model.Session | None: ...
    async def counts(self, task_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]: ...
    async def parts(self, task_ids: Sequence[str]) -> Mapping[str, session_view.SessionParts]: ...
    async def next_tries(self, owners: Sequence[job_key.JobKey]) -> Mapping[str, int]: ...
    async def recordings(self, task_id: str, *, first: int, limit: int) -> Sequence[model.Recording]: ...
    async def segments(self, task_id: str, *, only: Sequence[str]) -> Sequence[session_view.SegmentView]: ...
    async def timeline(self, task_id: str, *, before: int, limit: int) -> Sequence[session_view.TimelineEntry]: ...
    async def results(self, task_id: str, *, before: int) -> list[dict[str, Any]]: ...
    async def results_after(
        self, after: str, *, types: Sequence[str] = (), limit: int = 50
    ) -> tuple[Sequence[session_view.PublishedResult], str]: ...


class AttentionQueries(Protocol):
    """What the database knows of the need for attention."""

    async def nodes(self) -> Sequence[attention.NodeView]: ...
    async def parked(self) -> Sequence[attention.Attention]: ...
    async def unreadable(self) -> Sequence[attention.Attention]: ...


class OverviewQueries(Protocol):
    """Figures of the whole installation, and what changed lately."""

    async def hours(self, begins_ms: Sequence[int], length_ms: int = ...) -> Sequence[overview.Hour]: ...
    async def newest_line(self) -> int: ...
    async def lines_after(self, after: int) -> Sequence[tuple[int, str]]: ...
    async def sessions_of(self, task_ids: Sequence[str]) -> Sequence[model.Session]: ...


class Operations(Protocol):
    """What operators do beyond sessions. A Protocol for the same reason; `assembly` implements it. `by` is the caller, for the
    audit."""

    async def list_nodes(self) -> Sequence[nodes.NodeRow]: ...
    async def cordon(self, node: str, cordon: str, by: model.Caller) -> nodes.NodeRow: ...
    async def parked(self, limit: int) -> dict[str, Any]: ...
    async def show_parked(self, id_: str) -> dict[str, Any]: ...
    async def requeue_parked(self, id_: str, by: model.Caller) -> dict[str, Any]: ...
    async def drop_parked(self, id_: str, by: model.Caller) -> dict[str, Any]: ...
    async def list_keys(self) -> Sequence[dict[str, Any]]: ...
    async def create_key(self, name: str, scopes: Sequence[str], quota: int, by: model.Caller) -> dict[str, Any]: ...
    async def revoke_key(self, id_: str, by: model.Caller) -> dict[str, Any]: ...
    async def audit(self, before: int, limit: int) -> tuple[Sequence[dict[str, Any]], int]: ...


async def _no_keys() -> Sequence[api_keys.ApiKey]:
    return ()


async def _note_nothing(key_id: str) -> None: ...


async def _audit_nothing(by: model.Caller, action: str, subject: str, outcome: str) -> None: ...


async def _no_file(key: job_key.RecordingKey) -> str:
    raise errors.Refused("This service does not give links to its files.")


async def _no_gauges() -> metrics.Samples:
    return {}


async def _no_backlog() -> backlog.Backlog:
    return backlog.NONE


async def _no_segment(recording: str, epoch: int, suffix: str) -> None: ...


class LiveView(Protocol):
    """One viewer's MP4. A Protocol, because `media` implements it and `web` may not import `media`."""

    @property
    def media_type(self) -> str: ...
    async def read(self) -> bytes: ...


def _no_view(key: job_key.RecordingKey) -> AbstractAsyncContextManager[LiveView]:
    raise errors.NotFound("This service has no live views.")


def _no_live_segment(recording: str, epoch: int, mode: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    raise errors.NotFound("This node has no such segment.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The functions and settings of one service's API. Times are Unix ms; an error is one of machine.errors."""

    # Decides an event, with its caller if there is one, and returns the answer after the commit.
    decide: Callable[[codec.Event, model.Caller | None], Awaitable[dict[str, Any]]]
    # Takes the event of a TRTC callback; returns after the commit. Raises Unavailable if too many wait.
    take_callback: Callable[[codec.Event], Awaitable[None]]
    queries: SessionQueries
    # Raises if the database does not answer.
    ping: Callable[[], Awaitable[None]]
    # The reasons why this node cannot take work; none means ready.
    ready: Callable[[], list[str]]
    new_id: Callable[[], str]
    clock: Callable[[], int]
    # (SdkAppId, raw body, Sign) → whether the signature is valid; False for an application without a callback key.
    verify_callback: Callable[[int, bytes, str], bool]
    # (SdkAppId, body) → the callback's event, or why it has none. Raises InvalidParameter.
    map_callback: Callable[[int, dict[str, Any]], trtc_callback.CallbackEvent | trtc_callback.IgnoredCallback]
    # (SdkAppId, raw body, Sign): passes a verified callback on to the application's own receiver; it neither waits nor raises.
    forward_callback: Callable[[int, bytes, str], None] = lambda sdk_app_id, body, sign: None
    # Recording → media (ms) of its capture in this process.
    progress: Callable[[], Mapping[job_key.RecordingKey, int]] = dict
    # The API keys, and how to note that one was used.
    keys: Callable[[], Awaitable[Sequence[api_keys.ApiKey]]] = _no_keys
    note_key_used: Callable[[str], Awaitable[None]] = _note_nothing
    # Encrypts the console's cookies; the same on every node.
    keyring: encryption.Keyring = field(default_factory=lambda: encryption.Keyring([encryption.new_key()]), repr=False)
    # (caller, action, subject, outcome): writes a line of the audit.
    audit: Callable[[model.Caller, str, str, str], Awaitable[None]] = _audit_nothing
    # Requests a minute of one caller; 0: no limit.
    requests_per_minute: int = 0
    # Open sessions of a key without a quota of its own; 0: no limit.
    quota: int = 0
    # Whether an application has a callback key.
    knows_callbacks: Callable[[int], bool] = lambda sdk_app_id: True
    # The largest difference between a callback's CallbackTs and the clock; 0: no limit.
    callback_window_ms: int = 0
    # What an operator must do although the service is ready.
    warnings: Callable[[], Sequence[str]] = tuple
    # Called with each published result, to wake waiting requests.
    listeners: list[Callable[[codec.Event], None]] = field(default_factory=list)
    # True as soon as the service begins to stop.
    draining: Callable[[], bool] = lambda: False
    policy: model.Policy = field(default_factory=model.Policy)
    # Whether there can be other nodes. Where there are none, `own_node` is this one as it is now.
    distributed: bool = False
    own_node: Callable[[], Awaitable[attention.NodeView]] | None = None
    # What the overview of the console shows.
    overview_queries: OverviewQueries | None = None
    backlog: Callable[[], Awaitable[backlog.Backlog]] = _no_backlog
    # What needs attention: as the database knows, and as this process knows.
    attention_queries: AttentionQueries | None = None
    findings: Callable[[], Sequence[attention.Attention]] = tuple
    # What operators do beyond sessions; None: the application has no routes for it.
    operations: Operations | None = None
    # Bearer tokens of API_TOKENS. Without tokens and keys no request needs one, which only loopback allows.
    tokens: tuple[str, ...] = field(default=(), repr=False)
    # The gauges of a scrape, and the token that reads nothing but metrics; "": none.
    gauges: Callable[[], Awaitable[metrics.Samples]] = _no_gauges
    metrics_token: str = field(default="", repr=False)
    # The token with which other nodes fetch segments.
    cluster_token: str = field(default="", repr=False)
    # (recording id, epoch, suffix) → the file on this node's spool that is named as the segment and this suffix, and when it was
    # last written (Unix ms); or None.
    segment_file: Callable[[str, int, str], Awaitable[tuple[Path, int] | None]] = _no_segment
    # The live view of a recording. Raises NotFound, Refused if it cannot be watched now, and Unavailable.
    live_view: Callable[[job_key.RecordingKey], AbstractAsyncContextManager[LiveView]] = _no_view
    # (recording id, epoch, mode) → the end of that segment on this node's spool, as FLV. Raises NotFound and Unavailable.
    live_segment: Callable[[str, int, str], AbstractAsyncContextManager[AsyncIterator[bytes]]] = _no_live_segment
    # A short-lived URL of a recording's uploaded file. Raises NotFound, Refused, Unavailable.
    file_url: Callable[[job_key.RecordingKey], Awaitable[str]] = _no_file
    # The origin of these URLs.
    file_origin: Callable[[requests.StartRequest], str] = lambda request: ""
    version: str = ""
