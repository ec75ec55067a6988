"""Untidy streams: one for each kind of disorder that real servers and publishers send, and a server that paces them.

Rule: a stream lasts 8 s. `sent` states when the server sends each tag, whatever the tag's own time says; second n of the content
is sent from n × 1000 ms on. A stream also states what a right file of it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from media import flv
from tests import flv_source, untidy_content

EVERY = frozenset(range(8))
HEVC = "libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=none:bframes=0"
X264 = "libx264 -preset ultrafast -pix_fmt"
AV1 = "libsvtav1 -preset 12 -svtav1-params lp=1 -pix_fmt yuv420p"
Sent = tuple[float, flv.Tag]


@dataclass(frozen=True, kw_only=True)
class Untidy:
    """A stream and its right file: the seconds that its pictures and its sound show (None: it has no such track), its size,
    whether each second is to be seen in a flash, what `Detail` says, and how far picture and sound may be apart."""

    sent: tuple[Sent, ...]
    pictures: frozenset[int] | None = EVERY
    sound: frozenset[int] | None = EVERY
    size: tuple[int, int] = (160, 120)
    flashes: bool = True
    detail: str = ""
    apart_s: float = 0.15
    encode: Callable[[flv.Tag], bytes] = lambda tag: flv.encode(tag.kind, tag.timestamp_ms, tag.payload)


def at_its_time(tags: Iterable[flv.Tag]) -> list[Sent]:
    """Each tag is sent when its time says."""
    return [(float(tag.timestamp_ms), tag) for tag in tags]


def retimed(tags: Iterable[flv.Tag], time_ms: Callable[[flv.Tag], float]) -> list[Sent]:
    """The tags with other times, sent when their own ones said."""
    return [(at, replace(tag, timestamp_ms=round(time_ms(tag)) % (1 << 32))) for at, tag in at_its_time(tags)]


def later(sent: Iterable[Sent], by_ms: int, *, tags_too: bool = True) -> list[Sent]:
    """The same, sent later."""
    return [(at + by_ms, replace(tag, timestamp_ms=tag.timestamp_ms + by_ms) if tags_too else tag) for at, tag in sent]


def kept(tags: Iterable[flv.Tag], keeps: Callable[[flv.Tag], bool]) -> list[Sent]:
    """All headers and some packets."""
    return at_its_time(tag for tag in tags if tag.is_sequence_header or keeps(tag))


def only(tags: Iterable[flv.Tag], kind: int, from_ms: int = 0, to_ms: int = 1 << 30) -> list[Sent]:
    """The headers and a part of one track."""
    return at_its_time(flv_source.between(flv_source.only(tags, kind), from_ms, to_ms))


def together(*streams: Iterable[Sent]) -> tuple[Sent, ...]:
    """Several as one."""
    return tuple(sorted((each for stream in streams for each in stream), key=lambda each: each[0]))


def is_sound(tag: flv.Tag) -> bool:
    return tag.kind == flv.AUDIO


def streams() -> dict[str, Untidy]:
    """All of them, by name. Encodes for some seconds."""
    plain = untidy_content.tags()
    return {
        "plain": Untidy(sent=together(at_its_time(plain))),
        **_clocks(plain),
        **_jumps(plain),
        **_tracks(plain),
        **_sounds(plain),
        **_pictures(plain),
        **_codecs(plain),
        **_wire(plain),
    }


def _clocks(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """One clock for each track, and clocks that begin again."""
    heads = [tag for tag in plain if tag.is_sequence_header and not is_sound(tag)]
    camera = [(at, replace(tag, timestamp_ms=round(at) - 3_000)) for at, tag in only(plain, flv.VIDEO, 3_000) if tag.is_media]
    chance = random.Random(5)
    zeros = retimed(plain, lambda tag: 0 if tag.timestamp_ms < 2_000 else tag.timestamp_ms)
    return {
        "tracks-50s-apart": Untidy(sent=tuple(retimed(plain, lambda tag: tag.timestamp_ms + 50_000 * is_sound(tag)))),
        "camera-with-its-own-clock": Untidy(
            sent=together(only(plain, flv.AUDIO), [(3_000.0, head) for head in heads], camera),
            pictures=EVERY - {0, 1, 2},
        ),
        "clock-of-the-picture-resets": Untidy(
            sent=together(
                retimed(plain, lambda tag: tag.timestamp_ms - (4_000 if tag.timestamp_ms >= 4_000 and not is_sound(tag) else 0)),
                [(4_000.0, head) for head in heads],
            )
        ),
        "clock-begins-an-hour-later": Untidy(
            sent=tuple(retimed(plain, lambda tag: tag.timestamp_ms + 3_600_000 * (tag.timestamp_ms > 0)))
        ),
        "clock-wraps-at-24-bits": Untidy(
            sent=tuple(retimed(plain, lambda tag: (tag.timestamp_ms + (1 << 24) - 4_000) % (1 << 24)))
        ),
        "clock-wraps-at-32-bits": Untidy(sent=tuple(retimed(plain, lambda tag: tag.timestamp_ms + (1 << 32) - 4_000))),
        "tags-stand-at-the-beginning": Untidy(sent=tuple(zeros), apart_s=0.3),
        "tags-jitter": Untidy(
            sent=tuple(
                retimed(
                    plain, lambda tag: tag.timestamp_ms if is_sound(tag) else max(0, tag.timestamp_ms + chance.randrange(-40, 41))
                )
            )
        ),
    }


def _jumps(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """Steps back and jumps; nothing is missing, or media is sent twice."""
    steps: dict[str, Callable[[int], float]] = {
        "often-70ms-back": lambda at: at - 70 * (at // 3_000),
        "once-900ms-back": lambda at: at - (900 if at >= 4_000 else 0),
        "once-3s-ahead": lambda at: at + (3_000 if at >= 4_000 else 0),
        "often-2s-ahead": lambda at: at + 2_000 * (at // 3_000),
    }
    found = {
        name: Untidy(sent=tuple(retimed(plain, lambda tag, step=step: step(tag.timestamp_ms)))) for name, step in steps.items()
    }
    again = [(5_000.0, tag) for tag in plain if tag.is_media and 3_000 <= tag.timestamp_ms < 5_000]
    return found | {"sent-twice": Untidy(sent=together(at_its_time(plain), again))}


def _tracks(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """Tracks that are announced and do not come, or come late."""
    return {
        "camera-is-off": Untidy(sent=tuple(kept(plain, is_sound)), pictures=None),
        "microphone-is-off": Untidy(sent=tuple(kept(plain, lambda tag: not is_sound(tag))), sound=None),
        "camera-comes-later": Untidy(
            sent=tuple(kept(plain, lambda tag: is_sound(tag) or tag.timestamp_ms >= 3_000)), pictures=EVERY - {0, 1, 2}
        ),
        "header-of-the-sound-comes-late": Untidy(
            sent=together((2_900.0 if is_sound(tag) and tag.is_sequence_header else at, tag) for at, tag in at_its_time(plain))
        ),
        "sound-that-nobody-knows": Untidy(
            sent=tuple(
                (at, replace(tag, payload=bytes((0xC0 | tag.payload[0] & 15,)) + tag.payload[1:]) if is_sound(tag) else tag)
                for at, tag in at_its_time(plain)
            ),
            sound=None,
            detail="audio codec 12",
        ),
    }


def _sounds(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """Sound with holes, or thin in silence."""
    chance = random.Random(2)
    thin, last_ms = list[flv.Tag](), -1_000
    for tag in plain:
        if is_sound(tag) and tag.is_media and tag.timestamp_ms % 1_000 > 220:
            if tag.timestamp_ms - last_ms < 400:
                continue
            last_ms = tag.timestamp_ms
        thin.append(tag)
    return {
        "holes-of-300ms": Untidy(
            sent=tuple(kept(plain, lambda tag: not is_sound(tag) or not 400 <= tag.timestamp_ms % 2_000 < 700))
        ),
        "five-percent-lost": Untidy(
            sent=tuple(kept(plain, lambda tag: not is_sound(tag) or tag.timestamp_ms % 1_000 < 150 or chance.random() > 0.05))
        ),
        "few-packets-in-silence": Untidy(sent=tuple(at_its_time(thin))),
    }


def _pictures(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """Sparse pictures, other formats, and changes of size and shape."""
    larger = untidy_content.tags("240x180", 4, start=4)
    sizes = together(
        only(flv_source.inband(plain), flv.VIDEO, 0, 4_000),
        later(only(flv_source.inband(larger), flv.VIDEO), 4_000),
        only(plain, flv.AUDIO),
    )
    wide = untidy_content.tags("80x120", filters="setsar=2")
    square = later(only(untidy_content.tags(duration_s=4, start=4), flv.VIDEO), 4_000)
    encoded = {
        "colour-444": (f"{X264} yuv444p", "160x120"),
        "ten-bits": (f"{X264} yuv420p10le", "160x120"),
        "hevc-portrait": (HEVC, "180x320"),
        "av1": (AV1, "320x180"),
    }
    made = {
        name: Untidy(sent=tuple(at_its_time(untidy_content.tags(size, video=video))), size=_size(size))
        for name, (video, size) in encoded.items()
    }
    return made | {
        "a-picture-a-second": Untidy(sent=tuple(at_its_time(untidy_content.tags(rate=1, gop=1))), flashes=False),
        "another-size-inside": Untidy(sent=sizes, size=(240, 180)),
        "another-shape": Untidy(
            sent=together(only(wide, flv.VIDEO, 0, 4_000), square, only(plain, flv.AUDIO)),
        ),
    }


def _codecs(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """Another codec in the middle."""
    alaw = later(only(untidy_content.tags(duration_s=4, start=4, samples=8_000, audio="pcm_alaw"), flv.AUDIO), 4_000)
    hevc = later(only(untidy_content.tags(duration_s=4, start=4, video=HEVC), flv.VIDEO), 4_000)
    return {
        "aac-then-g711": Untidy(sent=together(only(plain, flv.VIDEO), only(plain, flv.AUDIO, 0, 4_000), alaw)),
        "avc-then-hevc": Untidy(sent=together(only(plain, flv.AUDIO), only(plain, flv.VIDEO, 0, 4_000), hevc)),
    }


def _wire(plain: tuple[flv.Tag, ...]) -> dict[str, Untidy]:
    """Bytes that are not as the standard has them."""
    chance = random.Random(3)

    def without_sizes(tag: flv.Tag) -> bytes:
        return flv.encode(tag.kind, tag.timestamp_ms, tag.payload)[:-4] + bytes(4)

    def with_junk(tag: flv.Tag) -> bytes:
        junk = chance.randbytes(37) if tag.is_key else b""
        return flv.encode(tag.kind, tag.timestamp_ms, tag.payload) + junk

    def started(tag: flv.Tag) -> flv.Tag:
        if is_sound(tag) or not tag.is_media:
            return tag
        units = b"".join(b"\x00\x00\x00\x01" + unit for unit in flv_source.units(tag.payload))
        return replace(tag, payload=tag.payload[:5] + units)

    return {
        "sizes-of-tags-are-0": Untidy(sent=tuple(at_its_time(plain)), encode=without_sizes),
        "junk-between-tags": Untidy(sent=tuple(at_its_time(plain)), encode=with_junk),
        "start-codes": Untidy(sent=tuple(at_its_time(map(started, plain)))),
    }


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


@dataclass(kw_only=True)
class Broadcast:
    """One stream on the server. `began_s` and `seconds_s`: the Unix times of its begin and of each second of its content, as they
    were really sent."""

    stream: Untidy
    began_s: float = 0.0
    ended: bool = False
    pulls: int = 0
    seconds_s: dict[int, float] = field(default_factory=dict)


class Server:
    """An HTTP-FLV server on an ephemeral port of 127.0.0.1. A stream begins with its first pull; the connection stays open."""

    def __init__(self) -> None:
        self.broadcasts: dict[str, Broadcast] = {}
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    @property
    def template(self) -> str:
        """The pull address for PULL_ADDRESS."""
        return f"http://127.0.0.1:{self.port}/{{speaker}}?room={{room}}&userid={{userid}}&usersig={{usersig}}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End all connections. Safe to call twice."""
        self._closing.set()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\nConnection: close\r\n\r\n")
            writer.write(flv.header(audio=True, video=True))
            await self._play(self.broadcasts[urlsplit(request).path[1:]], writer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _play(self, cast: Broadcast, writer: asyncio.StreamWriter) -> None:
        cast.pulls += 1
        cast.began_s = cast.began_s or time.time()
        gone_ms = (time.time() - cast.began_s) * 1000
        for at_ms, tag in cast.stream.sent:
            if at_ms < gone_ms - 100:
                continue
            wait_s = cast.began_s + at_ms / 1000 - time.time()
            if wait_s > 0.002:
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), wait_s)
            cast.seconds_s.setdefault(int(at_ms // 1000), time.time())
            writer.write(cast.stream.encode(tag))
        await writer.drain()
        cast.ended = True
