"""What an ffmpeg of any kind is held to: limits, no new rights, nothing of our environment; and nothing without them."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from cli import doctor_probes
from machine import errors
from media import capture, ffmpeg_command, ffmpeg_process, resource_limits, transcode
from tests import flv_source, service_process, waiting
from tests.flv_source import FFMPEG

EMPTY = ["LC_ALL=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin"]


def of_process(pid: int, file: str) -> str:
    """What the system says of a process."""
    return Path(f"/proc/{pid}/{file}").read_text()


def check_held(pid: int, allowed: resource_limits.Limits) -> None:
    """No core dump, no more memory, files and file size than it may take, no new rights, and nothing of our environment."""
    rows = of_process(pid, "limits").splitlines()[1:]
    held = {row[:26].strip(): row[26:].split()[:2] for row in rows}
    assert held["Max core file size"] == ["0", "0"]
    assert held["Max address space"] == [str(allowed.memory_bytes)] * 2
    assert held["Max file size"] == [str(allowed.file_bytes)] * 2
    assert held["Max open files"] == ["64", "64"]
    assert "NoNewPrivs:\t1" in of_process(pid, "status")
    environment = of_process(pid, "environ").split("\0")
    assert sorted(filter(None, environment)) == EMPTY


async def test_an_ffmpeg_is_held_to_its_limits(tmp_path: Path) -> None:
    """A capture, while it runs: it has the limits of one, and its memory runs out before the machine's does."""
    source = flv_source.LiveSource()
    await source.start()
    source.streams["anna"] = flv_source.Stream(tags=flv_source.content())
    running = capture.Capture(
        capture.CaptureSpec(address=source.address("anna"), path=tmp_path / "a.flv", mode="02"), ffmpeg=FFMPEG
    )
    await running.start()
    await waiting.until(lambda: of_process(running.pid, "comm").startswith("ffmpeg"))
    check_held(running.pid, resource_limits.Limits(memory_bytes=2 << 30, file_bytes=64 << 30))
    running.stop()
    await running.wait()
    await source.stop()


async def test_transcodes_and_verifications_are_held_to_theirs(tmp_path: Path) -> None:
    """Each, while it runs: memory for an encoding, files of some times the input, and none at all for what only reads."""
    for kind in ("transcode", "verify"):
        (tmp_path / kind).touch()
    held_up = tmp_path / "ffmpeg"
    held_up.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *pipe:0*) hold={tmp_path}/transcode ;; *) hold={tmp_path}/verify ;; esac\n'
        "while [ -e $hold ]; do read -t 0.05 <> <(:); done\n"
        f'exec {FFMPEG} "$@"\n'
    )
    held_up.chmod(0o755)
    path = flv_source.write(tmp_path / "1.flv", flv_source.between(flv_source.content(), 0, 2_000))
    size = path.stat().st_size
    before = set(service_process.children(os.getpid()))

    async def check(kind: str, file_bytes: int) -> None:
        (pid,) = await waiting.until(lambda: set(service_process.children(os.getpid())) - before, what=f"the {kind}")
        await waiting.until(lambda: of_process(pid, "comm") == "ffmpeg\n", what=f"the {kind} to be itself")
        check_held(
            pid, resource_limits.Limits(memory_bytes=(4 << 30) + (os.cpu_count() or 1) * (256 << 20), file_bytes=file_bytes)
        )
        (tmp_path / kind).unlink()
        before.add(pid)

    segment = transcode.SegmentFile(path=path, first_packet_ms=None, last_packet_ms=None)
    made = asyncio.create_task(transcode.Transcoder(str(held_up)).transcode([segment], "02", tmp_path / "a.mp4"))
    await check("transcode", (4 << 30) + 8 * size)
    await check("verify", 0)
    assert (await made).size_bytes > 0


async def test_nothing_runs_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where util-linux is not there no ffmpeg is started, and the service says so instead of starting."""
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


def test_questions_to_an_ffmpeg_show_it_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version and what it can do are asked with an empty environment, too: whoever chose the binary reads no keys there."""
    monkeypatch.setenv("SECRET_KEYS", "PLANTED")
    curious = tmp_path / "ffmpeg"
    curious.write_text(f'#!/bin/bash\ntr "\\0" "\\n" < /proc/$$/environ > {tmp_path}/seen\nexec {FFMPEG} "$@"\n')
    curious.chmod(0o755)
    for ask in (
        lambda: ffmpeg_command.version(str(curious)),
        lambda: doctor_probes.ffmpeg_lacks(str(curious), {"encoders": ("aac",)}) == [],
    ):
        assert ask()
        seen = (tmp_path / "seen").read_text().splitlines()
        assert sorted(seen) == EMPTY
        (tmp_path / "seen").unlink()


async def test_a_limit_is_felt(tmp_path: Path) -> None:
    """What asks for more memory gets none, what writes a larger file is ended with what it wrote: the limits are real."""
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
