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


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A deadline that has passed. `serial` identifies this arming: a later one of the same kind has another."""

    owner: job_key.OwnerKey
    kind: str
    serial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A job that a node holds."""

    owner: job_key.JobKey
    epoch: int
    kind: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The data that a worker needs for a job of a recording."""

    session: model.Session
    recording: model.Recording
    secrets: requests.Secrets
