"""Facts about this machine and its configuration, for `recorder doctor`.

Rule: nothing is created or changed. Every function raises errors.RecorderError with one sentence on a fault, and may block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

import store.inspection
from assembly import identity
from config import settings as settings_module
from media import ffmpeg_command, spool
from tencent import credentials, pull_url

SchemaState = store.inspection.SchemaState
Overview = store.inspection.Overview
PORTS = {"rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}


def ffmpeg(settings: settings_module.Settings) -> tuple[str, tuple[int, ...]]:
    """Path of the ffmpeg in use, and its version numbers; (0,) if it states none."""
    binary = ffmpeg_command.find(settings.ffmpeg_binary)
    return binary, ffmpeg_command.version(binary) or (0,)


def pull_endpoint(settings: settings_module.Settings) -> tuple[str, int]:
    """Host and port that streams are pulled from. Raises ValueError for an address without a usable one."""
    template = settings.pull_address or pull_url.DEFAULT_TEMPLATE
    pull_url.check_template(template)
    parts = urlsplit(template)
    return parts.hostname or "", parts.port or PORTS[parts.scheme]


def schema(settings: settings_module.Settings) -> SchemaState:
    """Revision of the database's schema."""
    return store.inspection.schema_state(settings.database)


def dead_letters(settings: settings_module.Settings) -> tuple[int, list[str]]:
    """Number of messages in the broker's dead letter queue, and what the operator must do about them."""
    from bus import dead_letters as queue  # the embedded engine loads no AMQP

    level = asyncio.run(queue.level(settings.amqp_url.get_secret_value(), settings.amqp_prefix))
    return level.count or 0, level.warnings(refused=False)


def overview(settings: settings_module.Settings) -> Overview | None:
    """What runs on the database; None if it has no tables yet."""
    return store.inspection.overview(settings.database)


def queues(settings: settings_module.Settings, timeout_s: float) -> list[tuple[str, int | None, int | None]]:
    """Name, waiting messages and consumers of each queue of the broker; None for a missing one."""
    from bus import queue_levels  # the embedded engine loads no AMQP

    found = asyncio.run(queue_levels.read(settings.amqp_url.get_secret_value(), settings.amqp_prefix, timeout_s))
    return [(queue.name, queue.messages, queue.consumers) for queue in found]


def check_spool_owner(settings: settings_module.Settings) -> None:
    """Raise Unavailable if another user controls the spool's folder."""
    spool.check_owner(settings.spool)


def credentials_source(environment: Mapping[str, str]) -> str:
    """Name of the source that has COS credentials for starts without their own."""
    return asyncio.run(credentials.CredentialChain(environment, clock=identity.clock).resolve()).source
