"""The policy of a node's spool: whether it keeps everything until a recording is Done, or only so much for each recording.

Rule: a bounded spool needs the native capture, whose arrival index tells when media was live; a node that no other one replaces,
because only its disk knows the rest of a recording; and a file system that gives back bytes inside a file.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from config import settings as settings_module
from machine import errors
from media import file_threads, free_space, holes

log = structlog.get_logger()

NOT_BOUNDED = "Its file system cannot give back bytes inside a file. The spool keeps everything until a recording is Done."
# A spool that holds MIN_FREE beside its recordings is larger.
SMALL_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`bound_bytes` for each recording; 0: the spool keeps everything. `wanted`: the settings ask for a bounded spool, which the
    file system does not allow if `bound_bytes` is 0."""

    bound_bytes: int
    wanted: bool


def of(settings: settings_module.Settings, root: Path, total_bytes: int) -> Policy:
    """The policy of the spool at `root`, on a file system of this size (blocking). Raises OSError if nothing can be written
    there."""
    possible = settings.capture == "native" and not settings.amqp_url.get_secret_value()
    small = settings.spool_policy == "auto" and total_bytes < SMALL_BYTES
    wanted = possible and (settings.spool_policy == "bounded" or small)
    bounded = wanted and holes.supported(root)
    return Policy(bound_bytes=settings.spool_per_recording_bytes if bounded else 0, wanted=wanted)


def over_bound(root: Path, bound_bytes: int) -> int:
    """How many recordings take more of the spool than this (blocking). Raises OSError."""
    taken: dict[Path, dict[int, int]] = {}
    for path in root.glob("*/*/*"):
        with contextlib.suppress(FileNotFoundError):
            # A file with two names counts once.
            taken.setdefault(path.parent, {})[path.stat().st_ino] = holes.used_bytes(path)
    return sum(sum(files.values()) > bound_bytes for files in taken.values())


async def at_start(settings: settings_module.Settings, free: free_space.FreeSpace) -> int:
    """The bytes of the spool for each recording of a node that starts; 0: it keeps everything."""
    try:
        found = await file_threads.LIVE.run(of, settings, free.root, free.total_bytes())
    except (OSError, errors.Unavailable) as error:
        log.warning("spool.policy_unknown", detail=str(error))
        return 0
    if found.wanted and not found.bound_bytes:
        log.warning("spool.not_bounded", detail=NOT_BOUNDED)
    elif found.bound_bytes:
        log.info("spool.bounded", bytes_per_recording=found.bound_bytes)
    return found.bound_bytes
