"""The status line of a response, read from its bytes: it decides, whatever the HTTP parser makes of the headers behind it.

Rule: interim responses (1xx) decide nothing. Only the first bytes of a response are kept.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

MAX_BYTES = 64 * 1024
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(?P<code>[1-5]\d\d)(?: [^\r\n]*)?\r?\n")
_LONG_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(?P<code>[2-5]\d\d) ")
_END = re.compile(rb"\r?\n\r?\n")


class StatusLine:
    """Collects the beginning of one response."""

    def __init__(self) -> None:
        self._head = b""

    def feed(self, data: bytes) -> None:
        """More bytes of the response."""
        self._head += data[: MAX_BYTES - len(self._head)]

    @property
    def status(self) -> int | None:
        """The final status; None if none has arrived."""
        at = 0
        while found := _STATUS.match(self._head, at) or _LONG_STATUS.match(self._head, at):
            status = int(found["code"])
            if status >= 200:
                return status
            end = _END.search(self._head, found.end() - 2)
            if end is None:
                return None
            at = end.end()
        return None


class Connector(aiohttp.TCPConnector):
    """A connector for one request that shows `line` what the server sends."""

    def __init__(self, line: StatusLine, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(cast("Callable[..., ResponseHandler]", _Handler), line, loop=self._loop)


class _Handler(ResponseHandler):
    def __init__(self, line: StatusLine, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._line = line

    def data_received(self, data: bytes) -> None:
        self._line.feed(data)
        super().data_received(data)
