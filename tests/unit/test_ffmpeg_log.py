"""ffmpeg's output, step by step: line, meaning, progress; its arguments; and that neither contains the pull address."""

from __future__ import annotations

from pathlib import Path

import pytest

from machine import errors
from media import ffmpeg_command, ffmpeg_log
from media.ffmpeg_log import Meaning

ADDRESS = (
    "rtmp://rtmp.rtc.qq.com/pull/42?sdkappid=1400000001&userid=recorder&usersig=eJyrVgrxCdYrSy1SslI%2AqQ__&remoteuserid=anna"
)

SAID = [
    ("[in#0/concat @ 0x55a] [warning] New video stream with index 1 at pos:9490 and DTS:4.023s", Meaning.NEW_VIDEO),
    ("[in#0/flv @ 0x55a] [warning] New audio stream with index 1 at pos:12 and DTS:1s", Meaning.NEW_AUDIO),
    ("[in#0/flv @ 0x55a] [warning] New data stream with index 2 at pos:12 and DTS:1s", Meaning.OTHER),
    ("[aist#0:1/aac @ 0x55a] [warning] DTS 4294867296, next:2020219 st:1 invalid dropping", Meaning.TIME_JUMP),
    (
        "[aost#0:0/copy @ 0x55] [warning] Non-monotonic DTS; previous: 5991, current: 2000; changing to 5991. This",
        Meaning.TIME_JUMP,
    ),
    ("[aost#0:0/copy @ 0x55] [warning] Non-monotonic DTS; previous: 5991, current: 5990; changing to 5991. This", Meaning.OTHER),
    ("[http @ 0x55] [warning] HTTP error 403 Forbidden", Meaning.REFUSED_FOR_GOOD),
    ("[http @ 0x55] [warning] HTTP error 401 Unauthorized", Meaning.REFUSED_FOR_GOOD),
    ("[http @ 0x55] [warning] HTTP error 404 Not Found", Meaning.REFUSED),
    ("[http @ 0x55] [warning] HTTP error 503 Service Unavailable", Meaning.REFUSED),
    ("[rtmp @ 0x55] [error] Server error: UserSig is expired", Meaning.REFUSED_FOR_GOOD),
    ("[rtmp @ 0x55] [error] Server error: no package for this application", Meaning.REFUSED_FOR_GOOD),
    ("[rtmp @ 0x55] [error] Server error: No such stream", Meaning.REFUSED),
    ("[tcp @ 0x55] [error] Connection to tcp://127.0.0.1:1?tcp_nodelay=0 failed: Connection refused", Meaning.REFUSED),
    ("[tcp @ 0x55] [error] Failed to resolve hostname nowhere.invalid: Name or service not known", Meaning.REFUSED),
    ("[out#0/flv @ 0x55] [error] Error writing trailer: No space left on device", Meaning.DISK_FULL),
    ("[out#0/mp4 @ 0x55] [error] Error opening output /x/y.part: No such file or directory", Meaning.SPOOL_LOST),
    ("[in#0/flv @ 0x55] [error] Error during demuxing: Input/output error", Meaning.OTHER),
    ("frame=   10 fps=0.0", Meaning.OTHER),
]


@pytest.mark.parametrize(("text", "expected"), SAID)
def test_each_line_has_one_meaning(text: str, expected: Meaning) -> None:
    """The lines measured with ffmpeg 9.0.2, and those of the RTMP client's source, are understood."""
    assert ffmpeg_log.meaning(ffmpeg_log.parse(text)) is expected


def test_a_line_comes_apart() -> None:
    """A line is split into source without its address, level and message; a line without them is all message."""
    line = ffmpeg_log.parse("[in#0/flv @ 0x55f98555b0c0] [error] Error during demuxing: Input/output error")
    assert line == ffmpeg_log.Line(source="in#0/flv", level="error", message="Error during demuxing: Input/output error")
    assert ffmpeg_log.parse("[fatal] Error opening [x]") == ffmpeg_log.Line(source="", level="fatal", message="Error opening [x]")
    assert ffmpeg_log.parse("plain") == ffmpeg_log.Line(source="", level="", message="plain")


