"""Fixtures shared by all tests: quiet logs, Hypothesis profiles, a fresh store for each engine.

HYPOTHESIS_PROFILE=thorough runs many more examples, chosen at random each time; the default is few, and the same ones each time.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from store import store as stores
from tests import decider_harness, engines, machine_probe, order, selection, waiting


def _drop(_logger: object, _name: str, _event: object) -> structlog.types.EventDict:
    raise structlog.DropEvent


structlog.configure(processors=[_drop])

hypothesis.settings.register_profile("quick", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=2_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# Rooms of which there are as many as two cores bear, and servers that are shared by the tests of a module.
HEAVY = (
    "tests/e2e/test_cluster.py",
    "tests/e2e/test_cluster_faults.py::test_the_network_to_the_broker_breaks",
    "tests/e2e/test_broker_cluster.py",
)
# Tests of more than about ten seconds.
LONG = (
    "tests/e2e/",
    "tests/fuzz/",
    "tests/integration/test_benchmarks.py",
    "tests/integration/test_console.py",
    "tests/integration/test_console_session.py",
    "tests/integration/test_database_faults.py::test_a_slow_file_is_only_slow",
    "tests/integration/test_followers.py",
    "tests/integration/test_following.py",
    "tests/integration/test_following_untidy.py",
    "tests/integration/test_rabbit_retries.py",
    "tests/integration/test_readability.py",
    "tests/integration/test_results_api.py::test_the_command_follows",
    "tests/integration/test_run_guard.py",
    "tests/integration/test_stuck.py::test_dead_letters_and_damaged_rows",
    "tests/integration/test_wrong_settings.py",
    "tests/integration/test_rabbit_traps.py::test_a_broker_that_restarts_under_load_costs_nothing",
    "tests/integration/test_rabbit_traps.py::test_messages_outlive_the_brokers_restart",
)
COLLECTED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the ids of the collected tests, before -k and the like take some away; put what takes long first."""
    config.stash[COLLECTED] = [item.nodeid for item in items]
    scale_time_limits(config, items)
    for item in items:
        if selection.quick(item.nodeid):
            item.add_marker("quick")
    items[:] = order.shared(
        items,
        order.processes(),
        lambda item: item.nodeid.startswith(LONG),
        lambda item: item.nodeid.startswith(HEAVY),
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: as many processes as this machine bears; `-n logical`: one for each core, for tests that only compute."""
    found = machine_probe.machine()
    return found.cores if config.option.numprocesses == "logical" else found.processes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that the run's time limits follow from, also under -q."""
    terminalreporter.write_line(f"machine: {machine_probe.machine()}")


def scale_time_limits(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test the time limit of its marker, or else of pyproject.toml, as this machine needs it."""
    usual_s = float(config.getini("timeout"))
    for item in items:
        marker = item.get_closest_marker("timeout")
        limit_s = float(marker.args[0]) if marker else usual_s
        item.add_marker(pytest.mark.timeout(limit_s * machine_probe.pace() * machine_probe.HANG), append=False)


@pytest.fixture
def collected(pytestconfig: pytest.Config) -> list[str]:
    """The ids of the tests that this run collected, of all modules or of those that it was asked for."""
    return pytestconfig.stash[COLLECTED]


@pytest.fixture(scope="session")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulator's encoded loops, made once per run by the first process that needs them."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine) / "loops"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def clock() -> engines.Clock:
    """A clock that the test sets."""
    return engines.Clock()


@pytest.fixture(params=engines.NAMES)
def database(request: pytest.FixtureRequest) -> Iterator[engines.Database]:
    """An empty database with the current schema, on each engine."""
    with engines.fast_folder() as folder:
        yield engines.fresh(request.param, Path(folder))


@pytest.fixture
async def store(database: engines.Database, clock: engines.Clock) -> AsyncIterator[stores.Store]:
    """A store on that database, with the test's clock and ids that count up."""
    before = set(threading.enumerate())
    opened = database.open(clock)
    try:
        yield opened
    finally:
        await opened.stop()
        # The thread of a connection that was given up while it opened still reports to this loop, which is about to close.
        for thread in set(threading.enumerate()) - before:
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, waiting.limit_s(10.0))


@pytest.fixture
def harness(store: stores.Store, clock: engines.Clock) -> decider_harness.Harness:
    """A harness that sends events to the deciding handlers."""
    return decider_harness.connect(store, clock)
