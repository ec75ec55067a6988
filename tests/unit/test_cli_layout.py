"""Text for people: tables and cards, wrapped sentences, times, beginnings of TaskIds, the command's own words in errors."""

from __future__ import annotations

import contextlib
import io
import re
import time
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from rich import cells
from typer import Exit, testing

from cli import app, client, exits, layout, output, request_input, sessions, task_ids, times

NOW_S = 1_800_000_000.0
TASK_ID = "01JBX5Q9V7T3M8K2C4D6F8H0ZW"
ROW = (TASK_ID, "Open", "x" * 30, "小明" * 12, "2 Recording")
HEADINGS = ("TaskId", "State", "Room", "User", "Recordings")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(
    width: int, monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, ...], headings: tuple[str, ...] = HEADINGS
) -> list[str]:
    """The lines of a table or of cards on a terminal of this width, without colors."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal = _Terminal()
    with contextlib.redirect_stdout(terminal):
        output.rows(headings, rows)
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()]


class TestTables:
    @pytest.mark.parametrize("width", [40, 60, 80, 100])
    def test_what_does_not_fit_is_a_card(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        """Each cell is whole, on a line of its own if need be, with its heading; no line is wider than the terminal."""
        lines = lines_of(width, monkeypatch, ROW, ROW)
        assert max(map(cells.cell_len, lines)) <= width
        assert [line.split()[0] for line in lines if line.startswith(TASK_ID)] == [TASK_ID] * 2
        text = re.sub(r"\s+", " ", " ".join(lines))
        assert f"Room: {ROW[2]}" in text or width == 40
        assert text.count("明") == 24
        assert "Recordings: 2 Recording" in text

    def test_what_fits_is_a_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each heading stands once, and each row is a line."""
        lines = lines_of(130, monkeypatch, ROW, ROW)
        assert len([line for line in lines if "Recordings" in line]) == 1
        assert len([line for line in lines if TASK_ID in line and "2 Recording" in line]) == 2

    def test_a_long_last_cell_is_folded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sentence in the last column leaves the table a table."""
        lines = lines_of(80, monkeypatch, ("ok", "disk", "word " * 30), headings=("Status", "Check", "Found"))
        assert "Status" in lines[0]
        assert max(map(len, lines)) <= 80
        assert " ".join(lines).count("word") == 30


class TestSentences:
    def test_a_command_stays_whole(self) -> None:
        """Lines break between words and below their first one; a command in backquotes is one word, however long."""
        command = f"`recorder replay {TASK_ID} --speaker=alice --n=1`"
        lines = layout.wrapped(f"    Remove the cause, then {command}. Then look again.", 40)
        assert lines == ["    Remove the cause, then", f"    {command}.", "    Then look again."]
        assert layout.wrapped("short", 40) == ["short"]
        assert "".join(layout.wrapped("a `b c " * 9, 20)).replace(" ", "") == "a`bc" * 9

    def test_a_word_without_end(self) -> None:
        """It is folded, as Chinese has no spaces; an address stays whole. Nothing is lost."""
        lines = layout.wrapped("  Grund: " + "录制失败" * 10, 31)
        assert max(map(cells.cell_len, lines)) <= 31
        assert all(line.startswith("  ") for line in lines)
        assert "".join(line.strip() for line in lines) == "Grund: " + "录制失败" * 10
        address = "https://" + "x" * 50
        assert layout.wrapped(f"  alice: {address} (5 s)", 30) == ["  alice:", f"  {address}", "  (5 s)"]

    def test_a_pipe_gets_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Only a terminal wraps."""
        output.line("word " * 60)
        output.failure("word " * 60)
        assert [text.count("\n") for text in capsys.readouterr()] == [1, 1]


