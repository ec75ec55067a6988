"""What the HTTP room is given: one frozen value of functions and figures, and the shapes it expects of them.

May import `machine` and `events`. Rule: nothing here knows who implements it; `assembly` puts it together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from events import codec
from machine import api_keys, model, session_view, trtc_callback


class SessionQueries(Protocol):
    """Reads of the database. A Protocol, because `store` implements it and `web` may not import `store`."""

    async def sessions(
        self,
        *,
        state: str = "",
        sdk_app_id: int = 0,
        room: str = "",
        since_ms: int = 0,
        doubtful: bool = False,
        before: str = "",
        limit: int = 50,
    ) -> list[model.Session]: ...
    async def session(self, task_id: str) -> model.Session | None: ...
    async def counts(self, task_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]: ...
    async def parts(self, task_ids: Sequence[str]) -> Mapping[str, session_view.SessionParts]: ...
    async def segments(self, task_id: str) -> Sequence[session_view.SegmentView]: ...
    async def timeline(self, task_id: str) -> Sequence[session_view.TimelineEntry]: ...
    async def results(self, task_id: str) -> list[dict[str, Any]]: ...
    async def results_after(
        self, after: str, *, types: Sequence[str] = (), limit: int = 50
    ) -> tuple[Sequence[session_view.PublishedResult], str]: ...


async def _no_keys() -> Sequence[api_keys.ApiKey]:
    return ()


async def _note_nothing(key_id: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """`decide` decides one event, asked for by somebody or nobody, and answers after the commit, raising machine.errors. `ping`
    raises if the database does not answer. `ready` gives the reasons why this node should get no work; none means ready. `clock`
    is Unix ms. `tokens` are the bearer tokens; () means that none is asked for unless a key was made, which is for loopback only.
    `verify_callback` (SdkAppId, raw body, Sign) is false also for an application without a key; `map_callback` (SdkAppId, body)
    raises InvalidParameter. `progress` gives the media (ms) of the captures that run in this process, by recording id.
    `listeners` are called with each result that goes out: a hint to those who wait for one. `cluster_token` is what other nodes
    show to fetch a segment, whose place on this node's spool `segment_path` (recording id, epoch) knows. `keys` are the API keys,
    which `note_key_used` notes as used; a caller may ask `requests_per_minute` times a minute (0: as often as it likes), and a
    key without a quota of its own may have `quota` Open sessions (0: any number). `knows_callbacks` says whether an application
    has a callback key, and a callback is taken until `callback_window_ms` after it was sent (0: always). `draining` is true from
    the moment on when the service is told to stop."""

    decide: Callable[[codec.Event, model.Caller | None], Awaitable[dict[str, Any]]]
    queries: SessionQueries
    ping: Callable[[], Awaitable[None]]
    ready: Callable[[], list[str]]
    new_id: Callable[[], str]
    clock: Callable[[], int]
    verify_callback: Callable[[int, bytes, str], bool]
    map_callback: Callable[[int, dict[str, Any]], trtc_callback.CallbackEvent | trtc_callback.IgnoredCallback]
    progress: Callable[[], Mapping[str, int]] = dict
    keys: Callable[[], Awaitable[Sequence[api_keys.ApiKey]]] = _no_keys
    note_key_used: Callable[[str], Awaitable[None]] = _note_nothing
    requests_per_minute: int = 0
    quota: int = 0
    knows_callbacks: Callable[[int], bool] = lambda sdk_app_id: True
    callback_window_ms: int = 0
    listeners: list[Callable[[codec.Event], None]] = field(default_factory=list)
    draining: Callable[[], bool] = lambda: False
    policy: model.Policy = field(default_factory=model.Policy)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    cluster_token: str = field(default="", repr=False)
    segment_path: Callable[[str, int], Path | None] = lambda recording_id, epoch: None
    version: str = ""
