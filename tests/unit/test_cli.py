"""Commands without a service: request bodies, exit codes, help, completion, output on a terminal and in a pipe."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from typer import main, testing

from cli import app, client, exits, live_screen, output, polling, request_input
from tests import ast_helpers

PACKAGES = ("machine", "handlers", "worker", "events", "store", "bus", "media", "tencent", "webhook", "web", "config", "cli",
            "simulator", "assembly", "service")  # fmt: skip
ENVIRON = {"RECORDER_USER_SIG": "sig", "COS_SECRET_ID": "id", "COS_SECRET_KEY": "key"}


@pytest.fixture
def closed_port() -> Iterator[str]:
    """The address of a port without a listener, reserved until the test ends."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def run(*words: str, **environ: str) -> Any:
    """The command's result, without this process's own RECORDER_ variables."""
    unset = dict.fromkeys(("RECORDER_URL", "RECORDER_TOKEN", "RECORDER_USER_SIG", "COS_SECRET_ID", "COS_SECRET_KEY"))
    return testing.CliRunner().invoke(app.app, list(words), env={**unset, "COS_TOKEN": None, **environ})


def commands(of: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its words, those of groups included."""
    group = of or main.get_command(app.app)
    for name, command in group.commands.items():
        words = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield words, command


def commands_of(group: str = "") -> list[str]:
    """The names in the program or one of its groups, in order."""
    made: Any = main.get_command(app.app)
    return list((made.commands[group] if group else made).commands)


class TestImports:
    @pytest.mark.parametrize("path", sorted(Path(app.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
    def test_the_composition_root_is_imported_inside_functions(self, path: Path) -> None:
        """A module imports config, other modules of the command line and the errors; the rest only when a command runs."""
        tree = ast_helpers.parse(path.read_text(encoding="utf-8"))
        at_import = set(imported(node for node in tree.body if not is_for_types(node)))
        inside = set(imported(node for node in ast.walk(tree) if node not in tree.body))
        own = {name for name in at_import | inside if name.split(".")[0] in PACKAGES}
        allowed = {name for name in own if name.split(".")[0] in ("cli", "config") or name == "machine.errors"}
        assert {name for name in own & at_import if name not in allowed} == set()
        assert {name.split(".")[0] for name in own - allowed} <= {"assembly", "simulator"}


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The modules that these statements import, by their whole names."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_types(node: ast.stmt) -> bool:
    """Whether the statement is a block under TYPE_CHECKING."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


class TestRequests:
    def test_secrets_come_from_the_environment(self) -> None:
        """UserSig and COS credentials come from variables, not from options."""
        body = request_input.start({}, {"SdkAppId": 1, "Mode": None}, {"Region": "r", "Token": ""}, ENVIRON)
        assert body == {"SdkAppId": 1, "UserSig": "sig", "CosConfig": {"Region": "r", "SecretId": "id", "SecretKey": "key"}}

    def test_options_win_over_the_body_and_the_body_over_the_environment(self) -> None:
        """Credentials of two sources are never mixed."""
        given = {"SdkAppId": 1, "UserId": "a", "UserSig": "theirs", "CosConfig": {"Path": "p", "SecretId": "x", "SecretKey": "y"}}
        body = request_input.start(given, {"UserId": "b"}, {"Path": "q"}, ENVIRON | {"COS_TOKEN": "t"})
        assert (body["UserId"], body["UserSig"]) == ("b", "theirs")
        assert body["CosConfig"] == {"Path": "q", "SecretId": "x", "SecretKey": "y"}

    def test_half_a_credential_is_refused(self) -> None:
        """A secret id without its key is an error before any request."""
        with pytest.raises(request_input.UsageError, match="COS_SECRET_KEY together"):
            request_input.start({}, {}, {}, {"COS_SECRET_ID": "id"})

    def test_a_replay_sends_only_given_fields(self) -> None:
        """Without fresh credentials it has no CosConfig."""
        assert request_input.replay({"Speaker": "a", "N": None, "DryRun": False}, {"SecretId": ""}, {}) == {"Speaker": "a"}
        assert request_input.replay({"DryRun": True}, {}, ENVIRON)["CosConfig"] == {"SecretId": "id", "SecretKey": "key"}

    def test_the_body_is_one_json_object(self, tmp_path: Path) -> None:
        """It comes from an option or a file, not both; an unreadable one is an error."""
        file = tmp_path / "start.json"
        file.write_text('{"Mode": "01"}')
        assert request_input.body("", file) == request_input.body('{"Mode": "01"}', None) == {"Mode": "01"}
        assert request_input.body("", None) == {}
        for text, path in (("{}", file), ("[]", None), ("{", None), ("", tmp_path / "none")):
            with pytest.raises(request_input.UsageError):
                request_input.body(text, path)


class TestExitCodes:
    @pytest.mark.parametrize(
        "words",
        [["sessions"], ["sessions", "--stuck"], ["show", "X"], ["show", "X", "-w"], ["results"], ["results", "-f"], ["stop", "X"],
         ["replay", "X"], ["start"]],
    )  # fmt: skip
    def test_no_service_listens(self, closed_port: str, words: list[str]) -> None:
        """3, and a sentence with the address and the remedy."""
        result = run(*words, RECORDER_URL=closed_port)
        assert result.exit_code == 3
        assert closed_port in result.stderr
        assert "recorder serve" in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize(
        "words",
        [
            ["sessions", "--state", "Lost"],
            ["sessions", "--since", "yesterday"],
            ["sessions", "--limit", "0"],
            ["show", "X", "--watch", "--every", "0"],
            ["show"],
            ["replay", "X", "--from", "end"],
            ["start", "--x"],
        ],
    )
    def test_wrong_usage(self, words: list[str]) -> None:
        """2 for unknown options and invalid values."""
        assert run(*words).exit_code == 2

    @pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "http://x:port", "http://u:p@x"])
    def test_an_invalid_address(self, url: str) -> None:
        """2, and the allowed form of RECORDER_URL."""
        result = run("sessions", RECORDER_URL=url)
        assert (result.exit_code, "RECORDER_URL must be" in result.stderr) == (2, True)

    def test_a_token_that_no_header_can_carry(self, closed_port: str) -> None:
        """2, without a traceback and without the token."""
        result = run("sessions", RECORDER_URL=closed_port, RECORDER_TOKEN="a\nb")
        assert (result.exit_code, "RECORDER_TOKEN" in result.stderr, "a\nb" in result.stderr) == (2, True, False)


