"""The reasons for the end of a job: one closed list, and no literal of it anywhere else."""

from __future__ import annotations

import ast
from pathlib import Path

from events import codec
from machine import reasons
from tests import ast_helpers

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("machine", "handlers", "worker", "store", "bus", "media", "tencent", "webhook", "assembly")
# The same words with another meaning, by package.
OTHER_MEANING = {
    ("handlers", "refused"): "the suffix of a reply's id",
    ("machine", "ok"): "the outcome of an audited action",
    ("machine", "refused"): "the outcome of an event, in a metric",
    ("machine", "status"): "a label of metrics",
    ("store", "ok"): "the outcome of an audited action",
    ("assembly", "ok"): "the outcome of an audited action",
    ("store", "timeout"): "an option of a database connection",
    ("media", "error"): "the level of an RTMP status",
}


def literals(source: str, values: set[str]) -> set[str]:
    """The string literals of a module, docstrings excluded, that are one of `values`."""
    found = ast.walk(ast_helpers.parse(source))
    return {node.value for node in found if isinstance(node, ast.Constant) and node.value in values}


def test_no_module_holds_a_reason_as_a_literal() -> None:
    """A reason is written as `Reason.X`, so that a typo fails at import. `worker-lost` is also the type of an event."""
    values = {str(reason) for reason in reasons.Reason} - set(codec.types())
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {literal}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "reasons.py" and "versions" not in path.parts
        for literal in literals(path.read_text(encoding="utf-8"), values)
        if (package, literal) not in OTHER_MEANING
    ]
    assert found == []
    assert literals("raise Failed(reason='eof')", values) == {"eof"}, "a literal would be found"


def test_reasons_fit_the_wire_and_the_column() -> None:
    """A reason is a slug of at most 64 characters, as the schema and the database allow."""
    for reason in reasons.Reason:
        assert len(reason) <= 64
        assert reason == reason.lower()
        assert not set(reason) - set("abcdefghijklmnopqrstuvwxyz-")
