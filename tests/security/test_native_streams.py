"""Hostile servers of the native reader: what they redirect to, and mutated RTMP and FLV.

Rule: whatever the bytes, the reader returns packets or reports a fault of the protocol. It never raises another error, and its
memory stays bounded. `FUZZ_CASES` sets the number of mutated streams; `make fuzz` sets it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.reasons import Reason
from media import amf0, flv, http_flv, rtmp_chunks
from tests import flv_source
from tests.security import capture_runner, test_hostile_streams
from tests.security.test_hostile_streams import MARK, REDIRECTS, Server

CASES = int(os.environ.get("FUZZ_CASES", "0")) or 300


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.start()
    yield made
    await made.stop()


async def test_no_redirect_leads_to_another_protocol(server: Server, tmp_path: Path) -> None:
    """A redirect to a file, a pipe or another protocol opens nothing and calls nobody. One to the same protocol is followed, and
    an endless one ends."""
    secret = tmp_path / "secret.flv"
    secret.write_bytes(MARK)
    spool = tmp_path / "spool"
    spool.mkdir()
    addresses = []
    for number, place in enumerate(REDIRECTS):
        location = place.format(secret=secret, inside=server.inside_port)
        addresses.append(server.put(f"/{number}.flv", b"", status="302 Found", headers=f"Location: {location}"))
    addresses.append(server.put("/circle.flv", b"", status="302 Found", headers="Location: /circle.flv"))
    addresses.append(server.put("/control.flv", b"", status="302 Found", headers="Location: /stream.flv"))
    server.put("/stream.flv", flv_source.write(tmp_path / "stream", flv_source.content()).read_bytes())
    *ended, control = await test_hostile_streams.run_all(addresses, spool, "native")
    assert control.progress.media_ms > 5_000
    assert {one.progress.media_ms for one in ended} == {0}
    assert Reason.EOF not in {one.reason for one in ended}
    assert server.inner_connections == 0
    assert server.requested.count("/circle.flv") < 20
    assert [path for path in spool.iterdir() if MARK in path.read_bytes()] == []


async def test_a_refusal_shows_no_address(server: Server, tmp_path: Path) -> None:
    """The text of a server that repeats the pull address in its refusal reaches no log and no event."""
    address = server.put("/x.flv?usersig=SECRET-SIGNATURE-0001", b"", status="404 SECRET-SIGNATURE-0001 is unknown")
    ended = await capture_runner.run(address, tmp_path, "a", "native")
    assert (ended.reason, "SECRET" in ended.detail) == (Reason.REFUSED, False)


TAGS = b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in (flv_source.sound(1), flv_source.picture(2)))


def message(channel: int, kind: int, at_ms: int, body: bytes, chunk_bytes: int = 128) -> bytes:
    """One RTMP message."""
    head = bytes((channel,)) + at_ms.to_bytes(3, "big") + len(body).to_bytes(3, "big") + bytes((kind,)) + b"\x01\x00\x00\x00"
    more = bytes((0xC0 | channel,))
    return head + more.join(body[at : at + chunk_bytes] for at in range(0, max(1, len(body)), chunk_bytes))


def stream() -> bytes:
    """A stream of RTMP with everything that a server may send."""
    parts = [
        message(2, 5, 0, struct.pack(">I", 5_000)),
        message(3, 20, 0, amf0.encode("_result", 1, {"level": "status", "code": "NetConnection.Connect.Success"})),
        message(2, 1, 0, struct.pack(">I", 256)),
        message(6, 9, 40, flv_source.AVC_HEADER, 256),
        message(6, 9, 80, b"\x17\x01\0\0\0" + bytes(900), 256),
        b"\x46\x00\x00\x28\x00\x00\x05\x09" + b"\x27\x01\0\0\0",
        b"\xc6" + b"\x27\x01\0\0\0",
        message(4, 22, 100, TAGS, 256),
        message(2, 2, 0, struct.pack(">I", 6)),
    ]
    return b"".join(parts)


STREAM = stream()


def test_the_unmutated_stream_is_read() -> None:
    """The seed of the fuzzer is a whole stream, in any pieces."""
    whole = rtmp_chunks.ChunkReader().feed(STREAM)
    reader = rtmp_chunks.ChunkReader()
    pieces = [found for at in range(len(STREAM)) for found in reader.feed(STREAM[at : at + 1])]
    assert whole == pieces
    assert [each.kind for each in whole] == [5, 20, 9, 9, 9, 9, 8, 9]


@settings(max_examples=CASES, deadline=None)
@given(st.integers(0, 1 << 32))
def test_mutated_rtmp_raises_nothing_else(seed: int) -> None:
    """Flipped, cut, repeated and inserted bytes give messages or a ProtocolError, whatever the pieces; commands give values or a
    ValueError."""
    reader, chance = rtmp_chunks.ChunkReader(), random.Random(seed)
    data = mutated(STREAM * 3, chance)
    try:
        for piece in pieces_of(data, chance):
            for found in reader.feed(piece):
                assert len(found.payload) <= len(data)
                read_values(found.payload)
    except rtmp_chunks.ProtocolError:
        return


@settings(max_examples=CASES, deadline=None)
@given(st.integers(0, 1 << 32))
def test_mutated_flv_raises_nothing_else(seed: int) -> None:
    """The same for a body of HTTP-FLV."""
    chance = random.Random(seed)
    tags = TAGS * 9
    data, splitter = mutated(flv.header(audio=True, video=True) + tags, chance), http_flv.TagSplitter()
    try:
        for piece in pieces_of(data, chance):
            assert all(kind in flv.KINDS for kind, _, _ in splitter.feed(piece))
    except http_flv.NotFlv:
        return


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The data with up to eight faults."""
    made = bytearray(data)
    for _ in range(chance.randrange(9)):
        at = chance.randrange(len(made))
        match chance.randrange(4):
            case 0:
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                del made[at : at + chance.randrange(1, 40)]
            case 2:
                made[at:at] = made[at : at + chance.randrange(1, 200)]
            case _:
                made[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), chance.randbytes(4)))
        made = made or bytearray(b"\x00")
    return bytes(made)


def pieces_of(data: bytes, chance: random.Random) -> list[bytes]:
    """The data in pieces of any size."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read_values(data: bytes) -> None:
    """Decode AMF0; only a ValueError may come."""
    try:
        amf0.decode(data)
    except ValueError:
        return
