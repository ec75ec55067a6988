"""Work that the store hands out: messages to send, deadlines to report, leases to judge, and the data of a leased job."""

from __future__ import annotations

from dataclasses import dataclass

from events import requests
from machine import job_key, model


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """A message of the outbox that was not sent yet."""

    seq: int
    channel: str  # event, command or result
    type: str
    node: str  # the only node that the message is for; "": any
    body: bytes
    task_id: str = ""  # of a due message: the session whose messages are delivered in order; "": none
    retried: bool = False  # of a due message: it was handed out before and failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """An armed deadline. `serial` identifies this arming: a later one of the same kind has another."""

    owner: job_key.OwnerKey
    kind: str
    serial: str
    over_ms: int  # when it passes
    left_ms: int = 0  # the time until then, by the database's clock
    published: bool  # its event was published, and nothing has come of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A job that a node holds."""

    owner: job_key.JobKey
    epoch: int
    kind: str
    node: str
    over_ms: int = 0  # when it ends without a renewal
    left_ms: int = 0  # the time until then, by the database's clock
    published: bool = False  # its end was published, and nothing has come of it


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A job whose command was issued, and which no node has taken."""

    owner: job_key.JobKey
    epoch: int
    kind: str
    node: str  # the only node it is for; "": any
    over_ms: int  # when it was queued
    left_ms: int = 0  # the time since then, negative, by the database's clock
    published: bool = True  # its command was issued


REISSUE_MS = model.MINUTE
"""A job is queued for so long before its command is issued again: a broker may lose a message that it confirmed."""
Overdue = Deadline | Lease | QueuedJob
"""Work whose time is over: an event tells the handlers, or the command of a queued job is issued again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestAssignment:
    """The data that a worker needs for the job of a manifest: `body` is the object's content."""

    session: model.Session
    secrets: requests.Secrets
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The data that a worker needs for a job of a recording."""

    session: model.Session
    recording: model.Recording
    secrets: requests.Secrets
