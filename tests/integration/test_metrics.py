"""`GET /metrics`: who may read it, its labels, and a node that executes 300 captures."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from assembly import gauges
from assembly import node as nodes
from bench import scrape as scrape_bench
from config import settings
from machine import attention, errors, job_key, metrics, states
from tests import engines, scrapes, waiting
from tests.integration import api_service
from worker import leased_job

MASTER, SCRAPER = "master-token", "scrape-token"
# A label outside this list needs a look: its values must be few, and none of them anybody's text.
LABELS = {
    "route", "method", "status", "type", "outcome", "channel", "reason", "code", "kind", "version", "engine", "roles", "cause",
    "state", "place",
}  # fmt: skip
CAPTURES = 300


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[api_service.Service]:
    async with api_service.running(database, (MASTER,), metrics_token=SCRAPER) as running:
        yield running


async def scrape(service: api_service.Service, token: str, path: str = "/metrics") -> tuple[int, str]:
    """Read a page with a token ("": none); returns status and body."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with service.http.get(service.url + path, headers=headers) as response:
        return response.status, await response.text()


async def test_metrics_need_the_scope_read_or_their_own_token(service: api_service.Service) -> None:
    """A key with the scope `read`, a token of API_TOKENS and METRICS_TOKEN read the metrics; nobody else does."""
    _, reader = await service.key("read")
    _, starter = await service.key("start")
    statuses = [(await scrape(service, token))[0] for token in ("", "guess", starter, reader, MASTER, SCRAPER)]
    assert statuses == [401, 401, 403, 200, 200, 200]


async def test_the_token_of_the_metrics_reads_nothing_else(service: api_service.Service) -> None:
    """METRICS_TOKEN opens no other route, and neither does a path that only begins like that of the metrics."""
    for path in ("/sessions", "/results", "/openapi.json", "/metrics/", "/metrics/x"):
        assert (await scrape(service, SCRAPER, path))[0] == 401, path


async def test_a_scrape_needs_no_database(service: api_service.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """METRICS_TOKEN is checked without the database, so that an outage can be seen."""

    def away(*_: Any, **__: Any) -> Any:
        raise errors.Unavailable("The database does not answer.")

    _, reader = await service.key("read")
    monkeypatch.setattr(service.store.connections, "fetch", away)
    monkeypatch.setattr(service.store.connections, "read", away)
    assert (await scrape(service, SCRAPER))[0] == 200
    assert (await scrape(service, reader))[0] >= 500


async def test_no_label_holds_a_text_from_outside(service: api_service.Service) -> None:
    """Requests for made-up routes with made-up methods add series with fixed labels only."""
    async with service.http.request("BREW", f"{service.url}/sessions/PLANTED?x=PLANTED") as response:
        assert response.status in (401, 403, 404, 405)
    await scrape(service, MASTER, "/PLANTED")
    _, text = await scrape(service, SCRAPER)
    assert "PLANTED" not in text
    assert "BREW" not in text
    assert 'method="other"' in text


def test_labels_have_few_values() -> None:
    """Every label of the catalog is one whose values are known."""
    assert {label for described in metrics.CATALOG.values() for label in described.labels} == LABELS


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[nodes.Node]:
    """A node of the embedded engine."""
    places = {"DATA_DIR": str(tmp_path / "data"), "SPOOL_DIR": str(tmp_path / "spool"), "HOME": str(tmp_path)}
    environment = {"PORT": "0", "PATH": os.environ["PATH"], "MIN_FREE": "1MiB"} | places
    made = nodes.Node(settings.load(environment), environment)
    await made.start()
    yield made
    await made.stop()


async def read(node: nodes.Node) -> str:
    """Scrape a node."""
    async with aiohttp.ClientSession() as http, http.get(f"{node.url}/metrics") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, metrics.CONTENT_TYPE)
        return await response.text()


async def test_a_scrape_shows_the_captures_of_a_node(node: nodes.Node) -> None:
    """300 captures add no series: a scrape counts them and their bytes, and promtool finds nothing to complain about."""
    before = scrapes.series(await read(node))
    assert node.worker is not None
    for number in range(CAPTURES):
        key = job_key.recording("01JBX5Q9V7T3M8K2C4D6F8H0ZW", f"speaker{number}", 1)
        job = leased_job.LeasedJob(owner=key, epoch=1, kind=states.CAPTURE, capture=scrape_bench.StandInCapture())
        node.worker.leases.jobs[job.key] = job
        node.worker._running[states.CAPTURE] += 1
    await node.worker.leases._note_progress()
    text = await read(node)
    found = scrapes.series(text)
    assert (found['recorder_jobs_running{kind="capture"}'], found["recorder_leases_held"]) == (CAPTURES, CAPTURES)
    assert found["recorder_capture_bytes_total"] - before["recorder_capture_bytes_total"] == CAPTURES * 1_000_000
    # The first scrape itself is counted once its answer has been read.
    assert [name for name in found.keys() - before.keys() if 'route="/metrics"' not in name] == []
    node.worker.leases.jobs.clear()
    assert await scrapes.promtool("check", "metrics", given=text.encode()) == (0, "")


async def test_a_node_knows_its_backlog(node: nodes.Node) -> None:
    """The first scrape waits a moment for the figures of the database; each name of the catalog is one of its series."""

    async def figures() -> dict[str, float]:
        found = scrapes.series(await read(node))
        return found if "recorder_can_accept" in found else {}

    found = await waiting.until(figures, 10, "the figures of the database")
    assert (found["recorder_can_accept"], found["recorder_ready"], found['recorder_sessions{state="Open"}']) == (1, 1, 0)
    assert found["recorder_spool_free_bytes"] > found["recorder_spool_needed_bytes"] > 0
    assert found['recorder_attention{cause="disk-low"}'] == 0
    assert found['recorder_parked_messages{place="database"}'] == 0
    names = {re.sub(r"_(?:bucket|count|sum)$", "", name.partition("{")[0]) for name in found}
    absent = {
        name
        for name, described in metrics.CATALOG.items()
        if name not in names and not (described.type != "gauge" and described.labels)
    }
    assert absent == {"recorder_workers_alive"}, "only the distributed engine has it"


class FailingDatabase:
    """Parts of a node whose database fails."""

    def __init__(self, node: nodes.Node) -> None:
        self.reads = 0
        self._node = node

    async def read(self) -> Any:
        """Fail."""
        self.reads += 1
        raise errors.Unavailable("The database does not answer.")

    async def check_capacity(self) -> tuple[str, ...]:
        """No warning."""
        return ()


async def test_an_outage_ends_no_scrape(node: nodes.Node) -> None:
    """Without figures of the database a scrape has the others, and the task goes on."""
    failing = FailingDatabase(node)
    parts = gauges.Parts(
        settings=node.settings, clock=node._clock, read=failing.read, check_capacity=failing.check_capacity, ready=list,
        parked=tuple, view=None, causes=lambda: {attention.NO_WORKER: 1}, worker=node.worker, capacity=node.capacity,
    )  # fmt: skip
    made = gauges.NodeMetrics(parts)
    await made.start()
    found = scrapes.series(metrics.text(await made.gauges()).decode())
    await made.stop()
    assert failing.reads == 1
    assert found['recorder_attention{cause="no-worker"}'] == 1
    assert [name for name in found if name.startswith(("recorder_sessions{", "recorder_can_accept"))] == []
    assert made.task.failed is not None
    assert not made.task.failed.done()
