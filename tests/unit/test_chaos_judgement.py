"""The judgement of chaos runs: the audit's findings, the computation of lost media, and the report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import waiting
from tests.chaos import audit, cover, judgement, media, open_captures, plans, report, worlds
from tests.e2e import session_audit

ROOT = Path(__file__).parents[2]
TABLES = """
CREATE TABLE sessions (task_id, state, revision); CREATE TABLE results (task_id, revision, body);
CREATE TABLE recordings (id, task_id, speaker, state, code, detail, url, output, awaited);
CREATE TABLE jobs (owner, kind, state); CREATE TABLE outbox (seq, channel, type, body, sent_ms, parked);
CREATE TABLE callbacks (task_id, revision, state);
"""
BODY = {"TaskId": "T", "Revision": 1, "Files": []}
CONTENT = b"what was recorded"


class Remains:
    """The database of a correct run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "recorder.db"
        self.bucket, self.uploads = folder / "bucket", folder / "uploads"
        self.posts = [("T.1", json.dumps(BODY))]
        self.heard: list[tuple[str, dict[str, Any]]] | None = None
        output = json.dumps({"SizeBytes": len(CONTENT), "Crc64": str(session_audit.crc64(CONTENT)), "DurationMs": 5})
        done = json.dumps({"id": "d1", "type": "recording-done", "subject": "T/al/1", "data": {"Attempt": 1}})
        self.put("run/T/al_1.mp4", CONTENT)
        self.put("run/T/manifest.json", json.dumps(BODY | {"Recordings": []}).encode())
        self.say(TABLES)
        self.say("INSERT INTO sessions VALUES ('T', 'Finished', 1)")
        self.say(
            f"INSERT INTO recordings VALUES ('T/al/1', 'T', 'al', 'Done', '', '', 'https://b.c/run/T/al_1.mp4', '{output}', 0)"
        )
        self.say(f"INSERT INTO results VALUES ('T', 1, '{json.dumps(BODY)}')")
        self.say(f"INSERT INTO outbox VALUES (1, 'result', 'recording-done', '{done}', 1, '')")

    def put(self, key: str, content: bytes) -> None:
        """Store an object."""
        (self.bucket / key).parent.mkdir(parents=True, exist_ok=True)
        (self.bucket / key).write_bytes(content)

    def say(self, statements: str) -> None:
        """Run SQL."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            connection.executescript(statements)

    def what(self, living: Sequence[int] = ()) -> audit.Scope:
        """The audit's input."""
        return audit.Scope(
            database=f"sqlite:///{self.database}",
            bucket=self.bucket,
            uploads=self.uploads,
            prefix="run",
            received={"run": self.posts},
            expected=[("T", "al")],
            folder=str(self.folder / "node"),
            pids=[],
            living=list(living),
            heard=self._written(),
            manifests=True,
        )

    def audited(self, living: Sequence[int] = ()) -> dict[str, int]:
        """The audit's findings by kind."""
        found = audit.audit(self.what(living))
        return {name: len(getattr(found, name)) for name in report.FAULTS if getattr(found, name)}

    def hear(self) -> None:
        """Add a subscriber that received every result."""
        finished = {"id": "T.1", "type": "session-finished", "subject": "T", "data": BODY}
        done = {"id": "d1", "type": "recording-done", "subject": "T/al/1", "data": {"Attempt": 1}}
        self.say("DELETE FROM outbox")
        for seq, event in enumerate((finished, done)):
            self.say(f"INSERT INTO outbox VALUES ({seq}, 'result', '{event['type']}', '{json.dumps(event)}', 1, '')")
        self.heard = [(str(event["id"]), event) for event in (finished, done)]

    def _written(self) -> Path | None:
        if self.heard is None:
            return None
        path = self.folder / "heard.jsonl"
        lines = [{"Key": f"result.{event['type']}", "Id": id_, "Body": json.dumps(event)} for id_, event in self.heard]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


@pytest.fixture
def remains(tmp_path: Path) -> Remains:
    return Remains(tmp_path)


