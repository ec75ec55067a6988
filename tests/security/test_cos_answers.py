"""COS responses: malformed, endless, compressed or expanding responses from COS's address cost little and end in a clear error.

Rule: the responses come over a real socket through the official SDK.
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
from tests.integration import scripted_cos as scripted
from tests.integration.scripted_cos import KEY, KEYS, Cos

MALFORMED = {
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


def respond(body: bytes, status: int = 200, **headers: str) -> scripted.Fault:
    """A fault: the server always gives this response."""

    async def answer(_: Cos, request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, body=body, headers=headers, content_type="application/xml")

    return answer


async def endless(_: Cos, request: web.Request) -> web.StreamResponse:
    """A fault: a list that never ends, without a length."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await answer.write(b"<Part/>" * 10_000)
    return answer


async def failure_of(server: Cos, uploader: cos.CosUploader, file: Path, operation: str, fault: scripted.Fault) -> str:
    """The failure of an upload, or of a check of the bucket, when `operation` meets `fault`; "" if it succeeded."""
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
        # The error must fit into a message and a database.
        codec.make("upload-failed", id="x", time_ms=0, data=EVENT | {"Reason": error.reason, "Detail": error.detail})
        return f"{error.reason} {error.retry}"
    return ""


EVENT = {"TaskId": "01" * 13, "Speaker": "al", "N": 1, "Epoch": 1, "Retry": True}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_malformed_response_ends_in_a_known_error(
    server: Cos, uploader: cos.CosUploader, file: Path, operation: str
) -> None:
    """A malformed response, whatever its XML or bytes, ends in a known error, and an upload succeeds only by its CRC."""
    for name, body in MALFORMED.items():
        for status in (200, 403, 503):
            server.objects.clear()
            failure = await failure_of(server, uploader, file, operation, respond(body, status))
            expected = {200: {"server True"}, 403: {"refused False"}, 503: {"server True"}}[status]
            if operation in ("begun", "listing") or (operation == "parts" and status == 200):
                expected |= {""}
            assert failure in expected, (name, status)
            assert failure or operation == "listing" or server.objects[KEY] == b"media", (name, status)


@pytest.mark.parametrize("operation", ["create", "parts", "complete"])
async def test_a_response_of_any_length_costs_little(server: Cos, uploader: cos.CosUploader, file: Path, operation: str) -> None:
    """An endless response, one that expands a thousandfold or a millionfold, and the longest allowed one stay within a few
    megabytes of memory and are retried."""
    bomb = b"<!DOCTYPE a [<!ENTITY e0 'xxxxxxxxxx'>"
    bomb += b"".join(b"<!ENTITY e%d '%b'>" % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 7)) + b"]><a>&e6;</a>"
    faults = {
        "without end": (endless, "network True"),
        "packed": (respond(gzip.compress(b"<a>" + b" " * (64 << 20) + b"</a>"), **{"Content-Encoding": "gzip"}), "server True"),
        "growing": (respond(bomb), "network True"),
        "growing, in UTF-16": (respond(bomb.decode().encode("utf-16")), "network True"),
        "as long as it may be": (respond(b"<R>" + b"<Part/>" * (cos_requests.MOST_ANSWER_BYTES // 8) + b"</R>"), "server True"),
        "an error": (respond(b"<Error>" + b"<Code/>" * 50_000 + b"</Error>", 503), "server True"),
    }
    for name, (fault, expected) in faults.items():
        tracemalloc.start()
        failure = await failure_of(server, uploader, file, operation, fault)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert failure == expected, name
        assert peak_bytes < (96 if name == "as long as it may be" else 16) << 20, (name, peak_bytes)


async def test_the_longest_valid_responses_are_read(server: Cos) -> None:
    """The limit is above COS's longest valid responses: a page of a thousand parts, and the full list of uploads under a long
    key."""
    key = "课" * 280
    owner = b"<ID>qcs::cam::uin/100000000001:uin/100000000001</ID><DisplayName>100000000001</DisplayName>"
    about = b"<Owner>%b</Owner><Initiator>%b</Initiator><StorageClass>STANDARD</StorageClass>" % (owner, owner)
    part = b"<Part><PartNumber>%d</PartNumber><LastModified>2026-11-02T08:00:00.000Z</LastModified>"
    part += b"<ETag>&quot;" + b"a" * 32 + b"&quot;</ETag><Size>5368709120</Size></Part>"
    parts = b"<R>" + b"".join(part % number for number in range(1, 1_001)) + about + b"<IsTruncated>false</IsTruncated></R>"
    upload = b"<Upload><Key>" + quote(key).encode() + b"</Key><UploadId>" + b"u" * 64 + b"</UploadId>" + about + b"</Upload>"
    begun = b"<R>" + upload * cos_requests.MOST_UPLOADS + b"</R>"
    server.script = {"parts": [respond(parts)], "begun": [respond(begun)]}
    client = cos_requests.Client(scripted.target(server, key), KEYS, cos_requests.session(1))
    listed = await asyncio.to_thread(client.list_parts, "half")
    assert (len(listed), listed[-1]) == (1_000, cos.Part(number=1_000, size=5_368_709_120, etag="a" * 32))
    assert await asyncio.to_thread(client.list_uploads) == ("u" * 64,) * cos_requests.MOST_UPLOADS
    assert max(len(parts), len(begun)) < cos_requests.MOST_ANSWER_BYTES * 0.6
