"""Job keys: the session, recording or delivery that owns a job, a deadline, a journal entry or a message.

Rule: code passes keys, so the type checker sees the wrong kind. Only the database, messages and logs have their text: `TaskId`,
`TaskId/speaker/n` or `TaskId#revision`. A key formats it once, because decisions need it several times.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SessionKey:
    """The key of a session. It owns deadlines, and no job."""

    task_id: str
    text: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.task_id)

    def __str__(self) -> str:
        return self.text

    __repr__ = to_json = __str__  # log lines show the repr, events the JSON


@dataclass(frozen=True, slots=True)
class RecordingKey:
    """The key of a recording."""

    task_id: str
    speaker: str  # may contain "/" and "#"
    n: int
    text: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", f"{self.task_id}/{self.speaker}/{self.n}")

    def __str__(self) -> str:
        return self.text

    __repr__ = to_json = __str__

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> RecordingKey:
        """The recording that the data of a message names."""
        return cls(data["TaskId"], data["Speaker"], data["N"])

    def fields(self) -> dict[str, Any]:
        """The opposite of `of`."""
        return {"TaskId": self.task_id, "Speaker": self.speaker, "N": self.n}


recording = functools.lru_cache(maxsize=4096)(RecordingKey)
"""The key of a recording, made once: a decision asks for it a dozen times."""


@dataclass(frozen=True, slots=True)
class DeliveryKey:
    """The key of the delivery of one revision of a session's result."""

    task_id: str
    revision: int
    text: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", f"{self.task_id}#{self.revision}")

    def __str__(self) -> str:
        return self.text

    __repr__ = to_json = __str__

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> DeliveryKey:
        """The delivery that the data of a message names."""
        return cls(data["TaskId"], data["Revision"])

    def fields(self) -> dict[str, Any]:
        """The opposite of `of`."""
        return {"TaskId": self.task_id, "Revision": self.revision}


JobKey = RecordingKey | DeliveryKey
"""The owner of a job and its lease."""
OwnerKey = SessionKey | JobKey
"""The owner of a deadline, a journal entry or a message."""


def parse(text: str) -> OwnerKey:
    """The key of a text. Raises ValueError if the text is no key."""
    task_id, slash, rest = text.partition("/")
    if slash:
        speaker, _, n = rest.rpartition("/")
        return RecordingKey(task_id, speaker, int(n))
    task_id, sharp, revision = text.partition("#")
    return DeliveryKey(task_id, int(revision)) if sharp else SessionKey(task_id)


def parse_job(text: str) -> JobKey:
    """The key of a job's owner. Raises ValueError for any other text."""
    key = parse(text)
    if isinstance(key, SessionKey):
        raise ValueError(f"{text} owns no job")
    return key


def parse_recording(text: str) -> RecordingKey:
    """The key of a recording. Raises ValueError for any other text."""
    key = parse(text)
    if not isinstance(key, RecordingKey):
        raise ValueError(f"{text} is no recording")
    return key
