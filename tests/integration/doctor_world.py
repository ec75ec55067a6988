"""A machine on which every check of `recorder doctor` passes, for tests to break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from assembly import identity
from assembly import inspection as surroundings
from cli import doctor_checks as doctor
from machine import errors, model
from store import database_time, nodes
from tests import engines, rabbit, waiting
from tests.integration import api_service
from tests.integration.api_service import Service

SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
WHSEC = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
TOKEN = "a-token-that-is-long-enough"


@dataclass(kw_only=True)
class World:
    """A machine on which every check passes, for tests to break. doctor gets `environ` and `mounts`."""

    folder: Path
    service: Service
    mounts: Path
    patches: pytest.MonkeyPatch
    environ: dict[str, str] = field(default_factory=dict)
    heartbeats: nodes.Nodes | None = None

    @property
    def spool(self) -> Path:
        """SPOOL_DIR, which does not exist yet."""
        return Path(self.environ["SPOOL_DIR"])

    async def examine(self) -> dict[str, doctor.Finding]:
        """The findings, by check."""
        await self.beat()
        found = await asyncio.to_thread(doctor.examine, self.environ, self.mounts, waiting.limit_s(30))
        return {f.check: f for f in found}

    async def beat(self) -> None:
        """Have a worker send a heartbeat, where workers share the database."""
        if self.heartbeats is not None:
            with contextlib.suppress(errors.Outdated):
                await self.heartbeats.heartbeat("w1", spare=model.SpareCapacity(free_bytes=2, needed_bytes=1))

    async def broken(self) -> list[tuple[str, str]]:
        """(check, status) of all findings that are not ok; each has a meaning and a remedy."""
        found = (await self.examine()).values()
        bad = [f for f in found if f.status != "ok"]
        assert all(f.found and f.meaning and f.type for f in bad)
        assert all(f.found and not f.meaning and not f.type for f in found if f.status == "ok")
        return [(f.check, f.status) for f in bad]

    def change(self, **facts: Any) -> None:
        """Other facts about this machine: functions of assembly.inspection, by name."""
        for name, fact in facts.items():
            self.patches.setattr(surroundings, name, fact)


def no_credentials(_: object) -> str:
    raise errors.InvalidParameter("No credentials for Tencent Cloud were found.")


@contextlib.asynccontextmanager
async def prepared(tmp_path: Path, database: engines.Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The machine, with a service on the database."""
    data = tmp_path / "data"
    data.mkdir()
    if database.engine == "sqlite":  # a copy to break, apart from the service's own
        shutil.copyfile(database.path, data / "recorder.db")
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda1 / ext4 rw 0 0\n")
    async with api_service.running(database, (TOKEN,)) as service:
        heartbeats = None
        monkeypatch.setattr(surroundings, "credentials_source", lambda environment: "explicit")
        monkeypatch.setattr(identity, "VERSION", "1.2.3")
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "DATA_DIR": str(data),
            "SPOOL_DIR": str(tmp_path / "spool"),
            "MIN_FREE": "1MiB",
            "FFMPEG_BINARY": imageio_ffmpeg.get_ffmpeg_exe(),
            "TRTC_CALLBACK_KEYS": "1400000001=key",
            "CALLBACK_SECRET": WHSEC,
            "PULL_ADDRESS": f"{service.url}/pull/{{room}}",
            "COS_ENDPOINT": service.url,
            "RECORDER_URL": service.url,
            "RECORDER_TOKEN": TOKEN,
        }
        if database.engine == "postgresql":
            environ |= {"DATABASE_URL": database.url, "AMQP_URL": rabbit.shared().url, "CLUSTER_TOKEN": TOKEN}
            environ |= {"SECRET_KEYS": engines.SECRET_KEYS, "AMQP_PREFIX": rabbit.shared().prefix()}
            heartbeats = nodes.Nodes(service.store.connections, time=database_time.DatabaseTime(None))
        facts = {"mounts": mounts, "patches": monkeypatch, "environ": environ, "heartbeats": heartbeats}
        yield World(folder=tmp_path, service=service, **facts)
