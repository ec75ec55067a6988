"""The demo's judgement of a file: by the live media, however long that took on this machine."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastcrc
import pytest
from rich import console

from simulator import demo

CONTENT = b"a finished file"


def judge(folder: Path, duration_s: float, sent_s: float) -> Path:
    """What the demo says of alice's file of this length, of whose stream so much was sent while 10 s were asked for."""
    path = folder / "cos" / demo.BUCKET / "lessons" / "alice_1.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    simulator: Any = SimpleNamespace(folder=folder)
    made = demo.Demo(
        simulator=simulator, service_url="", live_s=10, progress=dict, screen=console.Console(file=io.StringIO()),
        sent={"alice": SimpleNamespace(last_ms=round(sent_s * 1000))},  # type: ignore[dict-item] # of the stream, this alone
    )  # fmt: skip
    url = f"https://{demo.BUCKET}.cos.{demo.REGION}.myqcloud.com/lessons/alice_1.mp4"
    entry = {"UserId": "alice", "Status": 1, "RecordFile": url, "Size": len(CONTENT), "Duration": duration_s}
    return made._check_file(entry | {"Crc64": str(fastcrc.crc64.xz(CONTENT))})


@pytest.mark.parametrize(("duration_s", "sent_s"), [(10.0, 11.0), (9.2, 10.0), (44.5, 44.5), (42.0, 44.5)])
def test_a_file_may_hold_whatever_was_live(tmp_path: Path, duration_s: float, sent_s: float) -> None:
    """Who came first on a busy machine is recorded for much longer than was asked for, and the file is right."""
    assert judge(tmp_path, duration_s, sent_s).name == "alice_1.mp4"


@pytest.mark.parametrize(("duration_s", "sent_s"), [(8.5, 11.0), (0.0, 44.5), (13.0, 11.0)])
def test_a_file_that_lacks_or_invents_media_is_wrong(tmp_path: Path, duration_s: float, sent_s: float) -> None:
    """Less than was asked for, or more than was sent, fails the demo."""
    with pytest.raises(demo.WrongResult, match="were recorded"):
        judge(tmp_path, duration_s, sent_s)
