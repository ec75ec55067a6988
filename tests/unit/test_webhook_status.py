"""The status line of a receiver decides, whatever headers follow: long, many, malformed or cut off."""

from __future__ import annotations

import asyncio

import pytest

from machine import errors
from webhook import sender, status_line

FIELDS = {
    "9 KB": b"x-a: " + b"y" * 9_000,
    "200 KB": b"x-a: " + b"y" * 200_000,
    "a long name": b"y" * 9_000 + b": 1",
    "many": b"\r\n".join(b"x-%d: y" % number for number in range(5_000)),
    "no colon": b"this is odd",
    "a space in the name": b"X Y: odd",
    "a NUL": b"X-Y: o\x00dd",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5",
    "a length that is no number": b"Content-Length: abc",
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    "broken chunks": b"Transfer-Encoding: chunked\r\n\r\nzz",
}


async def posted(response: bytes, *, pieces: int = 1) -> errors.DeliveryFailed | None:
    """Post to a receiver that sends these bytes, in so many pieces, and closes the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        size = -(-len(response) // pieces)
        for at in range(0, len(response), size):
            writer.write(response[at : at + size])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        try:
            await sender.WebhookSender(allow=["127.0.0.1"]).send(url, b"{}", webhook_id="i", now_s=1)
        except errors.DeliveryFailed as failed:
            return failed
    return None


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize(("status", "reason"), [(204, None), (410, "gone"), (503, "status")])
async def test_the_status_decides(fields: bytes, status: int, reason: str | None) -> None:
    """A receiver that accepted is not posted to again, and one that refused has its reason."""
    failed = await posted(b"HTTP/1.1 %d X\r\n%b\r\n\r\n" % (status, fields))
    assert (failed and failed.reason) == reason


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 " + b"O" * 9_000 + b"\r\n", b"HTTP/2 200\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_line_that_is_odd_or_cut_off_behind_its_status_decides(head: bytes) -> None:
    """The status is complete, and so is the answer."""
    assert await posted(head, pieces=3) is None


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0 hello\r\n\r\n",
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 100 Continue\r\nx y: z\r\n\r\n",
        b"200 OK\r\n\r\n",
    ],
)
async def test_what_has_no_final_status_is_no_answer(head: bytes) -> None:
    """Another protocol, nothing, half a line, and an interim response alone are retried."""
    failed = await posted(head)
    assert failed is not None
    assert (failed.reason, failed.retry) == ("network", True)


def test_interim_responses_are_skipped_and_memory_is_bounded() -> None:
    """The first final status counts, however the bytes are divided."""
    whole = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 Created\r\nx: y\r\n\r\n"
    line = status_line.StatusLine()
    for number in whole:
        line.feed(bytes([number]))
    assert line.status == 201
    for _ in range(100):
        line.feed(b"y" * 65_536)
    assert len(line._head) == status_line.MAX_BYTES
