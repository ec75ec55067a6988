"""Child processes that misbehave: they ignore signals, print endlessly, stay silent or end before they are stopped."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from media import ffmpeg_process
from tests import waiting


def _child(script: str, **options: object) -> ffmpeg_process.Child:
    return ffmpeg_process.Child(["/bin/bash", "-c", script], redact=lambda text: text.replace("SECRET", "<hidden>"), **options)  # type: ignore[arg-type] # options differ per test


@pytest.mark.alone
async def test_stop_escalates_from_input_to_sigkill() -> None:
    """`q`, then SIGTERM, then SIGKILL; each after its limit and no later."""
    polite, plain, stubborn = (
        _child("read -n1 key; exit 7"),
        _child("exec sleep 60"),
        _child("trap '' TERM INT; while :; do read -t 9; done"),
    )
    took, codes, limit_s = [], [], 0.8 * waiting.pace()
    for child in (polite, plain, stubborn):
        await child.start()
        began = time.monotonic()
        await child.stop(ask_s=limit_s, term_s=limit_s)
        took.append(time.monotonic() - began)
        codes.append(await child.wait())
    assert codes[0] == 7
    assert codes[1] in (-15, -2)
    assert codes[2] == -9
    assert took[0] < limit_s
    assert limit_s <= took[1] < 2 * limit_s
    assert 2 * limit_s <= took[2] < 2 * limit_s + 0.8 * waiting.patience()


async def test_output_is_redacted_bounded_and_always_read() -> None:
    """Megabytes on stderr never block the child; only the last lines are kept, an endless line is cut, secrets are masked."""
    seen: list[str] = []
    script = "for i in $(seq 20000); do echo line $i SECRET >&2; done; head -c 3000000 /dev/zero | tr '\\0' x >&2; echo; exit 0"
    child = _child(script, on_error_line=seen.append)
    await child.start()
    assert await asyncio.wait_for(child.wait(), waiting.limit_s(20)) == 0
    assert len(seen) == 20_001
    assert not [line for line in seen if "SECRET" in line]
    assert len(child.last_lines) <= 100
    assert max(map(len, child.last_lines)) <= 8_192


async def test_a_failing_listener_ends_the_child_and_is_raised() -> None:
    """An error in a listener kills the child, whose output would go unread, and wait() raises it."""

    def fail(_: str) -> None:
        raise ValueError("listener")

    child = _child("echo hello >&2; exec sleep 60", on_error_line=fail)
    await child.start()
    with pytest.raises(ValueError, match="listener"):
        await asyncio.wait_for(child.wait(), waiting.limit_s(5))


async def test_an_ended_child_can_be_stopped_and_killed() -> None:
    """An ended child can be stopped and killed again; an unstarted child can be killed."""
    child = _child("exit 0")
    child.kill()
    await child.start()
    assert await child.wait() == 0
    await child.stop()
    child.kill()
    await waiting.until(lambda: not Path(f"/proc/{child.pid}").exists())


async def test_the_child_gets_a_clean_environment() -> None:
    """No variable of the service reaches the child, not even a proxy."""
    lines: list[str] = []
    child = ffmpeg_process.Child(["/usr/bin/env"], redact=str, on_output_line=lines.append)
    await child.start()
    await child.wait()
    assert sorted(line.partition("=")[0] for line in lines) == ["LC_ALL", "PATH"]