class TestHelp:
    def test_exit_codes_are_documented(self) -> None:
        """`recorder --help` explains every exit code."""
        text = " ".join(run("--help", COLUMNS="200").stdout.split())
        for code in (exits.OK, exits.REFUSED, exits.USAGE, exits.UNREACHABLE, exits.NOT_FOUND, exits.INTERRUPTED):
            assert f"{code} " in text.split("Exit codes:")[1]

    def test_every_command_has_a_line_of_help(self) -> None:
        """`--help` of the program and of each group lists every command with a complete sentence."""
        for words in ([], ["keys"], ["parked"], ["nodes"]):
            names = commands_of(*words)
            listed = run(*words, "--help", COLUMNS="80").stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()
            assert [line.split()[0] for line in listed] == names
            assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []

    def test_every_command_takes_json(self) -> None:
        """All but those that run until they are stopped, or that print one sentence."""
        found = {path: "--json" in {option for p in made.params for option in p.opts} for path, made in commands()}
        assert len(found) > 15
        without = {"serve", "simulator", "demo", "migrate"}
        assert {path for path, takes_json in found.items() if not takes_json} == without


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_is_printed(self, shell: str) -> None:
        """It is the script of `--install-completion` and `--show-completion`."""
        result = run(_RECORDER_COMPLETE=f"source_{shell}")
        assert result.exit_code == 0
        assert "_RECORDER_COMPLETE" in result.stdout

    def test_it_can_be_installed(self) -> None:
        """`recorder --help` lists both options."""
        text = run("--help", COLUMNS="200").stdout
        assert "--install-completion" in text
        assert "--show-completion" in text

    @pytest.mark.parametrize(
        ("line", "completed"),
        [
            ("recorder se", {"sessions"}),
            ("recorder replay X --from tr", {"transcoding"}),
            ("recorder sessions --st", {"--state", "--stuck"}),
        ],
    )
    def test_words_are_completed(self, line: str, completed: set[str]) -> None:
        """Completion knows commands, options and choices."""
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_RECORDER_COMPLETE": "complete_bash"}
        result = run(**words)
        assert completed <= set(result.stdout.split())
        assert all(word.startswith(line.split()[-1]) for word in result.stdout.split())


