"""What the HTTP room is given: one frozen value of functions and figures, and the shapes it expects of them.

May import `machine` and `events`. Rule: nothing here knows who implements it; `service.py` puts it together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from events import codec
from machine import model


class Line(Protocol):
    """One line of a session's timeline (store.reading.Line)."""

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


class Reading(Protocol):
    """Read-only views of the database (store.reading.Reading)."""

    async def sessions(self, *, state: str = "", limit: int = 50, before: str = "") -> list[model.Session]: ...
    async def session(self, task_id: str) -> model.Session | None: ...
    async def recordings(self, task_id: str) -> list[model.Recording]: ...
    async def callbacks(self, task_id: str) -> list[model.Callback]: ...
    async def timeline(self, task_id: str) -> Sequence[Line]: ...
    async def results(self, task_id: str) -> list[dict[str, Any]]: ...


class Understood(Protocol):
    """A TRTC callback in our words (cloud.trtc_callbacks.CallbackEvent). `data` may hold more than the event's schema knows."""

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
    """A genuine TRTC callback that changes nothing, and why (cloud.trtc_callbacks.Ignored)."""

    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """`decide` decides one event and answers after the commit, raising machine.errors. `ping` raises if the database does not
    answer. `ready` gives the reasons why this node should get no work; none means ready. `clock` is Unix ms. `tokens` are the
    bearer tokens; () means that no token is asked for, which is for loopback only. `verify_callback` (SdkAppId, raw body, Sign)
    is false also for an application without a key; `map_callback` (SdkAppId, body) raises InvalidParameter."""

    decide: Callable[[codec.Event], Awaitable[dict[str, Any]]]
    reading: Reading
    ping: Callable[[], Awaitable[None]]
    ready: Callable[[], list[str]]
    new_id: Callable[[], str]
    clock: Callable[[], int]
    verify_callback: Callable[[int, bytes, str], bool]
    map_callback: Callable[[int, dict[str, Any]], Understood | Ignored]
    tokens: tuple[str, ...] = field(default=(), repr=False)
    version: str = ""
