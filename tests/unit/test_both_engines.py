"""The rule that both engines are tested, and that the check of it would notice a violation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import both_engines

ROOT = Path(__file__).parent.parent.parent
ONE_ENGINE = {
    "tests/e2e/test_cluster.py": "nodes that die, leave and return; the embedded engine is one process",
    "tests/e2e/test_cluster_faults.py": "the way to the broker, AMQP as other applications use it, and more nodes than one",
    "tests/e2e/test_examples.py": "the examples are about the public bus",
    "tests/e2e/test_compose.py": "the compose file has the distributed engine and no other",
    "tests/e2e/test_readme.py": "the pages install the embedded engine",
    "tests/e2e/test_simulator_page.py": "the page shows the simulator to one process",
    "tests/integration/test_rabbit_roles.py": "roles and dead letters of RabbitMQ; both buses: tests/contract/test_bus.py",
    "tests/integration/test_rabbit_traps.py": "what RabbitMQ does; what both buses do is in tests/contract/test_bus.py",
    "tests/integration/test_bus_permissions.py": "RabbitMQ's own users and permissions",
    "tests/integration/test_parked_messages.py": "a queue is read by taking from it; the outbox's are rows",
    "tests/integration/test_wheel.py": "whether migrations are in the wheel; what they do: tests/contract/test_schema.py",
    "tests/contract/test_lease_renewal.py::test_a_row_that_a_decision_holds_delays_no_other_renewal": "row locks of PostgreSQL",
    "tests/contract/test_shared_commits.py::test_a_job_whose_owner_is_locked_delays_no_other": "row locks of PostgreSQL",
    "tests/contract/test_callback_intake.py::test_a_room_that_is_decided_holds_up_no_other": "room locks of PostgreSQL",
    "tests/contract/test_callback_intake.py::test_bursts_and_decisions_leave_connections_for_reads": "PostgreSQL's pool",
    "tests/contract/test_decision_metrics.py::test_the_backlog_reads_no_finished_rows": "plans of SQLite, which ignores sizes",
    "tests/e2e/test_following.py": "what followers and their uploads make of a stream; they know no engine",
    "tests/e2e/test_bounded.py": "only the embedded engine bounds its spool",
    "tests/e2e/test_untidy_streams.py": "what captures and transcodes make of a stream; they know no engine",
    "tests/e2e/test_spool_faults.py": "another worker goes on; for one that waits: tests/e2e/test_failures.py",
    "tests/e2e/test_hung_spool.py": "a hung file system; the worker's files know no engine",
    "tests/integration/test_open_files.py": "the process's limit of open files; it knows no engine",
    "tests/integration/test_terminals.py": "the command line's standard streams; they know no engine",
    "tests/integration/test_database_lock.py": "the lock beside SQLite's file",
    "tests/e2e/test_hung_database.py": "SQLite's file hangs; a server that is away: tests/e2e/test_servers_down.py",
    "tests/integration/test_database_faults.py": "the disk of SQLite's file; a server that refuses: test_refused_writes.py",
    "tests/integration/test_damaged_database.py": "SQLite's file: its bytes and its writes",
    "tests/integration/test_attention_watch.py::test_the_server_of_the_database_is_away": "PostgreSQL, away; SQLite is a file",
    "tests/integration/test_refused_writes.py::test_the_relay_of_a_node_does_not_end": "the relay to RabbitMQ",
    "tests/integration/test_console.py::test_no_page_has_an_obstacle": "how pages look; they know no engine",
    "tests/integration/test_console_operate.py::test_a_key_is_made_and_revoked_on_the_page": "a page over tested routes",
    "tests/integration/test_console_operate.py::test_a_key_that_only_reads_sees_no_action": "a page over tested routes",
    "tests/integration/test_console_operate.py::test_parked_messages_are_handled_from_the_page": "a page over tested routes",
    "tests/integration/test_console_session.py::test_a_key_sees_and_does_what_its_scopes_allow": "a page; it knows no engine",
    "tests/integration/test_console_session.py::test_a_page_with_a_long_timeline_is_quick": "the time to draw a page",
    "tests/integration/test_console_session.py::test_forms_work_without_keys": "what a browser sends with a form",
    "tests/integration/test_console_session.py::test_each_cause_is_reached_in_two_clicks": "where the links of pages lead",
    "tests/e2e/test_console_pictures.py": "how pages look; they know no engine",
    "tests/e2e/test_live_view.py": "what a view shows knows no engine; another node's segments need many nodes",
    "tests/e2e/test_migration.py": "the page installs the embedded engine",
    "tests/integration/test_console.py::test_a_form_without_the_token_of_the_visit_changes_nothing": "the frame of the pages",
    "tests/integration/test_console.py::test_a_key_without_operate_can_act_on_nothing": "the frame of the pages",
    "tests/integration/test_wrong_settings.py": "SQLite's files, and the servers of the other engine",
    "tests/e2e/test_cluster_page.py": "a page about many nodes; the other engine is one process",
    "tests/integration/test_frozen_transaction.py": "locks that PostgreSQL holds for a process that stands still",
    "tests/e2e/test_database_file.py": "SQLite's file: its lock and its disk",
    "tests/e2e/test_servers_down.py": "RabbitMQ and PostgreSQL, away",
    "tests/e2e/test_unwritable_log.py": "the log; it knows no engine",
    "tests/e2e/test_hostile_names.py": "what spool, ffmpeg and COS make of a name; they know no engine",
    "tests/e2e/test_frozen.py::test_a_frozen_worker_wakes": "another node takes over; on the embedded engine the one goes on",
    "tests/security/test_tls.py": "connections to RabbitMQ and PostgreSQL; a file has none",
    "tests/integration/test_keys_rotate.py::test_a_key_file_that_others_can_read": "only the embedded engine makes a key file",
    "tests/integration/test_keys_rotate.py::test_parked_messages_that_need_an_older_key_are_counted": "RabbitMQ's queue",
    "tests/integration/test_rabbit_silence.py": "RabbitMQ's clocks",
    "tests/integration/test_parked_limit.py": "the limit of RabbitMQ's queue; the outbox's dead letters are rows",
    "tests/integration/test_rabbit_retries.py": "RabbitMQ's queues of retries; both buses: tests/contract/test_bus.py",
    "tests/integration/test_rabbit_upgrade.py": "RabbitMQ's queues; those of the embedded engine are rows (test_schema.py)",
    "tests/e2e/test_failover.py": "PostgreSQL's servers; SQLite comes back in tests/contract/test_restored_database.py",
    "tests/e2e/test_broker_cluster.py": "a cluster of brokers",
    "tests/e2e/test_upgrade.py": "nodes of two versions; the embedded engine is one process",
    "tests/contract/test_side_by_side.py::test_postgresql_keeps_counts_beside_release_010": "SQLite has one process",
    "tests/contract/test_side_by_side.py::test_postgresql_refuses_release_010_after_the_contract": "SQLite has one process",
    "tests/contract/test_side_by_side.py::test_postgresql_migrates_beside_a_transaction": "SQLite has one process",
    "tests/integration/test_key_commands.py::test_beside_many_nodes": "only PostgreSQL's schema is asked for and never made",
    "tests/integration/test_doctor_cluster.py::test_broker": "RabbitMQ; the embedded engine has no broker",
    "tests/integration/test_doctor_cluster.py::test_dead_letters_of_the_broker": "RabbitMQ; the outbox's: test_dead_letters",
    "tests/integration/test_doctor_cluster.py::test_workers": "workers that share PostgreSQL; the embedded engine is one process",
    "tests/integration/test_doctor.py::test_database_file": "SQLite's file, missing or broken",
    "tests/integration/test_doctor.py::test_database_file_place": "SQLite's locks on network file systems",
    "tests/integration/test_doctor.py::test_spool_policy": "only the embedded engine bounds its spool",
    "tests/integration/test_doctor.py::test_database_server": "PostgreSQL, away or without the database",
    "tests/integration/test_doctor.py::test_database_server_has_no_place": "PostgreSQL's files are not ours",
}
"""Tests about one engine, each with the reason."""


def whole(ids: list[str], words: Sequence[str]) -> bool:
    """Whether the run collected all tests: every module, and no module in part."""
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    return {id_.partition("::")[0] for id_ in ids} == modules and not any("::" in word for word in words)


def collected_beside() -> list[str]:
    """All tests, collected by another process: 15 s of CPU that a full run has already spent."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line]


