"""Log lines that cannot be written: they are lost and counted, and neither fail nor block what logs them."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import config.logs
from assembly import logs
from config import log_sink


@pytest.fixture(autouse=True)
def _logging_is_restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    silenced = {name: logging.getLogger(name).level for name in config.logs.SILENCED}
    configured = structlog.get_config()
    yield
    structlog.configure(**configured)
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name, old in silenced.items():
        logging.getLogger(name).setLevel(old)


class Pipe:
    """A pipe: the log's end, and a reader that a test closes, or never reads from."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self.reader, self.stream = os.fdopen(reader, "rb", buffering=0), os.fdopen(writer, "w", encoding="utf-8")

    def received(self) -> bytes:
        """What waits in the pipe."""
        return self.reader.readall() or b""

    def close(self) -> None:
        self.stream.close()
        self.reader.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def _log(sink: log_sink.LogSink) -> list[str]:
    """Log by both ways; returns the warnings."""
    structlog.get_logger().error("capture.failed", speaker="al", text="\ud800")
    logging.getLogger("third.party").error("it failed")
    return sink.warnings()


def test_a_full_disk() -> None:
    """Lines to a full disk are lost and counted; nothing of them stays in the stream's buffer."""
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        sink = logs.configure(stream=stream)
        assert sink.warnings() == []
        (warning,) = _log(sink)
        assert warning.startswith("2 log lines were lost")
        assert "No space left on device" in warning
        assert stream.tell() == 0
        stream.flush()


def test_a_reader_that_is_gone(pipe: Pipe) -> None:
    """A pipe that nobody reads any more is no error of those who log."""
    sink = logs.configure(stream=pipe.stream)
    assert _log(sink) == []
    pipe.reader.close()
    (warning,) = _log(sink)
    assert warning.startswith("2 log lines were lost")
    assert "Broken pipe" in warning


def test_a_reader_that_does_not_read(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe holds up only the first line, for its patience; when it is read again, a line says how many were lost."""
    waited: list[float] = []
    ready = log_sink._is_ready

    def noted(descriptor: int, timeout_s: float) -> bool:
        began_s = time.monotonic()
        found = ready(descriptor, timeout_s)
        if not found:
            waited.append(timeout_s)
            assert time.monotonic() - began_s < 30
        return found

    monkeypatch.setattr(log_sink, "_is_ready", noted)
    sink = logs.configure(stream=pipe.stream)
    for number in range(2_000):
        structlog.get_logger().info("capture.running", number=number, filler="x" * 300)
    (warning,) = sink.warnings()
    assert "does not read" in warning
    assert (waited[0], set(waited[1:])) == (log_sink.PATIENCE_S, {0.0})
    assert pipe.received()
    structlog.get_logger().info("capture.ended")
    *_, last, told = (json.loads(line) for line in pipe.received().splitlines())
    assert last["event"] == "capture.ended"
    assert (told["event"], told["lines"]) == ("log.lines_lost", len(waited))


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose standard error is closed logs into nothing."""
    monkeypatch.setattr("sys.stderr", None)
    (warning,) = _log(logs.configure())
    assert "standard error is closed" in warning


def test_a_value_that_cannot_be_rendered(pipe: Pipe) -> None:
    """A line with such a value is replaced by one that names its event and no value."""

    class Damaged:
        def __repr__(self) -> str:
            raise RuntimeError("PLANTED")

    logs.configure(stream=pipe.stream)
    structlog.get_logger().error("segment.not_noted", value=Damaged())
    structlog.get_logger().error("a sentence with UserSig=PLANTED", value=Damaged())
    lines: list[Any] = [json.loads(line) for line in pipe.received().splitlines()]
    assert [line["of"] for line in lines] == ["segment.not_noted", ""]
    assert {line["event"] for line in lines} == {"log.not_rendered"}
    assert all("PLANTED" not in str(line) for line in lines)
