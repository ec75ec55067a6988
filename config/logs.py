"""Logging: structlog and the standard library's loggers write one stream of lines.

Rules: JSON lines unless a terminal reads them; times in UTC; no local variables in tracebacks; every line is redacted. Libraries
that log keys or addresses are silenced. A line that cannot be made or written affects no work (config/log_sink.py).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, TextIO

import structlog

from config import log_sink, redaction

# The COS SDK logs keys at DEBUG and addresses at INFO, and raises its errors as well; urllib3 logs addresses. aiormq
# raises what it logs about a connection that fails.
SILENCED = ("qcloud_cos", "urllib3", "uvicorn.access", "aiormq.connection")
_NAME = re.compile(r"[a-z_.]{1,64}")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(
    *, redact: redaction.LogRedactor, level: str = "info", form: str = "auto", stream: TextIO | None = None
) -> log_sink.LogSink:
    """Set up logging of this process; it may be called again. `level` is debug, info, warning or error; `form` is auto, json or
    console; `stream` is stderr by default. Returns the sink of the lines, which knows how many were lost."""
    out = log_sink.LogSink(stream or sys.stderr)
    as_json = form == "json" or (form == "auto" and not out.isatty())
    shared = [_Rendering([*_stamped(), *(_json(redact) if as_json else _console(redact, colors=out.isatty()))])]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *shared],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),  # type: ignore[arg-type]  # of a file it uses write and flush
        # Not cached, so that tests can capture logs after a logger's first use.
        cache_logger_on_first_use=False,
    )
    _route_standard(out, shared)
    return out


class _Rendering:
    """Runs the last processors, which make the line. A value that they cannot render costs its line, and not the work."""

    def __init__(self, processors: Sequence[Any]) -> None:
        self._processors = processors

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        name, rendered = str(event.get("event")), event
        try:
            for processor in self._processors:
                rendered = processor(logger, method, rendered)
        except Exception as error:  # noqa: BLE001 - not swallowed: the line names it
            # A text in place of a name may contain a secret, and it was not redacted.
            of = name if _NAME.fullmatch(name) else ""
            return f'{{"event": "log.not_rendered", "of": "{of}", "reason": "{type(error).__name__}"}}'
        return rendered


def _stamped() -> list[Any]:
    return [structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"), structlog.processors.StackInfoRenderer()]


def _json(redact: redaction.LogRedactor) -> list[Any]:
    traceback = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
    return [traceback, redact, structlog.processors.JSONRenderer(ensure_ascii=False, default=repr)]


def _console(redact: redaction.LogRedactor, *, colors: bool) -> list[Any]:
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, timestamp_key="time")
    return [structlog.processors.format_exc_info, redact, renderer]


def _route_standard(out: log_sink.LogSink, shared: list[Any]) -> None:
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
