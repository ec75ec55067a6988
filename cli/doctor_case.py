"""A case of `recorder doctor`: what its checks share, and the shape of their findings."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cli import client
from config import addresses, environment, settings

if TYPE_CHECKING:
    from assembly.inspection import Overview, SchemaState

OK, WARN, FAIL = "ok", "warn", "fail"
# All checks together, side by side; with the start of the program it stays below 3 s.
LIMIT_S = 2.0
MARGIN_S = 0.3
SETTINGS_PAGE = "docs/settings.md lists what each setting may be."

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. `meaning` and `type` (the command to type) are "" if its status is ok."""

    check: str = ""
    status: str
    found: str
    meaning: str = ""
    type: str = ""


def ok(found: str) -> Finding:
    """The check passed."""
    return Finding(status=OK, found=found)


def warn(found: str, meaning: str, remedy: str) -> Finding:
    """The service works, with a limit."""
    return Finding(status=WARN, found=found, meaning=meaning, type=remedy)


def fail(found: str, meaning: str, remedy: str) -> Finding:
    """The service cannot work."""
    return Finding(status=FAIL, found=found, meaning=meaning, type=remedy)


class Case:
    """One examination: the environment, its settings, the time limit, and answers that several checks share. A check runs in a
    thread of its own; whoever asks first for a shared answer reads it, and the others wait for it."""

    def __init__(self, environ: Mapping[str, str], mounts: Path, limit_s: float = LIMIT_S) -> None:
        self.environ = environment.cleaned(environ)
        self.misspelled = settings.misspelled(environ)
        self.mounts = mounts
        self._until_s = time.monotonic() + limit_s
        self._shared: dict[str, futures.Future[Any]] = {}
        self._lock = threading.Lock()
        self.faults: tuple[str, ...] = ()
        self.settings = settings.Settings()
        try:
            self.settings = settings.load(environ)
        except settings.SettingsError as error:
            self.faults = error.faults
        token, url = self.environ.get("RECORDER_TOKEN", ""), self.environ.get("RECORDER_URL") or client.DEFAULT_URL
        self.service = client.ServiceClient(url=url, token=token, timeout_s=self.left_s)

    @property
    def rest_s(self) -> float:
        """The rest of the time, in seconds; never 0, which means no limit to some functions."""
        return max(0.01, self._until_s - time.monotonic())

    @property
    def left_s(self) -> float:
        """The time that is left to a probe, so that its check can still name the server without an answer."""
        return max(0.01, self.rest_s - MARGIN_S)

    @property
    def is_file(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.settings.database.startswith(addresses.SQLITE)

    @property
    def distributed(self) -> bool:
        """Whether nodes share a broker."""
        return bool(self.settings.amqp_url.get_secret_value())

    @property
    def service_fault(self) -> str:
        """Why the commands cannot use the service; "" if they can."""
        return self._once("service", self._ask_service)

    @property
    def schema(self) -> SchemaState:
        """The database's schema. Raises RecorderError."""
        from assembly import inspection

        return self._once("schema", lambda: inspection.schema(self.settings))

    @property
    def overview(self) -> Overview | None:
        """What runs on the database; None if it has no tables. Raises RecorderError."""
        from assembly import inspection

        return self._once("overview", lambda: inspection.overview(self.settings))

    @property
    def queues(self) -> list[tuple[str, int | None, int | None]]:
        """Name, waiting messages and consumers of each queue of the broker. Raises RecorderError, in half of the time: closing a
        connection that never came into being takes the other half."""
        from assembly import inspection

        return self._once("queues", lambda: inspection.queues(self.settings, self.left_s / 2))

    def _ask_service(self) -> str:
        try:
            self.service.check_ready()
            self.service.sessions(limit="1")
        except client.ClientError as error:
            return str(error)
        return ""

    def _once(self, name: str, read: Callable[[], Answer]) -> Answer:
        """The shared answer of this name, or the error that reading it raised."""
        with self._lock:
            future = self._shared.get(name)
            if is_first := future is None:
                future = self._shared[name] = futures.Future()
        if is_first:
            try:
                future.set_result(read())
            except Exception as error:  # noqa: BLE001 - it is raised below, to each that waits
                future.set_exception(error)
        answer: Answer = future.result()
        return answer
