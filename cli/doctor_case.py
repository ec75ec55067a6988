"""A case of `recorder doctor`: what its checks share, and the shape of their findings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from cli import client
from config import addresses, environment, settings

OK, WARN, FAIL = "ok", "warn", "fail"


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
    """One examination: the environment, its settings, and answers that several checks share."""

    def __init__(self, environ: Mapping[str, str], mounts: Path) -> None:
        self.environ = environment.cleaned(environ)
        self.misspelled = settings.misspelled(environ)
        self.mounts = mounts
        self.faults: tuple[str, ...] = ()
        self.settings = settings.Settings()
        try:
            self.settings = settings.load(environ)
        except settings.SettingsError as error:
            self.faults = error.faults

    @property
    def is_file(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.settings.database.startswith(addresses.SQLITE)

    @functools.cached_property
    def service(self) -> client.ServiceClient:
        """The service that the commands ask."""
        token = self.environ.get("RECORDER_TOKEN", "")
        return client.ServiceClient(url=self.environ.get("RECORDER_URL") or client.DEFAULT_URL, token=token, timeout_s=5.0)

    @functools.cached_property
    def service_fault(self) -> str:
        """Why the commands cannot use the service; "" if they can."""
        try:
            self.service.check_ready()
            self.service.sessions(limit="1")
        except client.ClientError as error:
            return str(error)
        return ""
