"""Response models of the routes under /sessions: the list, one session with its parts, and the outcome of start, stop and replay.

Rule: names of fields are contract. `models.event_schema` refers to a definition of events/schemas.json.
"""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from machine import attention, delivery, states
from web import models

TaskId = Annotated[str, models.event_schema("TaskId")]
SessionState = Annotated[str, models.one_of(*states.SESSION_STATES)]
RecordingState = Annotated[str, models.one_of(*states.RECORDING_STATES)]
NextStep = Annotated[
    str, pydantic.Field(description='The next step of the operator, one sentence with its command; "" if none is needed.')
]
Warnings = Annotated[
    list[str],
    pydantic.Field(description="Missing configuration that affects this session, as far as nothing has disproved it since."),
]
RecordingCounts = Annotated[
    dict[str, int],
    pydantic.WithJsonSchema(
        {
            "type": "object",
            "description": "The number of recordings in each state; states without any are left out.",
            "properties": {state: {"type": "integer", "minimum": 1} for state in states.RECORDING_STATES},
            "additionalProperties": False,
        }
    ),
]


class FindingBody(models.Body):
    """One reason why a session needs attention."""

    Rule: str = pydantic.Field(description="Name of the rule, for programs.")
    Of: models.Subject
    Why: str
    Next: NextStep


class AttentionBody(models.Body):
    """One thing that needs attention beyond single sessions."""

    Cause: Annotated[str, models.one_of(*attention.CAUSES)]
    Subject: str = pydantic.Field(description='The node, row or place; "" for all.')
    Since: models.Time
    Why: str
    Next: NextStep


class SessionHead(models.Body):
    """The fields that the list and a single session share."""

    TaskId: TaskId
    State: SessionState
    EndReason: Annotated[str, models.one_of("", *states.END_REASONS)] = pydantic.Field(
        description='The reason for closing; "" while the session is Open.'
    )
    SdkAppId: str = pydantic.Field(description="TRTC application, decimal.")
    RoomId: str = pydantic.Field(description='Integer room, decimal; "" for a string room.')
    StrRoomId: str = pydantic.Field(description='String room; "" for an integer room.')
    UserId: str = pydantic.Field(description="The recording user.")
    Mode: Annotated[str, models.one_of("00", "01", "02")]
    OpenedTime: models.Time
    ClosingTime: models.Time
    FinishedTime: models.Time
    Revision: models.Count = pydantic.Field(description="Revision of the newest result; 0 before the first.")
    UserData: Any = pydantic.Field(description="The UserData of the start; null if it had none.")
    Stuck: list[FindingBody] = pydantic.Field(
        description="The reasons why the session needs attention. In the list they are filled in only with `stuck=true`."
    )


class SessionLineBody(SessionHead):
    """One session of the list."""

    Recordings: RecordingCounts


class SessionsBody(models.AnswerBody):
    """A page of sessions, newest first."""

    Sessions: list[SessionLineBody]
    Next: str = pydantic.Field(description='The `before` of the next page; "" on the last page.')
    Attention: list[AttentionBody] = pydantic.Field(
        description="What needs attention beyond single sessions. Filled in only with `stuck=true`."
    )


class JobBody(models.Body):
    """The job of a recording and its node."""

    Kind: str
    State: str
    Node: str


class SegmentBody(models.Body):
    """One FLV file of a recording, written by one run of a capture."""

    Epoch: models.Count
    Node: str = pydantic.Field(description="The node whose spool has the file.")
    StartTime: models.Time
    EndTime: models.Time
    MediaSeconds: models.Seconds
    Size: models.Count = pydantic.Field(description="Bytes.")
    EndedBy: str = pydantic.Field(description='The reason for the end of the capture; "" while it runs.')
    Live: bool = pydantic.Field(description="The file grows at this moment.")


class GapBody(models.Body):
    """A gap."""

    At: models.Seconds = pydantic.Field(description="Position in the media.")
    Duration: models.Seconds = pydantic.Field(description="Missing seconds of wall time at that position.")


class RecordingBody(models.Body):
    """One appearance of one speaker."""

    Speaker: str
    N: models.Count
    State: RecordingState
    Capture: Annotated[str, models.one_of(*states.CAPTURES)]
    Job: JobBody | None
    Attempt: models.Count = pydantic.Field(description="1 at first, plus 1 for each replay.")
    Tries: models.Count = pydantic.Field(description="Consecutive failures of the current step.")
    Code: str
    Detail: str
    Next: NextStep
    StopRequested: bool
    Present: bool | None = pydantic.Field(
        description="Whether TRTC callbacks report the speaker as present; null without callbacks."
    )
    Awaited: bool = pydantic.Field(description="A subscribed speaker who was never seen.")
    OpenedTime: models.Time
    StartTime: models.Time
    EndTime: models.Time
    EndedTime: models.Time
    MediaSeconds: models.Seconds = pydantic.Field(description="Captured so far, the running capture included.")
    FilesRemoved: bool = pydantic.Field(description="The spool has no file of this recording any more.")
    Segments: list[SegmentBody] = pydantic.Field(description="The newest ones, oldest first.")
    SegmentsOmitted: models.Count = pydantic.Field(description="Older segments that `Segments` leaves out.")
    Gaps: list[GapBody] = pydantic.Field(
        description="Media missing in the file; before it exists, between the segments of `Segments`."
    )
    File: Annotated[dict[str, Any], models.event_schema("File")] | None = pydantic.Field(
        description="Its entry in the result; null until the recording has ended."
    )


