"""The benchmark `bench.engine`: the bare loops write what the engine writes, and the report counts as it says."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

from bench import engine_report, meter, peer_runs, replay, write_log
from tests import ast_helpers


def rows(path: Path) -> dict[str, list[str]]:
    """Every row of the store's tables, with ids and times blanked, because they differ from life to life."""
    found = {}
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table not in ("alembic_version", "bench_writes", "sqlite_sequence"):
            found[table] = sorted(blank(dict(row)) for row in connection.execute(f"SELECT * FROM {table}"))
    connection.close()
    return found


def blank(row: dict[str, Any]) -> str:
    """One row without what differs from life to life."""
    text = json.dumps({name: value for name, value in row.items() if name != "seq"}, sort_keys=True)
    text = re.sub(r"\"fingerprint\": \"[^\"]+\"", "*", text)
    return re.sub(
        r"\b[0-9A-HJKMNP-TV-Z]{26}\b|\b\d{10,}\b|\d{4}-\d\d-\d\dT[\d:.]+|\"body\": \"[\w=-]{40,}\"|\"key_id\": \"\w+\"", "*", text
    )


async def test_a_replayed_life_leaves_the_rows_of_the_engine(tmp_path: Path) -> None:
    """Two lives of the engine and two replayed ones leave the same rows, except for ids and times."""
    steps = await write_log.record(tmp_path)
    path = tmp_path / "replayed.db"
    await replay.create_tables(f"sqlite+aiosqlite:///{path}")
    loop = replay.ReplayFile(path, steps)
    done, _ = await loop.run(0.0001, 2)
    await loop.close()
    assert done == 2 * len(steps) == 12
    assert rows(path) == rows(tmp_path / "recorded.db")


async def test_commits_of_a_file_are_counted(tmp_path: Path) -> None:
    """Each commit that writes counts once; a read and a rollback count nothing."""
    path = tmp_path / "counted.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (n INTEGER)")
    commits = meter.CommitsOfFile(path)
    since = await commits.position()
    for _ in range(3):
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        connection.execute("COMMIT")
    connection.execute("SELECT * FROM t").fetchall()
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t VALUES (3)")
    connection.execute("ROLLBACK")
    assert commits.between(since, await commits.position()) == 3
    connection.close()


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """Each round is divided on its own: a slow round of both parts changes no ratio."""
    rounds = [
        {"bare transaction": {"per_s": bare, "cpu_ms": 0.1}, "decided": {"per_s": decided, "cpu_ms": 0.3}}
        for bare, decided in ((1000.0, 600.0), (100.0, 60.0), (1000.0, 900.0))
    ]
    report = engine_report.Report({"embedded": rounds}, seconds=1.0, remarks=["quiet"], rows={"inbox insert": 1.0})
    ratios = report.as_json()["ratios"]["embedded"]
    assert ratios["decided / bare transaction"] == {"median": 0.6, "least": 0.6, "most": 0.9, "target": "≥ 0.5"}
    assert round(ratios["CPU: decided / bare transaction"]["median"], 6) == 3.0
    assert "over RabbitMQ / bare transaction" not in ratios, "a part that did not run has no ratio"
    assert report.text().index("decided / bare transaction") < report.text().index("per second"), "ratios come first"


def test_a_section_replaces_its_predecessor() -> None:
    """A section is written before the others at first, and later over itself, with its row in the table; the rest stays."""
    table = "# Figures\n\n| section | date |\n|---|---|\n{row}| [Other](#other) | 1 |\n\n"
    page, row = table.format(row="") + "## Other\n\nold\n", "| [Engine](#engine) | 2 |"
    once = engine_report.with_section(page, "## Engine\n\none\n", row)
    assert once == table.format(row=row + "\n") + "## Engine\n\none\n\n## Other\n\nold\n"
    again = engine_report.with_section(once, "## Engine\n\ntwo\n", row.replace("2", "3"))
    assert again == once.replace("one", "two").replace(row, row.replace("2", "3"))
    last = table.format(row=row + "\n") + "## Other\n\nold\n\n## Engine\n\none\n"
    assert engine_report.with_section(last, "## Engine\n\ntwo\n", row) == last.replace("one", "two")


def test_peers_are_pinned_and_know_nothing_of_the_recorder() -> None:
    """Each peer has a program and pinned requirements; of this project it imports its measurement alone."""
    folder = Path(peer_runs.__file__).parent
    programs = {peer.program for peer in peer_runs.PEERS}
    assert {path.stem for path in folder.glob("peers/*_life.py")} == programs
    pinned = set(re.findall(r"^([a-z0-9-]+)==", peer_runs.REQUIREMENTS.read_text("utf-8"), re.MULTILINE))
    asked = re.findall(r"^([a-z0-9-]+)", (folder / "peers.in").read_text("utf-8"), re.MULTILINE)
    assert set(asked) <= pinned
    packages = {path.parent.name for path in folder.parent.glob("*/__init__.py")}
    for path in folder.glob("peers/*.py"):
        modules = {
            node.module for node in ast.walk(ast_helpers.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)
        }
        ours = {module for module in modules if module and module.partition(".")[0] in packages}
        assert ours <= {"bench", "bench.peers"}, path


def test_a_round_without_a_peer_leaves_the_others_their_figures() -> None:
    """A peer that failed in one round has the figures of the other rounds, and the report repeats the reason."""
    base = {"bare transaction": {"per_s": 100.0}, "decided": {"per_s": 60.0}}
    name = f"{engine_report.PEER}{peer_runs.PEERS[0].name}"
    report = engine_report.Report(
        {"distributed": [base, base | {name: {"per_s": 20.0}}]}, seconds=1.0, remarks=["it ended with 1"], rows={}
    )
    ratios = report.as_json()["ratios"]["distributed"]
    assert ratios[f"decided / {peer_runs.PEERS[0].name}"]["median"] == 3.0
    assert "it ended with 1" in report.text()
