"""Child limits: every ffmpeg runs with resource limits, without new privileges and with an empty environment, or not at all."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from cli import doctor_probes
from machine import errors
from media import capture, ffmpeg_capture, ffmpeg_command, ffmpeg_process, resource_limits, transcode
from tests import flv_source, service_process, waiting
from tests.flv_source import FFMPEG

EMPTY = ["LC_ALL=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin"]


def of_process(pid: int, file: str) -> str:
    """A file of /proc about a process."""
    return Path(f"/proc/{pid}/{file}").read_text()


def check_limits(pid: int, allowed: resource_limits.Limits) -> None:
    """Assert that the process has the limits, cannot dump core or gain privileges, and has nothing of our environment."""
    rows = of_process(pid, "limits").splitlines()[1:]
    limits = {row[:26].strip(): row[26:].split()[:2] for row in rows}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(allowed.memory_bytes)] * 2
    assert limits["Max file size"] == [str(allowed.file_bytes)] * 2
    assert limits["Max open files"] == ["64", "64"]
    assert "NoNewPrivs:\t1" in of_process(pid, "status")
    environment = of_process(pid, "environ").split("\0")
    assert sorted(filter(None, environment)) == EMPTY


async def test_a_capture_runs_under_its_limits(tmp_path: Path) -> None:
    """A running capture has the limits of a capture, so its memory runs out before the machine's does."""
    source = flv_source.LiveSource()
    await source.start()
    source.streams["anna"] = flv_source.Stream(tags=flv_source.content())
    running = ffmpeg_capture.FfmpegCapture(
        capture.CaptureSpec(address=source.address("anna"), path=tmp_path / "a.flv", mode="02"), ffmpeg=FFMPEG
    )
    await running.start()
    await waiting.until(lambda: of_process(running.pid, "comm").startswith("ffmpeg"))
    check_limits(running.pid, resource_limits.Limits(memory_bytes=2 << 30, file_bytes=64 << 30))
    running.stop()
    await running.wait()
    await source.stop()


async def test_transcodes_and_verifications_run_under_their_limits(tmp_path: Path) -> None:
    """A running transcode may write files of a few times its input, a verification may write none, and both have a limit of
    memory."""
    for kind in ("transcode", "verify"):
        (tmp_path / kind).touch()
    wrapper = tmp_path / "ffmpeg"
    wrapper.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *pipe:0*) hold={tmp_path}/transcode ;; *) hold={tmp_path}/verify ;; esac\n'
        "while [ -e $hold ]; do read -t 0.05 <> <(:); done\n"
        f'exec {FFMPEG} "$@"\n'
    )
    wrapper.chmod(0o755)
    path = flv_source.write(tmp_path / "1.flv", flv_source.between(flv_source.content(), 0, 2_000))
    size = path.stat().st_size
    before = set(service_process.children(os.getpid()))

    async def check(kind: str, file_bytes: int) -> None:
        (pid,) = await waiting.until(lambda: set(service_process.children(os.getpid())) - before, what=f"the {kind}")
        await waiting.until(lambda: of_process(pid, "comm") == "ffmpeg\n", what=f"the {kind} to be itself")
        check_limits(
            pid, resource_limits.Limits(memory_bytes=(4 << 30) + (os.cpu_count() or 1) * (256 << 20), file_bytes=file_bytes)
        )
        (tmp_path / kind).unlink()
        before.add(pid)

    segment = transcode.SegmentFile(path=path, first_packet_ms=None, last_packet_ms=None)
    made = asyncio.create_task(transcode.Transcoder(str(wrapper)).transcode([segment], "02", tmp_path / "a.mp4"))
    await check("transcode", (4 << 30) + 8 * size)
    await check("verify", 0)
    assert (await made).size_bytes > 0


async def test_no_ffmpeg_runs_without_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without util-linux no ffmpeg starts, and the service refuses to start with a message that names the missing tool."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.Unavailable, match="setpriv is not on PATH"):
        ffmpeg_process.check_tools()
    with pytest.raises(FileNotFoundError):
        await ffmpeg_process.Child([FFMPEG, "-version"], redact=str).start()
    (tmp_path / "setpriv").write_text("#!/bin/sh\n")
    (tmp_path / "setpriv").chmod(0o755)
    with pytest.raises(errors.Unavailable, match="prlimit is not on PATH"):
        ffmpeg_process.check_tools()
    with pytest.raises(FileNotFoundError):
        await ffmpeg_process.Child([FFMPEG, "-version"], redact=str).start()


def test_probes_of_ffmpeg_get_an_empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of version and abilities run with an empty environment, so a foreign binary cannot read keys."""
    monkeypatch.setenv("SECRET_KEYS", "PLANTED")
    curious = tmp_path / "ffmpeg"
    curious.write_text(f'#!/bin/bash\ntr "\\0" "\\n" < /proc/$$/environ > {tmp_path}/seen\nexec {FFMPEG} "$@"\n')
    curious.chmod(0o755)
    for ask in (
        lambda: ffmpeg_command.version(str(curious)),
        lambda: doctor_probes.ffmpeg_lacks(str(curious), {"encoders": ("aac",)}, 20.0) == [],
    ):
        assert ask()
        seen = (tmp_path / "seen").read_text().splitlines()
        assert sorted(seen) == EMPTY
        (tmp_path / "seen").unlink()


async def test_the_limits_are_enforced(tmp_path: Path) -> None:
    """A child that allocates too much memory fails, and a child that writes too large a file ends at the limit."""
    small = resource_limits.Limits(memory_bytes=256 << 20, file_bytes=1 << 20)
    dd = shutil.which("dd")
    assert dd is not None
    greedy = ffmpeg_process.Child([dd, "if=/dev/zero", "of=/dev/null", "bs=1G", "count=1"], redact=str, limits=small)
    await greedy.start()
    assert await greedy.wait() != 0
    assert "memory" in " ".join(greedy.last_lines)
    long = ffmpeg_process.Child([dd, "if=/dev/zero", f"of={tmp_path / 'out'}", "bs=64K", "count=64"], redact=str, limits=small)
    await long.start()
    assert await long.wait() != 0
    assert (tmp_path / "out").stat().st_size == 1 << 20
