"""The splitter of HTTP-FLV bodies: bytes between tags that are no tag."""

from __future__ import annotations

import random

import pytest

from media import flv, http_flv
from tests import flv_source

TAGS = [*map(flv_source.sound, range(0, 400, 20)), *(flv_source.picture(ms, key=ms == 0) for ms in range(0, 400, 40))]
BODY = [flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in TAGS]
HEADER = flv.header(audio=True, video=True)


def split(data: bytes, piece_bytes: int) -> list[bytes]:
    """The payloads that come out, fed in pieces."""
    splitter = http_flv.TagSplitter()
    pieces = (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))
    return [payload for piece in pieces for _, _, payload in splitter.feed(piece)]


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1 << 20])
def test_bytes_between_two_tags_are_skipped(piece_bytes: int) -> None:
    """A server writes junk between tags: no tag is lost."""
    chance = random.Random(3)
    data = HEADER + b"".join(tag + chance.randbytes(37) if number % 5 == 4 else tag for number, tag in enumerate(BODY))
    assert split(data + BODY[0], piece_bytes) == [*(tag.payload for tag in TAGS), TAGS[0].payload]


@pytest.mark.parametrize("piece_bytes", [7, 1 << 20])
def test_a_body_without_any_tag_is_refused_at_once(piece_bytes: int) -> None:
    """What follows the header is no tag: another client may understand the server."""
    with pytest.raises(http_flv.NotFlv):
        split(HEADER + b"\xff" * 100, piece_bytes)


def test_endless_junk_is_refused() -> None:
    """After a megabyte without a tag the body counts as broken; until then nothing is kept but what may become a tag."""
    with pytest.raises(http_flv.NotFlv):
        split(HEADER + BODY[0] + b"\xff" * (3 << 20), 1 << 16)


@pytest.mark.parametrize("stream_id", [b"\x00\x00\x01", b"\x01\x00\x00"])
def test_a_server_with_another_stream_id_is_understood(stream_id: bytes) -> None:
    """The standard says 0, and a server may say something else in every tag."""
    data = HEADER + b"".join(tag[:8] + stream_id + tag[11:] for tag in BODY)
    assert split(data, 50) == [tag.payload for tag in TAGS]


def test_a_tag_with_the_usual_stream_id_between_others_ends_nothing() -> None:
    """The first tag has an id of its own: the splitter goes on with the others."""
    data = HEADER + BODY[0][:8] + b"\x00\x00\x07" + BODY[0][11:] + b"".join(BODY[1:])
    assert len(split(data, 64)) >= len(TAGS) - 1
