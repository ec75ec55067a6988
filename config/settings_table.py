"""The table of all settings in the documents."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from config import settings


def reference() -> str:
    """The table of all settings, in Markdown."""
    lines = ["| name | default | meaning |", "|---|---|---|"]
    for name, field in settings.variables().items():
        info = settings.Settings.model_fields[field]
        extra: Any = info.json_schema_extra
        shown = extra["shown"] or _default(info.default)
        lines.append(f"| `{name}` | {shown} | {info.description} Allowed: {extra['allowed']}. |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    match value:
        case SecretStr():
            text = value.get_secret_value()
        case float():
            text = f"{value:g}s"
        case tuple():
            text = ", ".join(value)
        case dict() | None:
            text = ""
        case bool():
            text = str(value).lower()
        case _:
            text = str(value)
    return f"`{text}`" if text else ""
