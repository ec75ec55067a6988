"""Logging of this process: config.logs with the names of all secrets."""

from __future__ import annotations

from typing import TextIO

import config.logs
from config import log_sink, redaction, settings
from events import secret_names


def configure(*, level: str = "info", form: str = "auto", stream: TextIO | None = None) -> log_sink.LogSink:
    """Set up logging. `level`: debug, info, warning or error; `form`: auto, json or console; `stream`: stderr by default."""
    return config.logs.configure(level=level, form=form, stream=stream, redact=redactor())


def redactor() -> redaction.LogRedactor:
    """Masks the secrets of messages, other protocols and settings."""
    return redaction.LogRedactor(secret_names.pattern(*settings.secret_names()))
