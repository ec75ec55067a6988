"""ffmpeg's stderr, parsed in three steps: line, meaning, and (in the owner of the process) consequence. Pure.

The texts are those of ffmpeg 7.1 to 9.0 at `-loglevel level+warning`. Rules: the exit code is never evidence; a text counts as a
fatal refusal only if it has no other meaning. TRTC's answer to an expired UserSig or a missing package is not confirmed: HTTP
401/403, or an RTMP error that names the UserSig or the package, counts as one.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from events import secret_names

_LEVEL = r"panic|fatal|error|warning|info"
_PREFIX = re.compile(rf"^(?:\[(?!(?:{_LEVEL})\])(?P<source>[^\]]*?)(?: @ 0x[0-9a-f]+)?\] )*(?:\[(?P<level>{_LEVEL})\] )?")
_SECRET = re.compile(rf"((?:{secret_names.pattern()})(?:=|%3D))[^&\s'\"]+", re.IGNORECASE)
_SHORTEST_SECRET = 16


class Meaning(enum.Enum):
    """The meaning of a line of stderr. OTHER: no action follows."""

    NEW_AUDIO = "a sound track began that this ffmpeg will not store"
    NEW_VIDEO = "a picture track began that this ffmpeg will not store"
    TIME_JUMP = "the source's timestamps jumped; what follows is stored with guessed times"
    REFUSED_FOR_GOOD = "the server refuses this UserSig or this account"
    REFUSED = "the server refuses, or cannot be reached"
    DISK_FULL = "no space is left"
    SPOOL_LOST = "the folder cannot be written any more"
    NO_TRACK = "the source ended before it had a track"
    OTHER = ""


# The first pattern that matches decides.
_MEANINGS: tuple[tuple[re.Pattern[str], Meaning], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (r"New audio stream with index", Meaning.NEW_AUDIO),
        (r"New video stream with index", Meaning.NEW_VIDEO),
        (r"^DTS -?\d+, next:-?\d+ .*invalid dropping", Meaning.TIME_JUMP),
        (r"No space left on device|Disk quota exceeded", Meaning.DISK_FULL),
        (r"Read-only file system|Stale file handle|Error opening output .*No such file or directory", Meaning.SPOOL_LOST),
        (
            r"(Error (writing|opening output|submitting a packet to the muxer)|av_interleaved_write_frame).*Input/output error",
            Meaning.SPOOL_LOST,
        ),
        (r"HTTP error 40[13]\b|Server returned 40[13]\b", Meaning.REFUSED_FOR_GOOD),
        (r"Server error: .*(user_?sig|sig(nature)? (is )?expired|package)", Meaning.REFUSED_FOR_GOOD),
        (r"HTTP error \d{3}|Server returned [45]|Server error: |Connection (refused|reset|timed out)", Meaning.REFUSED),
        (r"Connection to .* failed|Cannot open connection|Failed to resolve|Network is unreachable|No route", Meaning.REFUSED),
        (r"does not contain any stream|Invalid data found when processing input", Meaning.NO_TRACK),
    )
)
_JUMP_MS = 1_000
_BACKWARDS = re.compile(r"Non-monotonic DTS; previous: (-?\d+), current: (-?\d+);")
_DURATION = re.compile(r"^\s*Duration: (\d+):(\d\d):(\d\d)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of stderr: `source` is ffmpeg's component ("": the program itself), `level` the severity, `message` the rest."""

    source: str
    level: str
    message: str


def parse(text: str) -> Line:
    """Parse a line of stderr."""
    match = _PREFIX.match(text)
    assert match is not None  # noqa: S101 - every part of the pattern may be empty
    return Line(source=match["source"] or "", level=match["level"] or "", message=text[match.end() :].strip())


def meaning(line: Line) -> Meaning:
    """The meaning of a line."""
    if backwards := _BACKWARDS.search(line.message):
        return Meaning.TIME_JUMP if int(backwards[1]) - int(backwards[2]) > _JUMP_MS else Meaning.OTHER
    for pattern, found in _MEANINGS:
        if pattern.search(line.message):
            return found
    return Meaning.OTHER


def container_duration_ms(text: str) -> int | None:
    """The input duration that ffmpeg prints at level info, or None for any other line."""
    match = _DURATION.match(text)
    if match is None:
        return None
    hours, minutes, seconds, fraction = match.groups()
    return (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1000 + int(fraction.ljust(3, "0")[:3])


class Redactor:
    """Removes the pull address and its parameters from ffmpeg's output."""

    def __init__(self, address: str = "") -> None:
        """`address` is the pull address; with "" every `usersig=` and similar parameter is still removed."""
        hidden = [(address, "<pull address>")] if address else []
        for value in urlsplit(address).query.split("&"):
            secret = value.partition("=")[2]
            if len(secret) >= _SHORTEST_SECRET:
                hidden += [(secret, "<hidden>"), (unquote(secret), "<hidden>")]
        self._hidden = tuple(hidden)

    def __call__(self, text: str) -> str:
        """The line without secrets."""
        for secret, name in self._hidden:
            text = text.replace(secret, name)
        return _SECRET.sub(r"\1<hidden>", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One block of `-progress`: output position in milliseconds and bytes; `ended` is set in the last block."""

    out_ms: int = 0
    size_bytes: int = 0
    frames: int = 0
    ended: bool = False


class ProgressReader:
    """Parses `-progress` lines (key=value) into one `Progress` per block. "N/A" keeps the previous value."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}

    def read(self, text: str) -> Progress | None:
        """Feed one line; returns the block that it completes, or None."""
        key, _, value = text.strip().partition("=")
        if key != "progress":
            if value.lstrip("-").isdigit():
                self._values[key] = int(value)
            return None
        return Progress(
            out_ms=max(0, self._values.get("out_time_us", 0)) // 1000,
            size_bytes=self._values.get("total_size", 0),
            frames=self._values.get("frame", 0),
            ended=value == "end",
        )
