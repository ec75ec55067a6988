"""Threads for the files of the spool, which may be on a network file system that hangs.

Rule: no file operation on the event loop. `LIVE` serves short operations of captures and of the free space; `BULK` reads and
writes whole files, so that a long transcode delays no capture.
"""

from __future__ import annotations

from machine import daemon_threads

LIVE = daemon_threads.DaemonThreads("spool-live", 16)
BULK = daemon_threads.DaemonThreads("spool-bulk", 16)
# How long work that is being cancelled or stopped waits for a file system.
ANSWER_S = 2.0