def test_what_is_as_it_should_be_has_no_fault(remains: Remains) -> None:
    """A correct run has no findings, and a repeated post of the same body under its id is allowed."""
    remains.posts *= 2
    assert remains.audited() == {}


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE recordings SET state = 'Failed'", "lost_recordings"),
        ("UPDATE recordings SET speaker = 'bo'", "lost_recordings"),
        ("UPDATE recordings SET output = replace(output, 'Crc64\": \"', 'Crc64\": \"9')", "lost_recordings"),
        ("UPDATE sessions SET state = 'Closing'", "lost_results"),
        ("UPDATE outbox SET sent_ms = NULL", "lost_results"),
        ("UPDATE outbox SET parked = 'why'", "lost_results"),
        ("DELETE FROM outbox", "lost_results"),
        ("UPDATE results SET body = '{}'", "lost_results"),
        ("INSERT INTO sessions VALUES ('U', 'Finished', 1)", "doubled_results"),
        ("INSERT INTO results VALUES ('T', 2, (SELECT body FROM results))", "doubled_results"),
        ("INSERT INTO outbox SELECT 2, channel, type, replace(body, 'd1', 'd2'), 1, '' FROM outbox", "doubled_results"),
    ],
)
def test_a_fault_in_the_database_is_seen(remains: Remains, statement: str, fault: str) -> None:
    """Each kind of loss and doubling that rows can show is found, and counted as no other."""
    remains.say(statement)
    assert remains.audited() == {fault: 1}


def test_a_fault_outside_of_the_database_is_seen(remains: Remains) -> None:
    """The audit finds a result posted with two ids, an unknown object, an unfinished upload, and a process that still runs."""
    remains.posts.append(("T.1b", remains.posts[0][1]))
    remains.put("run/T/al_2.mp4", b"")
    (remains.uploads / "u").mkdir(parents=True)
    (remains.uploads / "u" / "upload.json").write_text(json.dumps({"key": "run/T/al_1.mp4", "parts": {}}))
    here = remains.folder / "node" / "spool"
    here.mkdir(parents=True)
    with subprocess.Popen(["cat"], cwd=here, stdin=subprocess.PIPE):
        found = remains.audited()
    assert found == {"doubled_results": 1, "doubled_objects": 1, "leaked_uploads": 1, "orphan_processes": 1}


def test_a_manifest_that_is_old_or_absent_is_seen(remains: Remains) -> None:
    """The manifest holds the newest result."""
    remains.put("run/T/manifest.json", json.dumps(BODY | {"Revision": 0, "Recordings": []}).encode())
    assert remains.audited() == {"lost_results": 1}
    (remains.bucket / "run/T/manifest.json").unlink()
    assert remains.audited() == {"lost_results": 1}


def test_what_a_node_that_goes_on_has_left_running_is_seen(remains: Remains) -> None:
    """A node that is expected to run is no orphan; a process that it started and never ended is one."""
    here = remains.folder / "node"
    here.mkdir()
    program = "import subprocess; print(subprocess.Popen(['cat']).pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        started = int(node.stdout.readline())
        assert remains.audited() == {"orphan_processes": 2}
        assert remains.audited([node.pid]) == {"orphan_processes": 1}
        assert remains.audited([node.pid, started]) == {}


def test_what_a_subscriber_did_not_hear_is_lost_and_a_second_word_is_doubled(remains: Remains) -> None:
    """A subscriber may receive a result again. A missing one, another body, one never written, a second id, and a message_id that
    is not the event's are findings."""
    remains.hear()
    assert remains.heard is not None
    finished, done = whole = remains.heard
    remains.heard = [finished, done, finished]
    assert remains.audited() == {}
    remains.heard = [finished]
    assert remains.audited() == {"lost_results": 1}
    remains.heard = [done]
    assert remains.audited() == {"lost_results": 2}, "the message, and the result that it tells"
    remains.heard = [finished, ("d1", done[1] | {"time": "later"})]
    assert remains.audited() == {"lost_results": 1}
    remains.heard = [*whole, ("d1", done[1] | {"time": "later"})]
    assert remains.audited() == {"doubled_results": 1}
    remains.heard = [*whole, ("d2", done[1] | {"id": "d2"})]
    assert remains.audited() == {"doubled_results": 2}, "it was never written, and it is a second one"
    remains.heard = [finished, ("other", done[1])]
    assert remains.audited() == {"doubled_results": 1}


