"""What a server in COS's place may answer: no XML, XML of another shape, without end, packed or growing. It costs little, and
ends in an error that says so.

Rule: the answers come over a real socket through the official SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web

from events import codec
from machine import errors
from tencent import cos, cos_requests
from tests.integration import test_cos_upload as scripted
from tests.integration.test_cos_upload import KEY, KEYS, Cos

ODD = {
    "nothing": b"",
    "no XML": b"hello",
    "bytes": bytes(range(256)),
    "a page": b"<!DOCTYPE html><html><body>Sign in here</body></html>",
    "text": b"<a>text</a>",
    "texts": b"<R><Part>x</Part><Part>y</Part><Upload>x</Upload></R>",
    "words for numbers": b"<R><Part><PartNumber>one</PartNumber><Size>1</Size><ETag>e</ETag></Part></R>",
    "trees for words": b"<R><Key><a>1</a></Key><UploadId><x>1</x></UploadId><Upload><Key><a>1</a></Key></Upload></R>",
    "everything twice": b"<R>" + b"<UploadId>u</UploadId><NextPartNumberMarker>1</NextPartNumberMarker>" * 2
    + b"<IsTruncated>true</IsTruncated></R>",
    "a thousand deep": b"<a>" * 1_000 + b"</a>" * 1_000,
    "deeper than any stack": b"<a>" * 60_000 + b"</a>" * 60_000,
    "no text": b"<Error><Code>No\0pe</Code><Message>\0\xff\n</Message></Error>",
}  # fmt: skip
OPERATIONS = ("begun", "create", "parts", "complete", "listing")


@pytest.fixture
async def server() -> AsyncIterator[Cos]:
    async with scripted.serving() as running:
        yield running


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    made = cos.CosUploader(threads=1, first_part_bytes=scripted.MIB, pauses_s=(), silence_timeout_s=5)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "alice_1.mp4"
    path.write_bytes(b"media")
    return path


def say(body: bytes, status: int = 200, **headers: str) -> scripted.Fault:
    """A server that always answers this."""

    async def answer(_: Cos, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, body=body, headers=headers, content_type="application/xml")

    return answer


async def without_end(_: Cos, request: web.Request) -> web.StreamResponse:
    """A list that goes on for ever; its length is not told."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await answer.write(b"<Part/>" * 10_000)
    return answer


async def tried(server: Cos, uploader: cos.CosUploader, file: Path, operation: str, fault: scripted.Fault) -> str:
    """What comes of an upload, or of the look at a bucket, where `operation` is answered by `fault`: "" if it went on."""
    server.script = {operation: [fault] * 9}
    server.uploads, server.keys = {"half": {}}, {"half": "another"}
    state = cos.UploadState(upload_id="half", part_size_bytes=scripted.MIB) if operation == "parts" else None
    try:
        if operation == "listing":
            server.script["bucket"] = [scripted.refuse(403, "")]
            await uploader.check_bucket(scripted.target(server), KEYS)
        else:
            await scripted.upload(uploader, file, server, state=state)
    except errors.UploadFailed as error:
        # As it goes into a message and a database.
        codec.make("upload-failed", id="x", time_ms=0, data=SAID | {"Reason": error.reason, "Detail": error.detail})
        return f"{error.reason} {error.retry}"
    return ""


SAID = {"TaskId": "01" * 13, "Speaker": "al", "N": 1, "Epoch": 1, "Retry": True}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_odd_answer_is_no_answer(server: Cos, uploader: cos.CosUploader, file: Path, operation: str) -> None:
    """Whatever XML or bytes come in place of an answer: never an error that nobody expects; an upload counts only by its CRC."""
    for name, body in ODD.items():
        for status in (200, 403, 503):
            server.objects.clear()
            became = await tried(server, uploader, file, operation, say(body, status))
            expected = {200: {"server True"}, 403: {"refused False"}, 503: {"server True"}}[status]
            if operation in ("begun", "listing") or (operation == "parts" and status == 200):
                expected |= {""}
            assert became in expected, (name, status)
            assert became or operation == "listing" or server.objects[KEY] == b"media", (name, status)


@pytest.mark.parametrize("operation", ["create", "parts", "complete"])
async def test_an_answer_of_any_length_costs_little(server: Cos, uploader: cos.CosUploader, file: Path, operation: str) -> None:
    """Without end, packed a thousandfold, growing a millionfold by its entities, or as long as an answer or an error may be: none
    takes the worker's memory, and each may be tried again."""
    bomb = b"<!DOCTYPE a [<!ENTITY e0 'xxxxxxxxxx'>"
    bomb += b"".join(b"<!ENTITY e%d '%b'>" % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 7)) + b"]><a>&e6;</a>"
    faults = {
        "without end": (without_end, "network True"),
        "packed": (say(gzip.compress(b"<a>" + b" " * (64 << 20) + b"</a>"), **{"Content-Encoding": "gzip"}), "server True"),
        "growing": (say(bomb), "network True"),
        "growing, in UTF-16": (say(bomb.decode().encode("utf-16")), "network True"),
        "as long as it may be": (say(b"<R>" + b"<Part/>" * (cos_requests.MOST_ANSWER_BYTES // 8) + b"</R>"), "server True"),
        "an error": (say(b"<Error>" + b"<Code/>" * 50_000 + b"</Error>", 503), "server True"),
    }
    for name, (fault, expected) in faults.items():
        tracemalloc.start()
        became = await tried(server, uploader, file, operation, fault)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert became == expected, name
        assert peak_bytes < (96 if name == "as long as it may be" else 16) << 20, (name, peak_bytes)


async def test_the_longest_answers_are_read(server: Cos) -> None:
    """The limit is above what COS says: a page of a thousand parts, and all the uploads that are asked for under a long key."""
    key = "课" * 280
    owner = b"<ID>qcs::cam::uin/100000000001:uin/100000000001</ID><DisplayName>100000000001</DisplayName>"
    about = b"<Owner>%b</Owner><Initiator>%b</Initiator><StorageClass>STANDARD</StorageClass>" % (owner, owner)
    part = b"<Part><PartNumber>%d</PartNumber><LastModified>2026-11-02T08:00:00.000Z</LastModified>"
    part += b"<ETag>&quot;" + b"a" * 32 + b"&quot;</ETag><Size>5368709120</Size></Part>"
    parts = b"<R>" + b"".join(part % number for number in range(1, 1_001)) + about + b"<IsTruncated>false</IsTruncated></R>"
    upload = b"<Upload><Key>" + quote(key).encode() + b"</Key><UploadId>" + b"u" * 64 + b"</UploadId>" + about + b"</Upload>"
    begun = b"<R>" + upload * cos_requests.MOST_UPLOADS + b"</R>"
    server.script = {"parts": [say(parts)], "begun": [say(begun)]}
    client = cos_requests.Client(scripted.target(server, key), KEYS, cos_requests.session(1))
    listed = await asyncio.to_thread(client.list_parts, "half")
    assert (len(listed), listed[-1]) == (1_000, cos.Part(number=1_000, size=5_368_709_120, etag="a" * 32))
    assert await asyncio.to_thread(client.list_uploads) == ("u" * 64,) * cos_requests.MOST_UPLOADS
    assert max(len(parts), len(begun)) < cos_requests.MOST_ANSWER_BYTES * 0.6
