"""Threads for calls that may hang: a thread that cannot be started leaves no later call waiting."""

from __future__ import annotations

import threading

import pytest

from machine import daemon_threads
from tests import waiting


async def test_a_thread_that_cannot_start_is_an_error_of_its_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the system's limit of threads a call fails; once threads can be started again, calls run."""
    threads = daemon_threads.DaemonThreads("test", 1)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.run(int, "7")
    async with waiting.at_most(10):
        assert await threads.run(int, "7") == 7
