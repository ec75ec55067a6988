"""Response models: the bodies that the API answers with, errors, results and probes here, sessions in `session_models`.

Rule: the models document and never validate. A route returns a plain dict, and a test compares real answers with the models.
FastAPI writes the OpenAPI document from them; a component is named as its class without `Body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

SCHEMA_NAME = "x-event-schema"
"""Marks a reference to a definition of events/schemas.json: pydantic allows references only to its own models."""

Count = Annotated[int, pydantic.Field(ge=0)]
Seconds = Annotated[float, pydantic.Field(ge=0)]
Time = Annotated[str, pydantic.Field(description='ISO 8601 in UTC; "" if it has not happened.')]
Subject = Annotated[
    str, pydantic.Field(description='"" for the session, speaker/n for a recording, #revision for the delivery of a result.')
]


def one_of(*names: str) -> Any:
    """A string out of `names`, which the contract's tuples give: `Literal` takes none that are computed."""
    return pydantic.Field(json_schema_extra={"enum": list(names)})


def event_schema(name: str) -> Any:
    """A value as events/schemas.json defines it under `name`."""
    return pydantic.WithJsonSchema({SCHEMA_NAME: name})


class Body(pydantic.BaseModel):
    """A JSON object with exactly these fields, all of them present."""

    model_config = pydantic.ConfigDict(extra="forbid")


class AnswerBody(Body):
    """A whole answer, with the id of its request."""

    RequestId: str = pydantic.Field(description="The service's log has this id.")


class ErrorBody(AnswerBody):
    """Any error."""

    Code: str = pydantic.Field(description="InvalidParameter, Unauthorized, NotFound, FailedOperation, …")
    Message: str = pydantic.Field(description="Names the field and the reason.")


class ConflictBody(ErrorBody):
    """A start that another session excludes. AlreadyRecording has all fields."""

    TaskId: str = pydantic.Field("", description="The session that records this room for this UserId.")
    Fields: list[str] = pydantic.Field([], description="The fields in which the start differs from that session.")


class CursorLostBody(ErrorBody):
    """A cursor of a result that the database does not have."""

    Newest: str = pydantic.Field("", description="The cursor of the newest result.")


class ResultBody(Body):
    """One message to subscribers."""

    Cursor: str = pydantic.Field(description="The `after` that continues behind this result. Opaque: compare for equality only.")
    Id: str = pydantic.Field(description="Id of the message: the same over HTTP, the bus and the callback.")
    Type: str
    Time: Time
    Subject: str = pydantic.Field(description='TaskId or TaskId/speaker/n; "" for session-refused.')
    Data: dict[str, Any] = pydantic.Field(description="As `components` describes it under the name in Type.")


class ResultsBody(AnswerBody):
    """Results of all sessions, oldest first."""

    Results: list[ResultBody]
    Next: str = pydantic.Field(description="The `after` of the next request, also if there were no results.")


class AliveBody(AnswerBody):
    """The process is alive."""

    Status: Literal["alive"]
    Version: str


class ReadyBody(AnswerBody):
    """This node can take work."""

    Status: Literal["ready"]


class TakenBody(AnswerBody):
    """TRTC need not send the callback again."""

    code: Literal[0]
