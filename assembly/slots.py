"""Slots of a worker: how many transcodes, uploads and deliveries it executes at a time, by command type.

Rule: a transcode of whole segments takes a CPU. The end of a recording that was followed takes a tenth of a second, most of which
it waits: such transcodes have slots of their own, so that 200 rooms may close at once, and wait for no other one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from config import settings as settings_module
from store import store, upload_queue
from worker import capacity, cpu_usage, stalled_uploads, worker

# An upload is bound by the network and takes a thread; a delivery waits for the receiver and takes a socket.
MIN_UPLOADS = 4
UPLOADS_PER_CPU = 2
MIN_DELIVERIES = 64
DELIVERIES_PER_CPU = 32
FOLLOWED_PER_CPU = 4


def whole(settings: settings_module.Settings) -> int:
    """How many transcodes of whole segments run at a time."""
    return settings.transcodes or math.ceil(cpu_usage.usable())


def of(settings: settings_module.Settings) -> dict[str, int]:
    """The settings TRANSCODES, UPLOADS and DELIVERIES; an unset one follows from the CPUs that this process may use."""
    cpus = math.ceil(cpu_usage.usable())
    return {
        capacity.START_TRANSCODE: whole(settings),
        capacity.FOLLOWED: FOLLOWED_PER_CPU * cpus,
        capacity.START_UPLOAD: settings.uploads or max(MIN_UPLOADS, UPLOADS_PER_CPU * cpus),
        "send-callback": settings.deliveries or max(MIN_DELIVERIES, DELIVERIES_PER_CPU * cpus),
    }


def by_kind(settings: settings_module.Settings) -> dict[str, int]:
    """The same by the kind of job, as operators see them."""
    found = of(settings)
    followed = found.pop(capacity.FOLLOWED)
    found[capacity.START_TRANSCODE] += followed if settings.follow else 0
    return {capacity.KINDS[type_]: number for type_, number in found.items()}


def stalled(database: store.Store, made: worker.Worker, taken: Mapping[str, int]) -> stalled_uploads.StalledUploads:
    """The uploads of a worker with these slots, of which some may stall."""
    queue = upload_queue.UploadQueue(database.connections)
    jobs, number = made.leases.jobs, taken[capacity.START_UPLOAD]
    return stalled_uploads.StalledUploads(jobs, slots=number, others_wait=queue.others_wait, is_to=queue.is_to)