class TestSince:
    def test_spans_and_times(self) -> None:
        """A span ago, or a time; the service always gets UTC."""
        assert request_input.since("2h", 1_800_000_000) == "2027-01-15T06:00:00.000Z"
        assert request_input.since("7d", 1_800_000_000) == "2027-01-08T08:00:00.000Z"
        assert request_input.since("2027-01-15T08:00:00+08:00", 0) == "2027-01-15T00:00:00.000Z"
        assert request_input.since("", 0) == ""
        for text in ("yesterday", "1e999", "99999999d", "2027-13-01"):
            with pytest.raises(request_input.UsageError):
                request_input.since(text, 1_800_000_000)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestTerminal:
    TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"

    @pytest.fixture
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> _Terminal:
        """A terminal of 60 columns."""
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("TERM", "xterm")
        return _Terminal()

    def test_ids_stay_whole_in_a_narrow_table(self, terminal: _Terminal) -> None:
        """Other columns are folded; nothing is cut."""
        with contextlib.redirect_stdout(terminal):
            output.rows(("TaskId", "State", "User"), [[self.TASK_ID, "Open", "u" * 100]])
        lines = terminal.getvalue().splitlines()
        assert any(self.TASK_ID in line for line in lines)
        assert terminal.getvalue().count("u") == 100
        assert "…" not in terminal.getvalue()

    def test_variables_do_not_turn_a_pipe_into_a_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FORCE_COLOR draws no table in a pipe."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        output.rows(("TaskId",), [[self.TASK_ID]])
        output.line("x" * 300)
        assert capsys.readouterr().out == f"TaskId\n{self.TASK_ID}\n" + "x" * 300 + "\n"

    def test_a_page_of_stuck_sessions_in_a_pipe_is_not_taken_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there are more, standard error has the command that goes on, with the same filters; standard output has only
        rows."""
        finding = {"Rule": "failed-kept", "Of": "alice/1", "Why": "Refused.", "Next": "Replay it."}
        cause = {"Cause": "disk-low", "Subject": "w1", "Why": "It is full.", "Next": ""}
        page = {"Sessions": [{"TaskId": self.TASK_ID, "Stuck": [finding]}], "Next": self.TASK_ID, "Attention": [cause]}
        monkeypatch.setattr(client.ServiceClient, "sessions", lambda *_, **__: page)
        written = run("sessions", "--stuck", "--room", "a b", "--limit", "1")
        older = f"Older ones: recorder sessions --stuck --room 'a b' --before {self.TASK_ID}"
        assert written.stderr.splitlines() == ["disk-low w1: It is full.", older]
        assert written.stdout.splitlines()[1:] == [f"{self.TASK_ID}\talice/1\tRefused.\tReplay it."]

    def test_stuck_sessions_are_described_in_sentences(self, terminal: _Terminal) -> None:
        """Each session has its reason and its command; the command is on one line, to be copied."""
        typed = f"`recorder replay {self.TASK_ID} --speaker=alice --n=1`"
        finding = {"Rule": "failed-kept", "Of": "alice/1", "Why": "FailedCosWrite: refused.", "Next": f"Type {typed}."}
        session = {"TaskId": self.TASK_ID, "State": "Finished", "RoomId": "7", "StrRoomId": "", "Stuck": [finding]}
        with contextlib.redirect_stdout(terminal):
            output.stuck({"Sessions": [session], "Next": "", "Attention": []})
        assert any(typed in line for line in terminal.getvalue().splitlines())

    def test_doctor_prints_the_remedy(self, terminal: _Terminal) -> None:
        """The remedies of failed checks are below the table."""
        found = {"Check": "cos", "Status": "warn", "Found": "no answer", "Meaning": "Uploads wait.", "Type": "nc -vz cos 443"}
        with contextlib.redirect_stdout(terminal):
            output.findings([found, found | {"Check": "pull", "Status": "ok", "Meaning": "", "Type": ""}], verdict="warn")
        assert "  nc -vz cos 443" in terminal.getvalue()
        assert "It works, with limits." in terminal.getvalue()

    def test_progress_is_redrawn_in_place(self, terminal: _Terminal) -> None:
        """Each update redraws one picture."""
        recording = {
            "Speaker": "alice",
            "N": 1,
            "State": "Recording",
            "MediaSeconds": 1.5,
            "Segments": [{}],
            "Gaps": [],
            "Detail": "",
        }
        body = {"TaskId": self.TASK_ID, "State": "Open", "EndReason": "", "Recordings": [recording]}
        with contextlib.redirect_stdout(terminal), live_screen.screen(as_json=False) as show:
            show(body)
            show(body | {"Recordings": [recording | {"MediaSeconds": 2.5}]})
        assert "1.5" in terminal.getvalue()
        assert "2.5" in terminal.getvalue()


class _Flaky:
    """A service that is unreachable twice."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def results(self, *, after: str, types: object, wait_s: float = 0) -> dict[str, Any]:
        """Like client.ServiceClient.results."""
        self.asked.append(after)
        if len(self.asked) in (2, 3):
            raise client.ClientError("It is away.", exits.UNREACHABLE)
        if len(self.asked) > 5:
            raise client.ClientError("Refused.", exits.REFUSED)
        return {"Results": [{"Cursor": f"s{len(self.asked)}"}], "Next": f"s{len(self.asked)}"}