DeliveryState = Annotated[str, models.one_of(delivery.PENDING, delivery.DELIVERED, delivery.FAILED, delivery.CANCELLED)]


class CallbackBody(models.Body):
    """The delivery of one revision of the result to the callback URL."""

    Revision: models.Count
    Host: str = pydantic.Field(description="Host of the callback URL.")
    State: DeliveryState
    Tries: models.Count = pydantic.Field(description="Failed posts since it was sent, or sent again.")
    Detail: str
    Attempts: models.Count = pydantic.Field(description="All posts.")
    LastTime: models.Time = pydantic.Field(description='When the last post ended; "" before the first.')
    NextTime: models.Time = pydantic.Field(description='When it is posted again; "" if no retry waits.')
    Answer: str = pydantic.Field(description="The answer of the receiver, in words.")


class ManifestBody(models.Body):
    """The newest manifest of a session, manifest.json beside its files."""

    Revision: models.Count = pydantic.Field(description="Revision of the result in it.")
    State: DeliveryState
    Detail: str = pydantic.Field(description="Why the last attempt failed.")
    Attempts: models.Count
    LastTime: models.Time = pydantic.Field(description='When the last attempt ended; "" before the first.')
    NextTime: models.Time = pydantic.Field(description='When it is tried again; "" if no retry waits.')


class TimelineLineBody(models.Body):
    """One event and its effect. Repeats without a change of state in between are one line."""

    Time: models.Time = pydantic.Field(description="ISO 8601 in UTC; the last time if the event repeated.")
    Of: models.Subject
    Event: str
    From: str
    To: str
    Note: str
    Count: Annotated[int, pydantic.Field(ge=1)] = pydantic.Field(description="How often it happened.")
    FirstTime: models.Time


class CosConfigBody(models.Body):
    """The destination of the files."""

    Region: str
    Bucket: str
    Path: str
    StorageClass: str = pydantic.Field(default="", description="Present if the start gave it, like the fields below.")
    ServerSideEncryption: str = ""
    SSEKMSKeyId: str = ""
    Tagging: str = ""


class SessionBody(SessionHead, models.AnswerBody):
    """A session with its recordings, timeline and results."""

    CosConfig: CosConfigBody
    Callback: str = pydantic.Field(description="Scheme and host of the callback URL; the remainder can be a secret.")
    SubscribeUserIds: list[str]
    UnSubscribeUserIds: list[str]
    CallbackEvents: list[str]
    Warnings: Warnings
    Next: NextStep
    Recordings: list[RecordingBody]
    RecordingsNext: str = pydantic.Field(description='The `recordings` of the next page; "" on the last page.')
    Callbacks: list[CallbackBody]
    Manifest: ManifestBody | None = pydantic.Field(description="null if the session has none.")
    Timeline: list[TimelineLineBody] = pydantic.Field(description="The newest lines, oldest first.")
    TimelineNext: str = pydantic.Field(description='The `timeline` of the page with older lines; "" if there are none.')
    Results: list[Annotated[dict[str, Any], models.event_schema("session-finished")]] = pydantic.Field(
        description="The newest revisions of the result, oldest first; all of them unless they are many or large."
    )
    ResultsNext: str = pydantic.Field(description='The `results` of the page with older revisions; "" if there are none.')


class AcceptedBody(models.AnswerBody):
    """The start was accepted."""

    TaskId: TaskId
    Repeated: bool = pydantic.Field(description="The session was Open already; only its secrets were renewed.")
    Warnings: Warnings


class StoppedBody(models.AnswerBody):
    """The session closes."""

    TaskId: TaskId
    State: SessionState


class ReplayedRecordingBody(models.Body):
    """One recording."""

    Speaker: str
    N: models.Count
    State: RecordingState
    To: RecordingState
    Attempt: models.Count
    Action: str = pydantic.Field(description="What is done, in words.")
    Object: str = pydantic.Field(description='Address of the object that it writes; "" for none.')


class SkippedRecordingBody(models.Body):
    """A recording that a replay leaves as it is."""

    Speaker: str
    N: models.Count
    Why: str = pydantic.Field(description="The reason, one sentence.")


class ReplayedBody(models.AnswerBody):
    """The effect on each recording."""

    TaskId: TaskId
    Recordings: list[ReplayedRecordingBody]
    Skipped: list[SkippedRecordingBody] = pydantic.Field(description="Recordings that were chosen and cannot be replayed.")
    Result: Annotated[dict[str, Any], models.event_schema("session-finished")] | None = pydantic.Field(
        description="Dry run: the next result if everything succeeds; what only the transcode will know is empty. Else, and while"
        " the session is Open, null."
    )


class ResentBody(models.AnswerBody):
    """The result is posted again."""

    TaskId: TaskId
    Revision: models.Count
    State: DeliveryState
