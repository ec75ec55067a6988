"""What the store hands to relay, sweeper and workers: values, not rows. Imports `machine` and `events`."""

from __future__ import annotations

from dataclasses import dataclass

from events import requests
from machine import model


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message in the outbox that was not sent yet."""

    seq: int
    channel: str
    type: str
    node: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A deadline that is over."""

    owner: str
    kind: str
    serial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A job that a node holds. `recording` or `callback` id in `owner`."""

    owner: str
    epoch: int
    kind: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a worker needs to know of its job."""

    session: model.Session
    recording: model.Recording
    secrets: requests.Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One FLV file of a recording, named by the epoch that wrote it; it lies on `node`'s spool. `reason` is how its run ended, ""
    as long as nobody has told."""

    epoch: int
    node: str
    first_packet_ms: int | None
    last_packet_ms: int | None
    media_ms: int
    registered_ms: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What lies of a given-up recording on a node's spool: the epochs of its segments there. All that epochs up to `until_epoch`
    wrote was given up, and nothing of later ones."""

    until_epoch: int
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What may lie of a recording on any spool, whoever wrote it there. If `given_up`, all that epochs up to `epoch` wrote may
    go; else what transcodes before `epoch` made, but for the verified file of `output_epoch` (None: there is none, all stays)."""

    recording_id: str
    epoch: int
    given_up: bool
    output_epoch: int | None
