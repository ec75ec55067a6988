"""Sessions, recordings and events in their simplest form, and shortcuts to store and advance them."""

from __future__ import annotations

import dataclasses
from typing import Any

from events import codec, requests
from machine import job_key, model
from store import store as stores
from tests import engines, transactions

ROOM = requests.Room(sdk_app_id=1400000001, room_id=88)
TASK = "01" + "0" * 23 + "1"
OTHER = "01" + "0" * 23 + "2"
LEASE_MS = 30_000
SECRETS = requests.Secrets(user_sig="sig", secret_id="id", secret_key="key", token="token")


def request(**changes: Any) -> requests.StartRequest:
    plain = requests.StartRequest(room=ROOM, user_id="rec", region="ap-shanghai", bucket="b-12345", path="p", subscribe=("al",))
    return dataclasses.replace(plain, **changes)


def session(task_id: str = TASK, **changes: Any) -> model.Session:
    plain = model.Session(task_id=task_id, request=request(), opened_ms=engines.START_MS, idle_from_ms=engines.START_MS)
    return dataclasses.replace(plain, **changes)


def recording(task_id: str = TASK, speaker: str = "al", **changes: Any) -> model.Recording:
    job = model.Job(kind="capture", state="queued")
    plain = model.Recording(task_id=task_id, speaker=speaker, n=1, epoch=1, job=job, opened_ms=engines.START_MS)
    return dataclasses.replace(plain, **changes)


def event(id_: str = "e1", type_: str = "stop") -> codec.Event:
    return codec.Event(id=id_, type=type_, time_ms=engines.START_MS, data={"TaskId": TASK})


async def opened(store: stores.Store, *recordings: model.Recording, of: model.Session | None = None) -> None:
    async with transactions.opened(store) as tx:
        tx.add_session(of or session(), SECRETS)
        for value in recordings:
            tx.add_recording(value)


async def saved(store: stores.Store, key: job_key.RecordingKey) -> model.Recording:
    async with transactions.opened(store) as tx:
        found = await tx.recording(key)
    assert found is not None
    return found


async def moved(store: stores.Store, key: job_key.RecordingKey, **changes: Any) -> model.Recording:
    async with transactions.opened(store) as tx:
        found = await tx.recording(key)
        assert found is not None
        return tx.save_recording(found, dataclasses.replace(found, **changes))