def test_a_capture_of_no_node_and_one_too_many_are_seen(tmp_path: Path) -> None:
    """An orphan is found by its output file: its parent is no living node, or it records the same as another one; captures of
    another run do not count."""
    run, other = tmp_path / "run-1", tmp_path / "run-10"
    writers = [
        [sys.executable, "-c", "input()", str(file)]
        for file in (run / "a" / "T" / "al_1" / "1.flv", run / "b" / "T" / "al_1" / "2.flv", other / "T" / "al_1" / "1.flv")
    ]
    with contextlib.ExitStack() as running:
        first, second, _ = (running.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE)) for words in writers)
        me = os.getpid()
        assert len([line for line in audit.strays(str(run), {me}) if line.endswith("flv, and not alone")]) == 2
        second.kill()
        second.wait()
        assert audit.strays(str(run), {me}) == []
        assert audit.strays(str(run), {second.pid}) == [f"{first.pid} captures 1.flv for no node"]


def test_a_native_capture_is_an_open_segment(tmp_path: Path) -> None:
    """A segment that a process writes counts for that process, and so does one that its child names; one that it reads does not.
    Two at once of a recording are seen, and one of a process that is no node."""
    folders = [tmp_path / node / "T" / "al_1" for node in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    written, other = (folder / "00000001.flv" for folder in folders)
    other.touch()
    holding = "import sys; file = open(sys.argv[1] + '.flv', 'wb'); print(flush=True); input()"
    writes = [sys.executable, "-c", holding, str(other.with_suffix(""))]
    names = [sys.executable, "-c", "print(flush=True); input()", str(other)]
    with written.open("ab"), other.open("rb"):
        assert open_captures.of(os.getpid()) == [str(written)]
        assert audit.strays(str(tmp_path), {os.getpid()}) == []
        assert audit.strays(str(tmp_path), {1}) == [f"{os.getpid()} captures 00000001.flv for no node"]
        with child(writes):
            doubled = {line.partition(" captures ")[2] for line in audit.strays(str(tmp_path), {os.getpid()})}
            assert doubled == {f"{each}, and not alone" for each in (written, other)}
        with child(names):
            assert open_captures.of(os.getpid()) == sorted(map(str, (written, other)))
    assert open_captures.of(os.getpid()) == []


@contextlib.contextmanager
def child(command: Sequence[str]) -> Iterator[None]:
    """A process that has begun, until the end of the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def test_a_kill_costs_media_in_the_captures_that_it_hit() -> None:
    """The kill of one of two nodes ends one of two captures, and its loss counts once; a strike without a kill costs nothing."""
    struck = [
        {"Act": plans.KILL, "MonotonicS": 5.0, "Captures": ["/run/cfs/T/al_1/00000001.flv"]},
        {"Act": plans.KILL, "MonotonicS": 6.0, "Captures": []},
        {"Act": plans.FREEZE, "MonotonicS": 7.0, "Captures": ["/run/cfs/T/bo_1/00000001.flv"]},
    ]
    assert cover.kills(struck) == {"al_1": [5.0]}


def test_an_object_that_is_not_there_is_a_lost_recording(remains: Remains) -> None:
    """A recording that is Done without an object in the bucket is found."""
    (remains.bucket / "run/T/al_1.mp4").unlink()
    assert remains.audited() == {"lost_recordings": 1}


def test_each_file_of_a_bounded_spool_counts(remains: Remains) -> None:
    """A recording with an earlier file has two objects. The earlier one is found if it is another one."""
    output = {"SizeBytes": 3, "Crc64": str(session_audit.crc64(b"new")), "DurationMs": 5}
    earlier = {"SizeBytes": len(CONTENT), "Crc64": str(session_audit.crc64(CONTENT)), "DurationMs": 5}
    output["Earlier"] = [{"Url": "https://b.c/run/T/al_1.mp4", "Output": earlier}]
    remains.say(f"UPDATE recordings SET url = 'https://b.c/run/T/al_1-2.mp4', output = '{json.dumps(output)}'")
    remains.put("run/T/al_1-2.mp4", b"new")
    assert remains.audited() == {}
    remains.put("run/T/al_1.mp4", b"old")
    assert remains.audited() == {"lost_recordings": 1}


def test_the_files_of_a_recording_are_judged_together(tmp_path: Path) -> None:
    """Files are in the order of their recordings and numbers, and one that does not play is found."""
    names = ["al_1.mp4", "al_1-2.mp4", "al_1-10.mp4", "al_2.mp4"]
    for name in (*names, "bo_1.mp4"):
        (tmp_path / name).write_bytes(b"no media")
    found = dict(judgement.recordings(tmp_path, "al"))
    assert found == {"al_1": [tmp_path / name for name in names[:3]], "al_2": [tmp_path / "al_2.mp4"]}
    assert "does not play" in judgement.broken(tmp_path / "al_1.mp4")[0]


def test_a_kill_costs_the_recording_and_not_its_first_file() -> None:
    """Frames are counted on from the file before, over the loop of their numbers."""
    live = media.Live(began_s=100.0, first_frame=0, pulls=[[100.0, 300.0]])
    first = media.sent([media.Picture(frame=number, at_s=0.0) for number in (0, 600)], live)
    behind = media.sent([media.Picture(frame=number, at_s=0.0) for number in (601, 200)], live, first[-1].frame)
    assert [picture.frame for picture in (*first, *behind)] == [0, 600, 601, 1160]


def test_an_object_that_changed_after_its_delivery_is_seen(remains: Remains) -> None:
    """The delivered result has another size or checksum than the object has now."""
    entry = {"RecordFile": "https://b.c/run/T/al_1.mp4", "Size": len(CONTENT), "Crc64": str(session_audit.crc64(CONTENT))}
    for wrong, faults in (({}, {}), ({"Size": 3}, {"lost_recordings": 1}), ({"Crc64": "9"}, {"lost_recordings": 1})):
        remains.posts = [("T.1", json.dumps(BODY | {"Files": [entry | wrong]}))]
        remains.say(f"UPDATE results SET body = '{remains.posts[0][1]}'")
        remains.put("run/T/manifest.json", remains.posts[0][1].encode())
        assert remains.audited() == faults


def test_lost_media_is_the_time_between_the_last_frame_kept_and_the_last_one_sent() -> None:
    """Lost media is computed from the loop's frames, over its seam; a speaker without a pull loses nothing, and no loss exceeds
    the sent media."""
    live = media.Live(began_s=100.0, first_frame=945, pulls=[[100.2, 103.0], [104.0, 110.0]])
    shown = [media.Picture(frame=frame, at_s=0.0) for frame in (950, 959, 0, 5, 60)]
    counted = [picture.frame for picture in media.sent(shown, live)]
    assert counted == [5, 14, 15, 20, 75]
    assert media.lost_s(counted, live, 102.0) == pytest.approx(10 / 15)
    assert media.lost_s(counted, live, 100.1) is None
    assert media.lost_s(counted, live, 103.5) is None
    assert media.lost_s(counted, live, 104.5) == pytest.approx(0.5, abs=0.07)
    assert media.lost_s(counted, live, 106.0) == pytest.approx(1.0, abs=0.07)
    assert media.doubled_s([1, 2, 2, 6]) == pytest.approx(1 / 15)
    late = dataclasses.replace(live, sent=[(100.0, 0), (105.9, 80), (106.2, 92)])
    assert media.lost_s(counted, late, 106.0) == pytest.approx(5 / 15)


def test_the_report_charges_a_run_to_every_point_that_was_struck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has faults, acts and times by engine and point, and judges the 99th percentile of the cost of kills."""
    struck: list[dict[str, Any]] = [{"Point": p, "Act": plans.KILL} for p in ("lease.take.after", "upload.create.after")]
    plan = plans.make(plans.EMBEDDED, 3)
    bad = worlds.Outcome(plan=plan, folder=tmp_path, struck=struck, faults={"leaked_uploads": ["one"]}, media_lost_s=[0.1, 3.0])
    good = worlds.Outcome(plan=plan, folder=tmp_path, struck=struck[:1], seconds_to_end=2.5)
    found = report.summary([bad, good])
    rows = {row["point"]: (row["runs"], row["leaked_uploads"], row["end_max_s"]) for row in found["points"]}
    assert rows == {"lease.take.after": (2, 1, 2.5), "upload.create.after": (1, 1, None)}
    assert found["failures"][0]["repeat"] == "python -m tests.chaos --engine embedded --seed 3"
    monkeypatch.setattr(waiting, "patience", lambda: 1.0)
    (told,) = report.too_much_lost([bad, good])
    assert told.startswith(f"embedded, {plan.capture}: 3.00 s")
    assert found["media_lost_to_a_kill_s"][plans.EMBEDDED][plan.capture]["max"] == 3.0


@pytest.mark.parametrize(("capture", "too_much"), [(plans.NATIVE, True), (plans.FFMPEG, False)])
def test_a_native_capture_may_lose_less(capture: str, too_much: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second lost to a kill is within the promise of a capture by ffmpeg and beyond that of a native one; the table tells
    them apart."""
    plan = dataclasses.replace(plans.make(plans.EMBEDDED, 3), capture=capture)
    struck: list[dict[str, Any]] = [{"Point": "lease.take.after", "Act": plans.KILL}]
    monkeypatch.setattr(waiting, "patience", lambda: 1.0)
    outcome = worlds.Outcome(plan=plan, folder=tmp_path, struck=struck, media_lost_s=[0.5])
    assert bool(report.too_much_lost([outcome])) == too_much
    assert f"by {capture} capture that it hit, s: count 1, min 0.5" in report.table([outcome])


def test_a_full_run_in_which_little_happened_is_no_success(tmp_path: Path) -> None:
    """The report names what a run left out, with the engine: decoded files, a kill in a capture, and every failpoint."""
    whole = cover.Cover(head_s=0, tail_s=0, unreported_s=0, invented_s=0, doubled_s=0, unpulled_s=0)
    struck: list[dict[str, Any]] = [{"Point": point, "Act": plans.KILL} for point in plans.points(plans.EMBEDDED)]
    plan = plans.make(plans.EMBEDDED, 3)

    def short(**changed: Any) -> list[str]:
        made: dict[str, Any] = {"struck": struck, "covers": [whole], "media_lost_s": [0.0]} | changed
        both = [dataclasses.replace(plan, capture=capture) for capture in plans.CAPTURES]
        return report.shortfalls([plans.EMBEDDED], [worlds.Outcome(plan=each, folder=tmp_path, **made) for each in both])

    assert short() == []
    assert short(covers=[]) == ["embedded: no file was examined"]
    assert short(media_lost_s=[]) == [
        f"embedded: no kill hit a capture by {capture}, so no loss was measured" for capture in plans.CAPTURES
    ]
    assert short(struck=struck[1:-1]) == ["embedded: not struck: inbox.claim.before, cleanup.remove.after"]
    assert len(report.shortfalls(plans.ENGINES, [])) == 8


@pytest.mark.parametrize("engine", plans.ENGINES)
def test_the_first_time_round_every_point_is_struck_where_it_is_sure_to_be_passed(engine: str) -> None:
    """A strike takes the first matching node; a plan about a stop stops the session."""
    names = plans.points(engine)
    made = [plans.make(engine, seed) for seed in range(len(names))]
    assert [(plan.strikes[0].point, plan.strikes[0].hit) for plan in made] == [(name, 1) for name in names]
    for plan in (*made, *plans.grouped(engine, 1)):
        stops = any(strike.point.startswith("capture.stop") for strike in plan.strikes)
        assert not stops or plan.ending == plans.STOP, plan.repeat
    for chosen in (made[:10], plans.grouped(engine, 1)):
        assert {plan.capture for plan in chosen} == set(plans.CAPTURES), "both kinds of capture take turns"


def packages() -> set[str]:
    """The recorder's own packages and modules, as the wheel has them."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    return {name.removesuffix(".py") for name in built}


def imported(program: str, *arguments: str) -> set[str]:
    """The recorder's packages that a Python process has imported after it ran a program."""
    first = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    last = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    command = [sys.executable, "-I", "-c", "\n".join((first, program, last)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return packages() & set(done.stderr.split())


def test_the_audit_imports_nothing_of_the_recorder(remains: Remains) -> None:
    """The audit imports no package of the recorder, because it must judge independently. The same check finds a package that is
    imported."""
    assert {"machine", "store", "service"} <= packages()
    path = remains.folder / "what.json"
    path.write_text(json.dumps(dataclasses.asdict(remains.what()), default=str))
    assert imported("import runpy; runpy.run_module('tests.chaos.audit', run_name='__main__')", str(path)) == set()
    assert imported("import machine.states") == {"machine"}