class TestFollowing:
    def test_an_unreachable_service_is_asked_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        """After a first answer, from the same cursor, with one message; a refusal ends it."""
        service, pauses = _Flaky(), list[float]()
        found = polling.results(cast(client.ServiceClient, service), after="", follow=True, pause=pauses.append)
        assert [next(found)["Cursor"] for _ in range(3)] == ["s1", "s4", "s5"]
        with pytest.raises(client.ClientError, match=r"Refused\."):
            next(found)
        assert service.asked == ["", "s1", "s1", "s1", "s4", "s5"]
        assert (len(pauses), capsys.readouterr().err.count("It is away.")) == (2, 1)


class TestPrinting:
    def test_control_characters_are_escaped(self) -> None:
        """Text from outside cannot move the cursor, color the screen or end a line."""
        assert output.safe("a\x1b[31mb\u009bc\nd\u202ee") == "a\\x1b[31mb\\x9bc\\nd\\u202ee"
        assert output.safe("录制失败 [bold] é") == "录制失败 [bold] é"

    def test_rows_are_plain_when_piped(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Tabs, no frame and no color; long cells stay whole."""
        output.rows(("A", "B"), [["x" * 300, "[red]y[/red]"]])
        assert capsys.readouterr().out == "A\tB\n" + "x" * 300 + "\t[red]y[/red]\n"

    def test_json_is_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        """It is readable, Chinese included."""
        output.as_json({"Message": "录制成功"})
        text = capsys.readouterr().out
        assert json.loads(text) == {"Message": "录制成功"}
        assert "录制成功" in text


def test_the_client_does_not_show_its_token() -> None:
    """Its repr leaves the token out."""
    assert "PLANTED" not in repr(client.ServiceClient(token="PLANTED"))
