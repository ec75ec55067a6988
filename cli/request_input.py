"""Request bodies of start and replay, from options, files and the environment; and times.

Rule: an option overrides the body. The environment only supplies secrets that neither gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli import exits
from config import parsers

Json = dict[str, Any]

# The safer way to pass secrets: options are visible in `ps` and stay in the shell's history.
USER_SIG = "RECORDER_USER_SIG"
SECRET_ID = "COS_SECRET_ID"  # noqa: S105 - the variable's name
SECRET_KEY = "COS_SECRET_KEY"  # noqa: S105 - the variable's name
TOKEN = "COS_TOKEN"  # noqa: S105 - the variable's name

# The options in place of the fields that they give.
OPTIONS = {
    "SdkAppId": "--sdk-app-id",
    "RoomId": "--room",
    "StrRoomId": "--str-room",
    "UserId": "--user",
    "UserSig": USER_SIG,
    "CosConfig.Region": "--region",
    "CosConfig.Bucket": "--bucket",
    "CosConfig.Path": "--path",
    "CosConfig.SecretId": SECRET_ID,
    "CosConfig.SecretKey": SECRET_KEY,
    "CosConfig.Token": TOKEN,
    "Mode": "--mode",
    "Callback": "--callback",
    "SubscribeUserIds": "--subscribe",
    "UnSubscribeUserIds": "--unsubscribe",
    "Idempotency-Key": "--key",
    "Speaker": "--speaker",
    "N": "--n",
    "From": "--from",
}


class UsageError(exits.CommandError):
    """An option, a file or a variable is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exits.USAGE)


def body(text: str, file: Path | None) -> Json:
    """Parse --body or --file (`-` is standard input); {} without either. Raises UsageError."""
    if text and file:
        raise UsageError("Give --body or --file, not both.")
    if file:
        try:
            text = _decoded(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
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


def start(base: Json, fields: Mapping[str, Any], cos: Mapping[str, str], environ: Mapping[str, str]) -> Json:
    """The body of a start: the options override `base`. Raises UsageError."""
    whole = {**base, **_given(fields)}
    old = base.get("CosConfig", {})
    config = {**(old if isinstance(old, dict) else {}), **_given(cos)}
    if "UserSig" not in whole and environ.get(USER_SIG):
        whole["UserSig"] = environ[USER_SIG]
    whole["CosConfig"] = {**_credentials(environ, config), **config}
    return whole


def replay(fields: Mapping[str, Any], cos: Mapping[str, str], environ: Mapping[str, str]) -> Json:
    """The body of a replay; it has secrets only if some are given. Raises UsageError."""
    whole = _given(fields)
    if "UserSig" not in whole and environ.get(USER_SIG):
        whole["UserSig"] = environ[USER_SIG]
    config = _given(cos)
    config = {**_credentials(environ, config), **config}
    return {**whole, "CosConfig": config} if config else whole


def since(text: str, now_s: float, option: str = "--since") -> str:
    """ISO 8601 in UTC of `2h` or `7d` ago, or of a time; "" for "". A time without an offset is local. Raises UsageError."""
    if not text:
        return ""
    try:
        time = datetime.fromtimestamp(now_s - parsers.seconds(text), UTC)
    except (ValueError, OverflowError):
        try:
            time = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{option} takes a time span such as 2h or 7d, or a time such as 2026-11-02T08:00.") from error
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _decoded(raw: bytes) -> str:
    """The text of a JSON file: UTF-8, UTF-16 or UTF-32 as JSON has it, with a byte-order mark or without, else the locale's
    character set. Raises UnicodeDecodeError."""
    try:
        return raw.decode(json.detect_encoding(raw)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return raw.decode(sys.stdin.encoding)


def _credentials(environ: Mapping[str, str], config: Mapping[str, Any]) -> Json:
    """The environment's COS credentials, unless `config` has any: halves of two keys are not a key. Raises UsageError."""
    if any(name in config for name in ("SecretId", "SecretKey", "Token")):
        return {}
    found = _given({"SecretId": environ.get(SECRET_ID), "SecretKey": environ.get(SECRET_KEY), "Token": environ.get(TOKEN)})
    if found and not {"SecretId", "SecretKey"} <= found.keys():
        raise UsageError(f"Set {SECRET_ID} and {SECRET_KEY} together, or neither.")
    return found


def _given(fields: Mapping[str, Any]) -> Json:
    empty: Sequence[Any] = (None, "", [], ())
    return {name: value for name, value in fields.items() if value not in empty and value is not False}
