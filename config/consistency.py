"""Consistency of settings that are valid one by one but contradict each other.

Rule: a fault names its variable and the allowed values, never a value.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from config import addresses, parsers

if TYPE_CHECKING:
    from config import settings as settings_module

ON_CFS_PATH = "must not be on CFS_PATH: SQLite loses data on a network file system"
ALL_ADDRESSES = ("0.0.0.0", "::", "[::]")  # noqa: S104 - compared, not bound


def found(settings: settings_module.Settings) -> Iterator[tuple[str, str]]:
    """The faults, as pairs of variable and fault."""
    if not parsers.is_loopback(settings.host) and not settings.api_tokens:
        yield "API_TOKENS", "is required, because HOST is not a loopback address: anyone who reaches the port could record"
    if settings.data_dir == Path() and not settings.database_url.get_secret_value():
        yield "DATA_DIR", "is required, because neither HOME nor XDG_DATA_HOME is set"
    url = settings.database_url.get_secret_value()
    distributed = bool(settings.amqp_url.get_secret_value())
    if distributed and not url.startswith(addresses.POSTGRESQL):
        yield "DATABASE_URL", "must name a PostgreSQL database, because AMQP_URL is set: postgresql://user:password@host/name"
    elif url.startswith(addresses.POSTGRESQL) and not distributed:
        yield "AMQP_URL", "is required with a PostgreSQL DATABASE_URL; without a broker the database is a file, sqlite:///path"
    elif distributed:
        if not settings.secret_keys:
            yield "SECRET_KEYS", "is required with AMQP_URL, the same on every node: openssl rand -base64 32 generates a key"
        if settings.spool_shared and not settings.cfs_path:
            yield "SPOOL_SHARED", "requires CFS_PATH, the shared folder"
        if "worker" in settings.roles and not settings.spool_shared and not settings.cluster_token.get_secret_value():
            yield "CLUSTER_TOKEN", "is required if workers share no spool: they fetch segments from each other"
        if "worker" in settings.roles and not settings.spool_shared and not settings.node_url and settings.host in ALL_ADDRESSES:
            yield "NODE_URL", "is required if workers share no spool and HOST is no address that other nodes can reach"
    elif set(settings.roles) != set(parsers.ROLES):
        yield "ROLES", "must be all three without AMQP_URL: everything runs in this process"
    elif url and settings.database_file.name in ("", ":memory:"):
        yield "DATABASE_URL", "must name a file after sqlite:///"
    elif settings.cfs_path and settings.database_file.resolve().is_relative_to(settings.cfs_path.resolve()):
        name = "DATABASE_URL" if url else "DATA_DIR"
        yield name, ON_CFS_PATH
    if settings.spool_policy == "bounded" and (distributed or settings.capture != "native"):
        yield "SPOOL_POLICY", "must be keep or auto with AMQP_URL or CAPTURE=ffmpeg"
    if set(settings.trtc_callback_forward) - set(settings.trtc_callback_keys):
        yield "TRTC_CALLBACK_FORWARD", "must name only applications that have a key in TRTC_CALLBACK_KEYS"
    if not _is_signing_secret(settings.callback_secret.get_secret_value()):
        yield "CALLBACK_SECRET", "must be base64 after whsec_"


def _is_signing_secret(secret: str) -> bool:
    if not secret.startswith("whsec_"):
        return True
    try:
        return bool(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    except binascii.Error:
        return False
