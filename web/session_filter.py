"""The filter of lists of sessions, as query parameters of the API and of the console."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import pydantic

from events import errors as event_errors
from machine import session_view
from web import request_body

MAX_SDK_APP_ID = 2**32 - 1


class SessionFilter(pydantic.BaseModel):
    """Query parameters of GET /sessions; any other parameter is an error."""

    model_config = pydantic.ConfigDict(extra="forbid")

    state: Literal["", "Open", "Closing", "Finished"] = pydantic.Field("", description="Only sessions in this state.")
    stuck: bool = pydantic.Field(False, description="Only sessions that need attention; `Stuck` has the reasons.")
    undelivered: bool = pydantic.Field(False, description="Only sessions whose newest result was given up, not delivered.")
    app: int = pydantic.Field(
        0, ge=0, le=MAX_SDK_APP_ID, description="Only sessions of this TRTC application; 0: of every application."
    )
    room: str = pydantic.Field(
        "", max_length=64, pattern=request_body.TEXT, description="Only sessions in this room, integer or string."
    )
    user: str = pydantic.Field("", max_length=64, pattern=request_body.TEXT, description="Only sessions of this recording user.")
    speaker: str = pydantic.Field("", max_length=64, pattern=request_body.TEXT, description="Only sessions with this speaker.")
    node: str = pydantic.Field(
        "", max_length=64, pattern=request_body.TEXT, description="Only sessions of which this node holds a job now."
    )
    code: Literal["", "Success", "Partial", "FailedRecording", "FailedTranscode", "FailedCosWrite"] = pydantic.Field(
        "", description="Only sessions with a recording that ended with this Code; with `speaker`, one of that speaker."
    )
    since: str = pydantic.Field("", max_length=40, description="Only sessions opened at or after this ISO 8601 time.")
    until: str = pydantic.Field("", max_length=40, description="Only sessions opened before this ISO 8601 time.")
    limit: int = pydantic.Field(50, ge=1, le=100, description="The largest number of sessions.")
    before: str = pydantic.Field(
        "",
        max_length=26,
        pattern=request_body.TEXT,
        description="A TaskId: only older sessions. Use `Next` of the previous page.",
    )

    def wanted(self) -> session_view.SessionFilter:
        """The filter of the query. Raises InvalidEvent for a time that cannot be read."""
        return session_view.SessionFilter(
            state=self.state,
            sdk_app_id=self.app,
            room=self.room,
            user_id=self.user,
            speaker=self.speaker,
            node=self.node,
            code=self.code,
            since_ms=time_ms("since", self.since),
            until_ms=time_ms("until", self.until),
            undelivered=self.undelivered,
        )


def time_ms(field: str, text: str) -> int:
    """An ISO 8601 time as Unix ms, 0 for ""; one without an offset is UTC. Raises InvalidEvent, which names the field."""
    if not text:
        return 0
    try:
        time = datetime.fromisoformat(text)
        return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise event_errors.InvalidEvent(field, "must be an ISO 8601 time such as 2026-11-02T08:00:00Z") from None
