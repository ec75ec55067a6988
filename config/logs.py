"""Logging: structlog and the standard library's loggers as one stream of lines. Imports nothing of ours but this room.

Rules: JSON lines unless a person is watching; times in UTC; no local variables in tracebacks; every line goes through the mask;
third parties that write keys or addresses to their logs are silenced.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from config import redaction

# The COS SDK logs keys at DEBUG, addresses at INFO, and its errors come to us as exceptions; urllib3 logs addresses.
SILENCED = ("qcloud_cos", "urllib3", "uvicorn.access")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(*, level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for this process; may be called again. `level` is debug, info, warning or error; `form` auto, json or
    console; `stream` stderr unless given."""
    out = stream or sys.stderr
    as_json = form == "json" or (form == "auto" and not out.isatty())
    shared = [*_stamped(), *(_json() if as_json else _console(colors=out.isatty()))]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *shared],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),
        # Not cached, so that tests can listen in after a logger's first use.
        cache_logger_on_first_use=False,
    )
    _route_standard(out, shared)


def _stamped() -> list[Any]:
    return [structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"), structlog.processors.StackInfoRenderer()]


def _json() -> list[Any]:
    traceback = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
    return [traceback, redaction.mask, structlog.processors.JSONRenderer(ensure_ascii=False, default=repr)]


def _console(*, colors: bool) -> list[Any]:
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, timestamp_key="time")
    return [structlog.processors.format_exc_info, redaction.mask, renderer]


def _route_standard(out: TextIO, shared: list[Any]) -> None:
    """What the standard library's loggers say, from WARNING on, takes the same road."""
    handler = logging.StreamHandler(out)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shared],
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    for name in SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
