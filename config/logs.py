"""Logging: structlog and the standard library's loggers write one stream of lines.

Rules: JSON lines unless a terminal reads them; times in UTC; no local variables in tracebacks; every line is redacted. Libraries
that log keys or addresses are silenced.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from config import redaction

# The COS SDK logs keys at DEBUG and addresses at INFO, and raises its errors as well; urllib3 logs addresses.
SILENCED = ("qcloud_cos", "urllib3", "uvicorn.access")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(*, redact: redaction.LogRedactor, level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Set up logging of this process; it may be called again. `level` is debug, info, warning or error; `form` is auto, json or
    console; `stream` is stderr by default."""
    out = stream or sys.stderr
    as_json = form == "json" or (form == "auto" and not out.isatty())
    shared = [*_stamped(), *(_json(redact) if as_json else _console(redact, colors=out.isatty()))]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *shared],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),
        # Not cached, so that tests can capture logs after a logger's first use.
        cache_logger_on_first_use=False,
    )
    _route_standard(out, shared)


def _stamped() -> list[Any]:
    return [structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"), structlog.processors.StackInfoRenderer()]


def _json(redact: redaction.LogRedactor) -> list[Any]:
    traceback = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
    return [traceback, redact, structlog.processors.JSONRenderer(ensure_ascii=False, default=repr)]


def _console(redact: redaction.LogRedactor, *, colors: bool) -> list[Any]:
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, timestamp_key="time")
    return [structlog.processors.format_exc_info, redact, renderer]


def _route_standard(out: TextIO, shared: list[Any]) -> None:
    """Send records of the standard library's loggers, from WARNING on, through the same processors."""
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
