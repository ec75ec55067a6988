"""The commands without a service: bodies from options, files and the environment; exit codes; what reaches a terminal."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer import testing

from ops import cli, client, printing, requests

ENVIRON = {"RECORDER_USER_SIG": "sig", "COS_SECRET_ID": "id", "COS_SECRET_KEY": "key"}


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, for as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def run(*words: str, **environ: str) -> Any:
    """The command's result, without this process's own RECORDER_ variables."""
    unset = dict.fromkeys(("RECORDER_URL", "RECORDER_TOKEN", "RECORDER_USER_SIG", "COS_SECRET_ID", "COS_SECRET_KEY"))
    return testing.CliRunner().invoke(cli.app, list(words), env={**unset, "COS_TOKEN": None, **environ})


class TestRequests:
    def test_secrets_come_from_the_environment(self) -> None:
        """UserSig and credentials need not be typed."""
        body = requests.start({}, {"SdkAppId": 1, "Mode": None}, {"Region": "r", "Token": ""}, ENVIRON)
        assert body == {"SdkAppId": 1, "UserSig": "sig", "CosConfig": {"Region": "r", "SecretId": "id", "SecretKey": "key"}}

    def test_options_win_over_the_body_and_the_body_over_the_environment(self) -> None:
        """The nearer word counts; credentials of two origins are never mixed."""
        given = {"SdkAppId": 1, "UserId": "a", "UserSig": "theirs", "CosConfig": {"Path": "p", "SecretId": "x", "SecretKey": "y"}}
        body = requests.start(given, {"UserId": "b"}, {"Path": "q"}, ENVIRON | {"COS_TOKEN": "t"})
        assert (body["UserId"], body["UserSig"]) == ("b", "theirs")
        assert body["CosConfig"] == {"Path": "q", "SecretId": "x", "SecretKey": "y"}

    def test_half_a_credential_is_a_mistake(self) -> None:
        """An id without its key is said at once, and not sent."""
        with pytest.raises(requests.UsageError, match="COS_SECRET_KEY together"):
            requests.start({}, {}, {}, {"COS_SECRET_ID": "id"})

    def test_a_replay_brings_only_what_there_is(self) -> None:
        """Without fresh credentials there is no CosConfig at all."""
        assert requests.replay({"Speaker": "a", "N": None, "DryRun": False}, {"SecretId": ""}, {}) == {"Speaker": "a"}
        assert requests.replay({"DryRun": True}, {}, ENVIRON)["CosConfig"] == {"SecretId": "id", "SecretKey": "key"}

    def test_the_body_is_one_json_object(self, tmp_path: Path) -> None:
        """From an option or a file, not both; what cannot be read is said."""
        file = tmp_path / "start.json"
        file.write_text('{"Mode": "01"}')
        assert requests.body("", file) == requests.body('{"Mode": "01"}', None) == {"Mode": "01"}
        assert requests.body("", None) == {}
        for text, path in (("{}", file), ("[]", None), ("{", None), ("", tmp_path / "none")):
            with pytest.raises(requests.UsageError):
                requests.body(text, path)


class TestExitCodes:
    @pytest.mark.parametrize("words", [["sessions"], ["show", "X"], ["stop", "X"], ["replay", "X"], ["start"]])
    def test_nobody_answers(self, nobody: str, words: list[str]) -> None:
        """3, and a sentence that says where was asked and what to do."""
        result = run(*words, RECORDER_URL=nobody)
        assert result.exit_code == 3
        assert nobody in result.stderr
        assert "recorder serve" in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize(
        "words", [["sessions", "--state", "Lost"], ["show"], ["replay", "X", "--from", "end"], ["start", "--x"]]
    )
    def test_wrong_usage(self, words: list[str]) -> None:
        """2 for what the command does not take."""
        assert run(*words).exit_code == 2

    @pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "http://x:port", "http://u:p@x"])
    def test_an_address_that_is_none(self, url: str) -> None:
        """2, and what RECORDER_URL may be."""
        result = run("sessions", RECORDER_URL=url)
        assert (result.exit_code, "RECORDER_URL must be" in result.stderr) == (2, True)

    def test_a_token_that_no_header_can_hold(self, nobody: str) -> None:
        """2, without a traceback and without the token."""
        result = run("sessions", RECORDER_URL=nobody, RECORDER_TOKEN="a\nb")
        assert (result.exit_code, "RECORDER_TOKEN" in result.stderr, "a\nb" in result.stderr) == (2, True, False)


class TestPrinting:
    def test_control_characters_are_written_out(self) -> None:
        """What others chose cannot move the cursor, colour the screen or end a line."""
        assert printing.safe("a\x1b[31mb\u009bc\nd\u202ee") == "a\\x1b[31mb\\x9bc\\nd\\u202ee"
        assert printing.safe("录制失败 [bold] é") == "录制失败 [bold] é"

    def test_rows_are_plain_when_piped(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Tabs, no frame, no colour, no cut, however long a cell is."""
        printing.rows(("A", "B"), [["x" * 300, "[red]y[/red]"]])
        assert capsys.readouterr().out == "A\tB\n" + "x" * 300 + "\t[red]y[/red]\n"

    def test_json_is_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Readable as it is, Chinese included."""
        printing.as_json({"Message": "录制成功"})
        text = capsys.readouterr().out
        assert json.loads(text) == {"Message": "录制成功"}
        assert "录制成功" in text


def test_the_client_does_not_show_its_token() -> None:
    """Not in its own text."""
    assert "PLANTED" not in repr(client.Client(token="PLANTED"))
