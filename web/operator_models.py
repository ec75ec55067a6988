"""Response models of the operators' routes: nodes, dead letters, API keys, the audit. Rule: as in `models`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import pydantic

from machine import api_keys, nodes
from web import models, session_models

NODE_STATES = ("active", nodes.CORDONED, nodes.DRAINING, nodes.DRAINED, nodes.AWAY)


class SlotsBody(models.Body):
    """Jobs of one kind in progress, and how many the node takes at a time."""

    Used: models.Count
    Limit: Annotated[int, pydantic.Field(ge=0, description="0: no fixed limit.")]


class NodeFields(models.Body):
    """One node, by its last heartbeat."""

    Node: str = pydantic.Field(description="Name of the node; a worker keeps it with its spool.")
    Host: str = pydantic.Field(description='Name of its machine; "" for a node of an earlier version.')
    Address: str = pydantic.Field(description="URL of its HTTP server.")
    Roles: list[str]
    Version: str
    State: Annotated[str, models.one_of(*NODE_STATES)] = pydantic.Field(
        description="active; cordoned: it takes no new captures; draining: it also hands over those that it has; drained: none is"
        " left; away: it sends no heartbeat."
    )
    Cordon: Annotated[str, models.one_of(nodes.ACTIVE, nodes.CORDONED, nodes.DRAINING)] = pydantic.Field(
        description='What an operator asked of it; "" for nothing. It survives a restart of the node.'
    )
    Started: models.Time
    LastHeartbeat: models.Time
    Captures: models.Count = pydantic.Field(description="Captures that it has leased.")
    Leases: dict[str, int] = pydantic.Field(description="Its leases by the kind of job, counted in the table of jobs.")
    Slots: dict[str, SlotsBody] = pydantic.Field(description="By the kind of job; empty for a node that is no worker.")
    FreeBytes: int | None = pydantic.Field(description="Free space of its spool; null if unknown.")
    NeededBytes: int | None = pydantic.Field(description="Free space that one more capture requires; null for no worker.")
    Busy: str = pydantic.Field(description='Why it takes no capture now; "" if it takes one.')
    ClockAheadMs: int | None = pydantic.Field(description="How far its clock is ahead of the database's; null if unknown.")


class NodeBody(NodeFields, models.AnswerBody):
    """One node."""


class NodesBody(models.AnswerBody):
    """The living nodes, and the workers that are away."""

    Nodes: list[NodeFields]


class Outcome(NamedTuple):
    """What became of one of many: OK, or the Code of the refusal, and one sentence."""

    code: str
    message: str


OK = "ok"
Code = Annotated[str, pydantic.Field(description="ok, NotNeeded, or the Code of the refusal.")]


class BulkOutcomeBody(models.Body):
    """What became of one session."""

    TaskId: session_models.TaskId
    Code: Code
    Message: str


class BulkBody(models.AnswerBody):
    """What became of each session."""

    Done: models.Count = pydantic.Field(description="How many were acted on.")
    Outcomes: list[BulkOutcomeBody]


class ParkedFields(models.Body):
    """One message that could not be handled."""

    Id: str
    In: Annotated[str, models.one_of("outbox", "queue")]
    Key: str = pydantic.Field(description="Its routing key.")
    MessageId: str
    Time: models.Time
    Size: models.Count = pydantic.Field(description="Bytes.")
    Reason: str


class ParkedMessagesBody(models.AnswerBody):
    """The oldest messages of each place."""

    Messages: list[ParkedFields]
    Count: models.Count = pydantic.Field(description="The number of all.")


class ParkedMessageBody(ParkedFields, models.AnswerBody):
    """One message, its secrets masked."""

    Headers: dict[str, str]
    Body: str


class ParkedOutcomeBody(models.Body):
    """What became of one message."""

    Id: str
    Code: Code
    Message: str


class ParkedOutcomesBody(models.AnswerBody):
    """What became of each message."""

    Done: models.Count = pydantic.Field(description="How many were acted on.")
    Outcomes: list[ParkedOutcomeBody]


class KeyFields(models.Body):
    """One API key."""

    Id: str
    Name: str
    Scopes: list[Annotated[str, models.one_of(*api_keys.SCOPES)]]
    Quota: models.Count = pydantic.Field(description="Limit of Open sessions; 0: the limit of API_SESSIONS.")
    Created: models.Time
    Used: models.Time = pydantic.Field(description="Accurate to a minute.")
    Revoked: models.Time


class KeyBody(KeyFields, models.AnswerBody):
    """One API key."""


class CreatedKeyBody(KeyFields, models.AnswerBody):
    """An API key that was just created."""

    Key: str = pydantic.Field(description="Its text. It is not shown again.")


class KeysBody(models.AnswerBody):
    """Every API key, oldest first."""

    Keys: list[KeyFields]


class AuditEntryBody(models.Body):
    """One action of an operator or of an API key."""

    Time: models.Time
    Who: str
    Action: str
    Subject: str
    Outcome: str = pydantic.Field(description="ok, or the Code of the refusal.")


class AuditBody(models.AnswerBody):
    """A page of the audit, newest first."""

    Audit: list[AuditEntryBody]
    Next: models.Count = pydantic.Field(description="The `before` of the next page; 0 after the last one.")
