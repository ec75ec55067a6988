"""What the HTTP room is given: one frozen value of functions and figures, and the shapes it expects of them.

May import `machine` and `events`. Rule: nothing here knows who implements it; `assembly` puts it together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from events import codec
from machine import api_keys, model


class Line(Protocol):
    """One line of a session's timeline (store.queries.Line)."""

    @property
    def at_ms(self) -> int: ...
    @property
    def owner(self) -> str: ...
    @property
    def event_type(self) -> str: ...
    @property
    def from_state(self) -> str: ...
    @property
    def to_state(self) -> str: ...
    @property
    def note(self) -> str: ...


class Segment(Protocol):
    """One FLV file of a recording (store.queries.Segment). `reason` is "" while its run is under way."""

    @property
    def recording_id(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def node(self) -> str: ...
    @property
    def first_packet_ms(self) -> int | None: ...
    @property
    def last_packet_ms(self) -> int | None: ...
    @property
    def media_ms(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def reason(self) -> str: ...


class Work(Protocol):
    """A queued or leased job (store.queries.Work)."""

    @property
    def kind(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def since_ms(self) -> int: ...
    @property
    def lease_until_ms(self) -> int: ...


class Evidence(Protocol):
    """What stands behind a session (store.queries.Evidence)."""

    @property
    def recordings(self) -> Sequence[model.Recording]: ...
    @property
    def callbacks(self) -> Sequence[model.Delivery]: ...
    @property
    def works(self) -> Mapping[str, Work]: ...


class Result(Protocol):
    """One message to subscribers (store.queries.Result)."""

    @property
    def cursor(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def time(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


class Reading(Protocol):
    """Read-only views of the database (store.queries.Reading)."""

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
    async def evidence(self, task_ids: Sequence[str]) -> Mapping[str, Evidence]: ...
    async def segments(self, task_id: str) -> Sequence[Segment]: ...
    async def timeline(self, task_id: str) -> Sequence[Line]: ...
    async def results(self, task_id: str) -> list[dict[str, Any]]: ...
    async def results_after(self, after: str, *, types: Sequence[str] = (), limit: int = 50) -> tuple[Sequence[Result], str]: ...


class Understood(Protocol):
    """A TRTC callback in our words (tencent.trtc_callbacks.CallbackEvent). `data` may hold more than the event's schema knows."""

    @property
    def type(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def data(self) -> Mapping[str, object]: ...
    @property
    def event_ms(self) -> int: ...


@runtime_checkable
class Ignored(Protocol):
    """A genuine TRTC callback that changes nothing, and why (tencent.trtc_callbacks.Ignored)."""

    @property
    def reason(self) -> str: ...


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
    reading: Reading
    ping: Callable[[], Awaitable[None]]
    ready: Callable[[], list[str]]
    new_id: Callable[[], str]
    clock: Callable[[], int]
    verify_callback: Callable[[int, bytes, str], bool]
    map_callback: Callable[[int, dict[str, Any]], Understood | Ignored]
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