def test_every_opener_is_in_use() -> None:
    """A name that no test uses is misspelled or was renamed, and the rule would miss the tests that it was for."""
    modules = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "both_engines.py"]
    used = set().union(*(names for path in modules for names in both_engines.read(path.read_text("utf-8")).mentions.values()))
    assert both_engines.OPENERS - used == set()


@pytest.mark.timeout(180)
def test_no_behaviour_is_tested_on_one_engine_alone(collected: list[str], pytestconfig: pytest.Config) -> None:
    """Every test that depends on an engine is collected on both, or names its one engine and is listed."""
    ids = collected if whole(collected, pytestconfig.args) else collected_beside()
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path in {id_.partition("::")[0] for id_ in ids}}
    assert both_engines.faults(ids, sources, ONE_ENGINE) == []


SOURCE = '''
"""Rooms."""

def open_it(folder):
    return engines.fresh("sqlite", folder)

@pytest.fixture
def place(tmp_path):
    return open_it(tmp_path)

def test_behind_a_fixture(place):
    """It works."""

def test_by_name(engine, kind):
    """It works."""

def test_a_process():
    """It works."""
    run("import service; MAIN")

class TestRooms:
    def test_behind_a_function(self):
        """It works in SQLite."""
        open_it(FOLDER)

def test_of_no_engine(store: stores.Store) -> stores.Store:
    """It works."""
'''.replace("MAIN", "service." + "main()")  # not found here
ALONE = [
    ("test_behind_a_fixture", "an engine that its id does not name"),
    ("test_by_name[embedded-Joining]", "embedded"),
    ("test_by_name[Joining-rabbitmq]", "distributed"),
    ("test_a_process", "an engine that its id does not name"),
    ("TestRooms::test_behind_a_function", "an engine that its id does not name"),
]


