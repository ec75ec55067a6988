"""The command of a capture: an address cannot break out of its script, a path is one argument, and TLS verifies the server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from pathlib import Path

import pytest

from machine import errors
from media import ffmpeg_command
from tests import certificates
from tests.flv_source import FFMPEG
from tests.security import capture_runner

HOSTILE_TEXTS = [
    "'", "''", "'\\''", "\\", "\\'", '"', "$(id)", "`id`", ";id", "|id", "&id", ">x", "<x", "*", "?", "[a]", "{a,b}", "~", "#",
    "%", "%00", "%0a", "-i", "--", "-f", "=", ":", ",", "[in]", "@", "!", "é", "房间", "\u202e", "\U0001f3a4", "'option'safe'0",
    "file:x", "../../x", "x" * 4096,
]  # fmt: skip
ENDS_OF_A_LINE = [
    "\n",
    "\r",
    "\nfile '/etc/passwd'",
    "\r\noption safe 0",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1b",
    " ",
    "\t",
    "' option safe 0",
]


def test_an_address_is_one_word_of_the_script() -> None:
    """The script, read back as ffmpeg reads it, names the address and four options, whatever the address contains; an address
    that could end a line or a word is refused."""
    for text in HOSTILE_TEXTS:
        address = f"http://127.0.0.1/{text}?a={text}"
        lines = ffmpeg_command.capture_script(address, timeout_s=20).decode().split("\n")
        assert [line.split(" ")[0] for line in lines] == ["ffconcat", "file", *["option"] * 4, ""]
        assert word(lines[1].removeprefix("file ")) == address
        options = [line.split()[1] for line in lines[2:-1]]
        assert sorted(options) == ["analyzeduration", "format_whitelist", "protocol_whitelist", "rw_timeout"]
    for text in ENDS_OF_A_LINE:
        with pytest.raises(errors.InvalidParameter):
            ffmpeg_command.capture_script(f"http://127.0.0.1/{text}", timeout_s=20)
    for scheme in ("file", "concat", "data", "pipe", "subfile", "tcp", "rtsp", "gopher", "ffconcat", ""):
        with pytest.raises(errors.InvalidParameter):
            ffmpeg_command.capture_script(f"{scheme}://127.0.0.1/a", timeout_s=20)


def word(text: str) -> str:
    """One word as ffmpeg's av_get_token reads it: quotes take everything, a backslash outside of them the next character."""
    found, quoted, at = "", False, 0
    while at < len(text):
        if text[at] == "'":
            quoted = not quoted
        elif text[at] == "\\" and not quoted:
            at += 1
            found += text[at]
        else:
            assert quoted or not text[at].isspace()
            found += text[at]
        at += 1
    assert not quoted
    return found


def test_a_path_is_one_argument(tmp_path: Path) -> None:
    """A path is exactly one argument and begins with a slash, so it cannot be an option."""
    for name in ("-i", "%d.flv", "a b", "房间", "'", "$(id)", "a,b:c=d", "[x]"):
        argv = ffmpeg_command.capture_args(FFMPEG, 7, tmp_path / name, "02")
        assert argv.count(str(tmp_path / name)) == 1
        assert str(tmp_path / name).startswith("/")
        following = dict(itertools.pairwise(argv))
        assert following["-format_whitelist"] == "concat,flv"
        assert {*following["-protocol_whitelist"].split(",")} == {"file", "http", "https", "rtmp", "rtmps", "tcp", "tls"}


async def tls_reaches(scheme: str, host: str, made: certificates.Certificates, spool: Path, engine: str) -> bool:
    """Whether a pull by TLS sends anything to the server of these certificates: its first request would contain the UserSig."""
    heard = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if await reader.read(1):
                heard.set()
        writer.transport.abort()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    server = await asyncio.start_server(hear, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    await capture_runner.run(f"{scheme}://{host}:{port}/pull/room?usersig=x", spool, f"{port:08d}", engine)
    server.close()
    return heard.is_set()


@pytest.mark.parametrize("engine", ["ffmpeg", "native"])
@pytest.mark.parametrize("scheme", ["https", "rtmps"])
async def test_a_server_with_another_certificate_receives_nothing(
    scheme: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull by TLS sends data only to a server whose certificate names the host and is signed by a trusted authority."""
    made = certificates.make(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    assert await tls_reaches(scheme, "127.0.0.1", made, tmp_path, engine)
    assert not await tls_reaches(scheme, "localhost", made, tmp_path, engine)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.stranger))
    assert not await tls_reaches(scheme, "127.0.0.1", made, tmp_path, engine)
    monkeypatch.delenv("SSL_CERT_FILE")
    assert not await tls_reaches(scheme, "127.0.0.1", made, tmp_path, engine)
