"""Times on a page: UTC in the text, which the script turns into the browser's own zone and "3 min ago"."""

from __future__ import annotations

from datetime import UTC, datetime

import markupsafe


def element(at_ms: int | None, *, now_ms: int, kind: str = "relative") -> markupsafe.Markup:
    """A time (Unix ms) as an element; a dash for None or 0. `kind` is relative, moment or clock, as the script shows it."""
    if not at_ms:
        return markupsafe.Markup("–")
    time = datetime.fromtimestamp(at_ms / 1000, UTC)
    iso = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    shown = f"{time:%Y-%m-%d %H:%M:%S} UTC" if abs(now_ms - at_ms) > 86_400_000 or kind == "moment" else f"{time:%H:%M:%S} UTC"
    return markupsafe.Markup('<time datetime="{}" data-time="{}">{}</time>').format(iso, kind, shown)


def of_iso(text: str, kind: str = "relative", *, now_ms: int) -> markupsafe.Markup:
    """As `element`, for a time of the API; a dash for ""."""
    at_ms = round(datetime.fromisoformat(text).timestamp() * 1000) if text else None
    return element(at_ms, now_ms=now_ms, kind=kind)


def duration(span_ms: int) -> str:
    """A time span as `1:02:03` or `2:03`, the same in every language."""
    seconds = max(0, span_ms) // 1000
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def hour(at_ms: int) -> str:
    """The beginning of an hour (Unix ms), in UTC."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"
