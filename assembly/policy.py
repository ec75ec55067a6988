"""Policy of the decisions: the durations of the settings, in ms."""

from __future__ import annotations

from config import settings as settings_module
from machine import model


def of(settings: settings_module.Settings) -> model.Policy:
    """The policy that these settings ask for."""
    names = (
        "linger", "idle_timeout", "join_timeout", "max_duration", "result_wait", "upload_retry_for", "keep_failed",
        "keep_messages", "keep_sessions", "lease", "node_return", "progress_every",
    )  # fmt: skip
    times = {f"{name}_ms": round(getattr(settings, f"{name}_s") * 1000) for name in names}
    return model.Policy(**times, progress_events=settings.progress_events, manifest=settings.manifest)
