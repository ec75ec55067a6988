"""What both native readers of a stream share: the end of a pull, name lookup, and TLS.

Rules: a name lookup may hang, so it has its own threads. A certificate is always verified, against the same authorities as for
ffmpeg. No text of an end contains the pull address; the capture redacts what a server wrote.
"""

from __future__ import annotations

import enum
import functools
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple, Protocol

from machine import daemon_threads
from media import ffmpeg_command, ffmpeg_log

OnTag = Callable[[int, int, bytes], None]
"""Called with kind, time in ms and payload of each tag."""

_LOOKUPS = daemon_threads.DaemonThreads("pull-dns", 8)


class Blame(enum.Enum):
    """Whether this client may be the cause of an end, because it and the server do not understand each other."""

    NONE = enum.auto()
    IF_REPEATED = enum.auto()
    CLIENT = enum.auto()


class End(NamedTuple):
    """How a pull ended. `meaning` is that of ffmpeg's message for the same end."""

    detail: str
    meaning: ffmpeg_log.Meaning = ffmpeg_log.Meaning.OTHER
    blame: Blame = Blame.NONE


class Pull(Protocol):
    """One connection to a stream. `run` reads until the end; `pause` and `resume` stop and continue the reading."""

    async def run(self, on_tag: OnTag) -> End: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


def refusal(text: str) -> End:
    """The end by a refusal, in ffmpeg's words."""
    return End(text, ffmpeg_log.meaning(ffmpeg_log.parse(text)))


def unreachable(error: OSError) -> End:
    """The end by an error of the connection before the stream."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return End(f"The server's certificate is not valid: {error.verify_message}.", ffmpeg_log.Meaning.REFUSED)
    if isinstance(error, socket.gaierror):
        return End(f"Failed to resolve the server's name: {error.strerror}.", ffmpeg_log.Meaning.REFUSED)
    return End(f"The server cannot be reached: {error.strerror or type(error).__name__}.", ffmpeg_log.Meaning.REFUSED)


async def addresses(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises OSError."""
    found = await _LOOKUPS.run(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def tls() -> ssl.SSLContext:
    """The TLS settings of pulls."""
    return _tls(ffmpeg_command.authorities())


@functools.lru_cache(maxsize=4)
def _tls(authorities: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authorities)