@pytest.mark.parametrize(("test", "engine"), ALONE)
def test_a_test_on_one_engine_is_noticed(test: str, engine: str) -> None:
    """A dependency is found by id, behind a fixture, in a function of the module, and in a program written to a file."""
    found = both_engines.faults([f"t.py::{test}"], {"t.py": SOURCE}, {})
    assert found == [f"t.py::{test.partition('[')[0]} runs on {engine} alone"]


@pytest.mark.parametrize(
    "ids",
    [["test_by_name[embedded-Joining]", "test_by_name[distributed-Joining]"], ["test_of_no_engine"], ["test_of_no_engine[sql]"]],
)
def test_what_runs_on_both_or_on_none_is_left_alone(ids: list[str]) -> None:
    """A word that only begins like an engine's does not count, and an annotation opens nothing."""
    assert both_engines.faults([f"t.py::{id_}" for id_ in ids], {"t.py": SOURCE}, {}) == []


def test_what_is_listed_says_which_engine_and_is_needed() -> None:
    """A listed test must name its engine, and must not run on both."""
    both = ["t.py::test_by_name[sqlite]", "t.py::test_by_name[postgresql]"]
    silent, said = "t.py::test_behind_a_fixture", "t.py::TestRooms::test_behind_a_function"
    listed = dict.fromkeys(("t.py::test_by_name", silent, said), "a reason")
    assert both_engines.faults([*both, silent, said], {"t.py": SOURCE}, listed) == [
        f"{silent} is about one engine, and neither it nor its header says which",
        "t.py::test_by_name is listed, and nothing in it runs on one engine alone",
    ]
