"""Slots of a worker: how many transcodes, uploads and deliveries it executes at a time, by command type.

Rule: a transcode of whole segments takes a CPU. The end of a recording that was followed takes a tenth of a second, most of which
it waits: such transcodes have slots of their own, so that 200 rooms may close at once.
"""

from __future__ import annotations

import math

from config import settings as settings_module
from worker import cpu_usage

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
        "start-transcode": whole(settings) + (FOLLOWED_PER_CPU * cpus if settings.follow else 0),
        "start-upload": settings.uploads or max(MIN_UPLOADS, UPLOADS_PER_CPU * cpus),
        "send-callback": settings.deliveries or max(MIN_DELIVERIES, DELIVERIES_PER_CPU * cpus),
    }
