"""Logging: one stream, JSON without a terminal, and secrets masked everywhere."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

import config.logs
from assembly import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The stream of the log lines; afterwards logging is restored."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    silenced = {name: logging.getLogger(name).level for name in config.logs.SILENCED}
    configured = structlog.get_config()
    yield io.StringIO()
    structlog.configure(**configured)
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name, old in silenced.items():
        logging.getLogger(name).setLevel(old)


def test_json_lines_where_nobody_watches(stream: io.StringIO) -> None:
    """structlog and the standard library give lines of one form, with time, level, and the ids bound to the context."""
    logs.configure(stream=stream)
    with structlog.contextvars.bound_contextvars(task_id="T"):
        structlog.get_logger().info("capture.started", speaker="alice")
        logging.getLogger("third.party").warning("careful with %s", "this")
    ours, theirs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (ours["event"], ours["speaker"], ours["level"], ours["task_id"]) == ("capture.started", "alice", "info", "T")
    assert (theirs["event"], theirs["logger"], theirs["task_id"]) == ("careful with this", "third.party", "T")
    assert ours["time"].endswith("Z")


def test_the_level_holds(stream: io.StringIO) -> None:
    """Lines below the level are not written; third parties log from WARNING on."""
    logs.configure(level="warning", stream=stream)
    structlog.get_logger().info("capture.started")
    logging.getLogger("third.party").info("chatter")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_is_written(stream: io.StringIO, form: str) -> None:
    """Fields, addresses, JSON, headers, exceptions and local variables are masked or omitted, in both forms."""
    logs.configure(form=form, stream=stream)
    log = structlog.get_logger()
    log.info("a.b", user_sig="PLANTED", data={"CosConfig": {"SecretKey": "PLANTED"}}, list=[{"Token": "PLANTED"}])
    log.info("a.b", address="rtmp://host/pull/5?userid=u&usersig=PLANTED*-_&remoteuserid=a", raw=b'{"UserSig": "PLANTED"}')
    log.info("a.b", header="Authorization: Bearer PLANTED", signed="q-ak=PLANTED&q-signature=PLANTED")
    try:
        local_variable = "PLANTED"
        raise ValueError("secret_key=" + local_variable)
    except ValueError:
        log.exception("a.failed")
        logging.getLogger("third.party").exception("bad")
    text = stream.getvalue()
    assert text.count("a.b") == 3
    assert "PLANTED" not in text.replace('"secret_key=" +', "")
    assert "remoteuserid=a" in text


def test_the_talkative_are_silenced(stream: io.StringIO) -> None:
    """Loggers that write keys and addresses are silent at every level."""
    logs.configure(level="debug", stream=stream)
    for name in ("qcloud_cos", "qcloud_cos.cos_client", "urllib3.connectionpool", "uvicorn.access"):
        logging.getLogger(name).error("PLANTED")
    assert stream.getvalue() == ""


def test_prose_is_not_masked() -> None:
    """A sentence that names a field keeps its words."""
    for words in ("UserSig: is required", "the token is wrong", "TRTC_KEYS has no key"):
        assert logs.redactor().text(words) == words
