"""One list of secret names: every redaction masks every name of it."""

from __future__ import annotations

import json

import pytest

from assembly import logs
from bus import redaction as messages
from config import redaction, settings
from events import codec, secret_names
from media import ffmpeg_log

SPELLINGS = ["UserSig", "user_sig", "USER-SIG", "SecretId", "secret-key", "Token", "q-ak", "q-signature", "x-cos-security-token"]


def _marked(schema: object) -> set[str]:
    if isinstance(schema, list):
        return {name for inner in schema for name in _marked(inner)}
    if not isinstance(schema, dict):
        return set()
    own = {name for name, about in schema.get("properties", {}).items() if about.get("x-secret")}
    return own | {name for inner in schema.values() for name in _marked(inner)}


def test_fields_marked_as_secret_are_in_the_list() -> None:
    """The list takes its fields from the schemas, and a mark in one message hides the field in all."""
    assert secret_names.fields() == _marked(dict(codec.schemas())) >= {"UserSig", "SecretKey", "SecretId", "Token"}
    shown = json.loads(messages.body(json.dumps(dict.fromkeys(secret_names.fields(), "PLANTED")).encode()))
    assert set(shown.values()) == {messages.MASK}


@pytest.mark.parametrize("name", [*secret_names.FOREIGN, *SPELLINGS])
def test_every_redaction_masks_every_name(name: str) -> None:
    """Messages, headers, log lines and ffmpeg's output hide the value of each name, also percent-encoded."""
    for text in (f"a=1&{name}=PLANTED&b=2", f"url?{name}%3DPLANTED"):
        assert "PLANTED" not in messages.masked(text)
        assert "PLANTED" not in ffmpeg_log.Redactor()(text)
        assert "PLANTED" not in logs.redactor().text(text)
    assert logs.redactor().masked({name: "PLANTED"}) == {name: redaction.MASK}


@pytest.mark.parametrize("name", settings.secret_names())
def test_log_lines_hide_secret_settings(name: str) -> None:
    """The names come from the settings' types."""
    assert "PLANTED" not in logs.redactor().text(f"{name}=PLANTED")
