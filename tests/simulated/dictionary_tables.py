"""The tables of the dictionary store: one dictionary for each table of the database, and the rows that have no type elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from events import requests
from machine import model


class JobRow(NamedTuple):
    """A job's row."""

    kind: str
    state: str
    node: str
    lease_until_ms: int
    queued_ms: int = 0


class Line(NamedTuple):
    """A message of the outbox."""

    seq: int
    channel: str
    type: str
    task_id: str
    node: str
    body: bytes
    claimed_until_ms: int = 0
    sent_ms: int | None = None
    parked: str = ""


class JournalLine(NamedTuple):
    """A line of the timeline."""

    task_id: str
    owner: str
    at_ms: int
    event_id: str
    event_type: str
    from_state: str
    to_state: str
    note: str


@dataclass(slots=True)
class Tables:
    """The database, with keys as in its columns. A recording and a delivery carry their present job; `jobs` has all jobs."""

    inbox: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    sessions: dict[str, model.Session] = field(default_factory=dict)
    secrets: dict[str, requests.Secrets] = field(default_factory=dict)
    recordings: dict[str, model.Recording] = field(default_factory=dict)
    jobs: dict[tuple[str, int], JobRow] = field(default_factory=dict)
    leased: dict[tuple[str, int], bool] = field(default_factory=dict)
    segments: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    callbacks: dict[str, model.Delivery] = field(default_factory=dict)
    callback_urls: dict[str, str] = field(default_factory=dict)
    results: dict[tuple[str, int], str] = field(default_factory=dict)
    deadlines: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    again: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    outbox: dict[int, Line] = field(default_factory=dict)
    unsent: dict[int, bool] = field(default_factory=dict)
    journal: dict[int, JournalLine] = field(default_factory=dict)
    presence: dict[tuple[int, str, str, str], dict[str, Any]] = field(default_factory=dict)
    applications: dict[int, int] = field(default_factory=dict)
    audit: dict[int, tuple[str, str, str, str, str]] = field(default_factory=dict)
    nodes: dict[str, tuple[int, str, model.SpareCapacity | None]] = field(default_factory=dict)
    last_seq: int = 0
    writing: bool = False

    def of_sessions(self) -> tuple[dict[Any, Any], ...]:
        """The tables whose keys begin with a TaskId."""
        named = (
            self.sessions,
            self.secrets,
            self.callback_urls,
            self.recordings,
            self.jobs,
            self.uploads,
            self.callbacks,
            self.results,
        )
        return (*named, self.deadlines)
