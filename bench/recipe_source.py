"""Broadcasts as a server hands them out: the bytes of one pull, each with the time at which it is sent.

Rule: it knows of a broadcast only its public form: `tags` (kind, ts, data, due, key, header, bytes()), `flags`, `meta`, `join`,
`drop_at` and `length()`. `join` states what a late pull gets: "gop" the headers in force and the last group of pictures, "stale"
the same with headers of a codec that is no more, "now" headers and what follows, "bare" only what follows, "waitkey" headers,
sound at once, and pictures from the next key frame on. `bench/recipe_server.py` plays it and sets `began` and `pulls`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench import recipe_judge
from media import codecs, flv
from tests import untidy_streams

_FIRST_MS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """(sent at, bytes) in order; the tags among them; when the connection ends, and whether the server ended it early."""

    pieces: list[tuple[float, bytes]]
    tags: list[Any]
    ends_ms: float
    dropped: bool


def pull(broadcast: Any, at_ms: float) -> Pull:
    """What a pull at this time of the broadcast gets."""
    tags = broadcast.tags
    pieces = [(at_ms, flv.header(audio=broadcast.flags[0], video=broadcast.flags[1]))]
    if broadcast.meta:
        pieces.append((at_ms, flv.encode(flv.SCRIPT, 0, broadcast.meta)))
    first = 0
    if at_ms > _FIRST_MS:
        first, cached = _joined(broadcast, at_ms)
        pieces += [(at_ms, replace(tag, ts=tags[min(first, len(tags) - 1)].ts).bytes()) for tag in cached]
    drop_ms = next((drop for drop in broadcast.drop_at if drop > at_ms), float("inf"))
    waits_for_key, now_ms, sent = broadcast.join == "waitkey", at_ms, list[Any]()
    for tag in tags[first:]:
        if waits_for_key and tag.kind == flv.VIDEO and not tag.header:
            if not tag.key:
                continue
            waits_for_key = False
        if tag.due >= drop_ms:
            return Pull(pieces=pieces, tags=sent, ends_ms=drop_ms, dropped=True)
        sent.append(tag)
        now_ms = max(now_ms, tag.due)
        pieces.append((now_ms, tag.bytes()))
    return Pull(pieces=pieces, tags=sent, ends_ms=now_ms, dropped=False)


def sent(broadcast: Any, pulls_ms: Sequence[float]) -> list[Any]:
    """The tags that these pulls got; a pull ends the one before."""
    found = list[Any]()
    for at_ms, until_ms in zip(pulls_ms, [*pulls_ms[1:], float("inf")], strict=True):
        found += [tag for tag in pull(broadcast, at_ms).tags if tag.due < until_ms]
    return found


def _joined(broadcast: Any, at_ms: float) -> tuple[int, list[Any]]:
    """The first tag that a late pull gets, and the headers before it."""
    tags = broadcast.tags
    past = [number for number, tag in enumerate(tags) if tag.due <= at_ms]
    headers = {tags[number].kind: tags[number] for number in past if tags[number].header}
    first = past[-1] + 1 if past else 0
    if broadcast.join in ("gop", "stale"):
        first = next((number for number in reversed(past) if tags[number].key), first)
    if broadcast.join == "bare":
        return first, []
    following = {kind: next((t for t in tags[first:] if t.kind == kind and t.data), None) for kind in headers}
    stale = broadcast.join == "stale"
    return first, [tag for kind, tag in headers.items() if stale or following[kind] is None or _same(tag, following[kind])]


def _same(one: Any, other: Any) -> bool:
    return codecs.identity(one.kind, one.data) == codecs.identity(other.kind, other.data)


@dataclass(kw_only=True)
class _OwnTag:
    kind: int
    ts: int
    data: bytes
    due: float
    encoded: Callable[[flv.Tag], bytes]

    @property
    def header(self) -> bool:
        return flv.is_sequence_header(self.kind, self.data)

    @property
    def key(self) -> bool:
        return not self.header and flv.Tag(kind=self.kind, timestamp_ms=self.ts, payload=self.data).is_key

    def bytes(self) -> bytes:
        return self.encoded(flv.Tag(kind=self.kind, timestamp_ms=self.ts, payload=self.data))


@dataclass(kw_only=True)
class _OwnBroadcast:
    tags: list[_OwnTag]
    flags: tuple[bool, bool] = (True, True)
    meta: bytes = b""
    join: str = "gop"
    drop_at: list[float] = field(default_factory=list)
    began: float = 0.0
    pulls: list[float] = field(default_factory=list)

    def length(self) -> float:
        return max(tag.due for tag in self.tags)


@dataclass(kw_only=True)
class _OwnRecipe:
    name: str
    stream: untidy_streams.Untidy
    modes: tuple[str, ...] = ("00", "01", "02")
    hold_s: float = 0.0
    loose: bool = False
    sync: bool = True
    content: recipe_judge.Content = recipe_judge.OWN

    def make(self) -> _OwnBroadcast:
        encode = self.stream.encode
        return _OwnBroadcast(
            tags=[
                _OwnTag(kind=tag.kind, ts=tag.timestamp_ms, data=tag.payload, due=at_ms, encoded=encode)
                for at_ms, tag in self.stream.sent
            ]
        )


def own() -> dict[str, _OwnRecipe]:
    """The streams of the project's tests in the form of recipes."""
    return {name: _OwnRecipe(name=name, stream=stream) for name, stream in untidy_streams.streams().items()}