def test_no_line_keeps_the_address_or_what_it_carries() -> None:
    """The whole address, its signature alone, its decoded signature and any usersig= are taken out."""
    redact = ffmpeg_log.Redactor(ADDRESS)
    for said in (
        f"Impossible to open '{ADDRESS}'",
        "sig eJyrVgrxCdYrSy1SslI%2AqQ__",
        "sig eJyrVgrxCdYrSy1SslI*qQ__",
        "x?userSig=other&a=b",
    ):
        hidden = redact(said)
        assert "eJyrVgrx" not in hidden
        assert "other" not in hidden
    assert ffmpeg_log.Redactor()("connect usersig=abc&room=1") == "connect usersig=<hidden>&room=1"


def test_progress_is_read_block_by_block() -> None:
    """Values hold until the block's end; N/A keeps the previous value; the last block is marked."""
    reader = ffmpeg_log.ProgressReader()
    said = [
        "frame=10",
        "total_size=2048",
        "out_time_us=1500000",
        "progress=continue",
        "out_time_us=N/A",
        "total_size=4096",
        "progress=end",
    ]
    blocks = [block for text in said if (block := reader.read(text))]
    assert blocks == [
        ffmpeg_log.Progress(out_ms=1500, size_bytes=2048, frames=10, ended=False),
        ffmpeg_log.Progress(out_ms=1500, size_bytes=4096, frames=10, ended=True),
    ]


def test_the_stated_duration_is_read() -> None:
    """A duration line is parsed from hours to hundredths; any other line gives none."""
    assert ffmpeg_log.container_duration_ms("  Duration: 01:02:03.45, start: 0.000000, bitrate: 1 kb/s") == 3_723_450
    assert ffmpeg_log.container_duration_ms("Duration: N/A") is None


@pytest.mark.parametrize("mode", ["00", "01", "02"])
def test_a_capture_is_flushed_restricted_and_secretless(mode: str) -> None:
    """The argument list holds no address, flushes packets, names its protocols, and never reconnects or listens."""
    argv = ffmpeg_command.capture_args("/bin/ffmpeg", 7, Path("/spool/t/a_1/00000001.flv"), mode)
    joined = " ".join(argv)
    assert argv[0] == "/bin/ffmpeg"
    assert "-flush_packets 1" in joined
    assert "-codec copy" in joined
    assert "-i /dev/fd/7" in joined
    assert "-loglevel level+warning" in joined
    assert argv[argv.index("-format_whitelist") + 1] == "concat,flv"
    assert "usersig" not in joined
    assert not [part for part in argv if part.startswith("-reconnect") or part == "-timeout"]
    assert ("-bsf:v" in argv) == (mode == "00")


def test_the_script_quotes_the_address_and_limits_what_it_may_open() -> None:
    """A quote in the address cannot end it, and the protocols are those of its scheme."""
    script = ffmpeg_command.capture_script("rtmp://host/pull/a'b?x=1", timeout_s=20).decode()
    assert "file 'rtmp://host/pull/a'\\''b?x=1'\n" in script
    assert "option protocol_whitelist rtmp,tcp\n" in script
    assert "option rw_timeout 20000000\n" in script


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "concat:a|b", "/etc/passwd", "rtmp://h/a\nfile '/etc/passwd'", "rtmp://h/a b", ""]
)
def test_what_is_no_live_address_is_refused(address: str) -> None:
    """Only http, https, rtmp and rtmps; no line breaks, no spaces; the address is not repeated in the error."""
    with pytest.raises(errors.InvalidParameter) as refused:
        ffmpeg_command.capture_script(address, timeout_s=20)
    assert refused.value.field == "PULL_ADDRESS"
    assert not address or address not in refused.value.message


def test_a_configured_binary_must_run() -> None:
    """FFMPEG_BINARY that does not run is an error that names it; the bundled one is found and knows its version."""
    with pytest.raises(errors.Unavailable, match="/nowhere/ffmpeg"):
        ffmpeg_command.find("/nowhere/ffmpeg")
    found = ffmpeg_command.find()
    assert (ffmpeg_command.version(found) or (0,)) >= ffmpeg_command.OLDEST_SYSTEM_VERSION