class TestTimes:
    @pytest.mark.parametrize(
        ("ago_s", "words"),
        [(0.4, "now"), (-0.4, "now"), (59, "59 s ago"), (180, "3 min ago"), (7_300, "2 h ago"), (86_400, "1 day ago"),
         (400_000, "4 days ago"), (-180, "in 3 min")],
    )  # fmt: skip
    def test_the_distance(self, ago_s: float, words: str) -> None:
        """In the largest unit, before and after now."""
        assert times.distance(ago_s) == words

    def test_local_and_utc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Local with its offset, or UTC; a terminal adds the distance. No time is no text."""
        zone = datetime.fromtimestamp(NOW_S).astimezone().strftime("%z")
        monkeypatch.setattr(time, "time", lambda: NOW_S + 120)
        text = datetime.fromtimestamp(NOW_S, UTC).isoformat()
        assert times.shown(text).replace(":", "").endswith(zone)
        assert datetime.fromisoformat(times.shown(text)).timestamp() == NOW_S
        with contextlib.redirect_stdout(_Terminal()):
            assert times.shown(text).endswith(" (2 min ago)")
        times._choose(True)
        assert times.shown(text) == "2027-01-15 08:00:00+00:00"
        assert times.shown("2027-01-15T08:00:00.123Z", precise=True) == "2027-01-15 08:00:00.123+00:00"
        assert times.shown("") == ""
        times._choose(False)


class _Listed:
    """A service that lists these sessions as GET /sessions does."""

    def __init__(self, *found: str) -> None:
        self.found = sorted(found, reverse=True)

    def sessions(self, *, before: str, limit: str) -> dict[str, Any]:
        """Like client.ServiceClient.sessions."""
        page = [task_id for task_id in self.found if task_id < before][: int(limit)]
        return {"Sessions": [{"TaskId": each, "State": "Open", "OpenedTime": "2027-01-15T08:00:00Z"} for each in page]}


def resolved(typed: str, *found: str) -> str:
    return task_ids.resolve(cast(client.ServiceClient, _Listed(*found)), typed)


class TestTaskIds:
    OTHERS = ("01JBX5Q9V7" + "A" * 16, "01JBX5Q9V8" + "A" * 16, "01JBX5" + "0" * 20)

    def test_a_beginning_of_one(self) -> None:
        """Six characters or more stand for the session whose TaskId begins so, in either case."""
        assert resolved(TASK_ID[:11], TASK_ID, *self.OTHERS) == TASK_ID
        assert resolved(TASK_ID[:11].lower(), TASK_ID, *self.OTHERS) == TASK_ID
        assert resolved(TASK_ID[:6], TASK_ID) == TASK_ID
        assert resolved(TASK_ID[:25], TASK_ID) == TASK_ID

    def test_several_are_listed(self) -> None:
        """Which is meant is asked; at most ten are named, and how to see the others."""
        with pytest.raises(client.ClientError) as asked:
            resolved(TASK_ID[:6], TASK_ID, *self.OTHERS)
        assert (asked.value.exit_code, len(asked.value.body["TaskIds"])) == (exits.USAGE, 4)
        assert all(each in str(asked.value) for each in (TASK_ID, *self.OTHERS))
        with pytest.raises(client.ClientError, match=r"and older ones: recorder sessions --before 01JBX5000000000000000000B0"):
            resolved(TASK_ID[:6], *(f"01JBX5{'0' * 18}{char}0" for char in "0123456789ABCDEFGHJKM"))

    def test_none(self) -> None:
        """No session begins so."""
        with pytest.raises(client.ClientError, match="No TaskId begins with 01JBX5Q9V7T") as none:
            resolved(TASK_ID[:11], *self.OTHERS)
        assert none.value.exit_code == exits.NOT_FOUND

    @pytest.mark.parametrize("typed", [TASK_ID, TASK_ID.lower(), "01JBX", "X", "../sessions", "a b?c", "", "01JBX5ILOU"])
    def test_others_are_left_to_the_service(self, typed: str) -> None:
        """Whole ids, and texts that cannot be a beginning, cost no request."""
        asks_nothing = cast(client.ServiceClient, object())
        assert task_ids.resolve(asks_nothing, typed) == (typed.upper() if len(typed) == 26 else typed)


class TestWords:
    def test_errors_name_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Fields of the API become the command's options, in messages of every shape; other words stay."""
        for message, told in (
            ("CosConfig.Region: is required", "--region: is required"),
            ("RoomId: one of RoomId and StrRoomId is required", "--room: one of --room and --str-room is required"),
            ("Mode: must be 00", "--mode: must be 00"),
            ("name a speaker and an earlier stage with From.", "name a speaker and an earlier stage with --from."),
            ("CosConfig.SecretKey is missing", "COS_SECRET_KEY is missing"),
            ("Session 01JBX5: No Model.", "Session 01JBX5: No Model."),
        ):
            with pytest.raises(Exit), exits.handled(words=request_input.OPTIONS):
                raise client.ClientError(message, exits.REFUSED)
            assert capsys.readouterr().err == f"{told}\n"

    def test_the_options_exist(self) -> None:
        """Every option in the table is one of a command; the rest are variables that the help names."""
        named = " ".join(
            testing.CliRunner().invoke(app.app, [command, "--help"], env={"COLUMNS": "200"}).stdout
            for command in ("start", "replay")
        )
        assert [each for each in request_input.OPTIONS.values() if each not in named] == []


class TestRepeats:
    def test_repeats_of_several_pages_are_one_line(self) -> None:
        """The counts add up, from the first time on, in the place of the last one; a move in between ends a row of repeats."""

        def line(second: int, event: str, count: int = 1, to: str = "Uploading") -> dict[str, Any]:
            at = f"2027-01-15T08:00:{second:02}Z"
            return {
                "Time": at,
                "Of": "a/1",
                "Event": event,
                "From": "Uploading",
                "To": to,
                "Note": "",
                "Count": count,
                "FirstTime": at,
            }

        folded = sessions._folded(
            [line(1, "failed", 3), line(2, "late"), line(3, "failed", 2), line(4, "moved", to="Failed"), line(5, "failed")]
        )
        assert [(each["Event"], each["Count"], each["FirstTime"][-3:-1]) for each in folded] == [
            ("late", 1, "02"), ("failed", 5, "01"), ("moved", 1, "04"), ("failed", 1, "05")
        ]  # fmt: skip


def test_the_version() -> None:
    """`recorder --version` prints name and version."""
    shown = testing.CliRunner().invoke(app.app, ["--version"])
    assert (shown.exit_code, bool(re.fullmatch(r"recorder \d+\.\d+\.\d+\n", shown.stdout))) == (0, True)
