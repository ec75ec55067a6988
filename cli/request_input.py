"""What the service is asked, from options, files and the environment: bodies of start and replay, times. Imports nothing of ours
but this room. Pure but for reading the file.

Rule: what is typed as an option wins over what stands in the body; secrets of the environment only fill what neither gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from config import parsers

Json = dict[str, Any]

# Secrets are best given this way: options are seen in `ps` and stay in the shell's history.
USER_SIG = "RECORDER_USER_SIG"
SECRET_ID = "COS_SECRET_ID"  # noqa: S105 - the variable's name
SECRET_KEY = "COS_SECRET_KEY"  # noqa: S105 - the variable's name
TOKEN = "COS_TOKEN"  # noqa: S105 - the variable's name


class UsageError(ValueError):
    """The command was not given what it needs."""


def body(text: str, file: Path | None) -> Json:
    """The body as given by --body or --file (`-` is standard input); {} without either. Raises UsageError."""
    if text and file:
        raise UsageError("Give --body or --file, not both.")
    if file:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {type(error).__name__}.") from error
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise UsageError("The body is not JSON.") from error
    if not isinstance(parsed, dict):
        raise UsageError("The body must be a JSON object.")
    return parsed


def start(given: Json, fields: Mapping[str, Any], cos: Mapping[str, str], environ: Mapping[str, str]) -> Json:
    """`given` with the options laid over it. Raises UsageError."""
    whole = {**given, **_said(fields)}
    old = given.get("CosConfig", {})
    config = {**(old if isinstance(old, dict) else {}), **_said(cos)}
    if "UserSig" not in whole and environ.get(USER_SIG):
        whole["UserSig"] = environ[USER_SIG]
    whole["CosConfig"] = {**_credentials(environ, config), **config}
    return whole


def replay(fields: Mapping[str, Any], cos: Mapping[str, str], environ: Mapping[str, str]) -> Json:
    """The body of a replay; fresh secrets only if there are any. Raises UsageError."""
    whole = _said(fields)
    if "UserSig" not in whole and environ.get(USER_SIG):
        whole["UserSig"] = environ[USER_SIG]
    config = _said(cos)
    config = {**_credentials(environ, config), **config}
    return {**whole, "CosConfig": config} if config else whole


def since(text: str, now_s: float) -> str:
    """`2h` or `7d` ago, or the time itself, as ISO 8601 in UTC; "" for "". A time without an offset is this machine's. Raises
    UsageError."""
    if not text:
        return ""
    try:
        time = datetime.fromtimestamp(now_s - parsers.seconds(text), UTC)
    except (ValueError, OverflowError):
        try:
            time = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise UsageError("--since takes a time span such as 2h or 7d, or a time such as 2026-11-02T08:00.") from error
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _credentials(environ: Mapping[str, str], config: Mapping[str, Any]) -> Json:
    """The environment's COS credentials, as a whole or not at all: two halves of different keys are no key."""
    if any(name in config for name in ("SecretId", "SecretKey", "Token")):
        return {}
    found = {"SecretId": environ.get(SECRET_ID), "SecretKey": environ.get(SECRET_KEY), "Token": environ.get(TOKEN)}
    found = _said(found)
    if found and not {"SecretId", "SecretKey"} <= found.keys():
        raise UsageError(f"Set {SECRET_ID} and {SECRET_KEY} together, or neither.")
    return found


def _said(fields: Mapping[str, Any]) -> Json:
    empty: Sequence[Any] = (None, "", [], ())
    return {name: value for name, value in fields.items() if value not in empty and value is not False}
