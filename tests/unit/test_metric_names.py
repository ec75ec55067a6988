"""Names in alerts and dashboard: each metric is in the catalog, each label belongs to it, each runbook is a section."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from machine import metrics

ROOT = Path(__file__).parents[2]
# What Prometheus itself adds, and the process collector of the client library.
FOREIGN = re.compile(r"up|process_\w+|ALERTS")
ADDED_LABELS = {"job", "instance", "le"}
SUFFIXES = ("_bucket", "_count", "_sum")
METRIC = re.compile(r"\b(recorder_\w+|process_\w+|up)\b(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


def rules() -> list[dict[str, Any]]:
    """The rules of deploy/alerts.yml."""
    found = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in found["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """deploy/grafana.json."""
    found: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every alert and every panel."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def faults(expression: str) -> list[str]:
    """The names of an expression that no scrape has."""
    found = []
    for name, selectors in METRIC.findall(expression):
        if FOREIGN.fullmatch(name):
            continue
        series = next(
            (name.removesuffix(s) for s in SUFFIXES if name.endswith(s) and name.removesuffix(s) in metrics.CATALOG), name
        )
        described = metrics.CATALOG.get(series)
        if described is None or (described.type == "histogram") != (series != name):
            found.append(name)
        else:
            found += [f"{name}: {label}" for label in LABEL.findall(selectors) if label not in {*described.labels, *ADDED_LABELS}]
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_alerts_and_panels_name_metrics_that_exist() -> None:
    """Every metric in an alert or a panel is in the catalog, with the labels that it is selected by."""
    found = list(expressions())
    assert len(found) > 50
    assert [(where, fault) for where, expression in found for fault in faults(expression)] == []


@pytest.mark.parametrize(
    "expression",
    [
        "recorder_nothing > 0",
        "rate(recorder_gaps[5m])",
        'recorder_sessions{stat="Open"}',
        "rate(recorder_event_duration_seconds[5m])",
        "recorder_sessions_bucket",
    ],
)
def test_a_name_that_does_not_exist_is_noticed(expression: str) -> None:
    """A metric, a suffix or a label that no scrape has is found."""
    assert faults(expression)


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    """No metric is collected for nobody."""
    everything = "\n".join(expression for _, expression in expressions())
    assert [name for name in metrics.CATALOG if not re.search(rf"\b{name}(?:{'|'.join(SUFFIXES)})?\b", everything)] == []


def test_every_runbook_is_a_section() -> None:
    """The runbook of each alert is a section of docs/operate.md, and the section on alerts names the alert in both languages."""
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor in anchors(ROOT / page), rule["alert"]
    for page in ("operate.md", "operate.zh-CN.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in text] == [], page


def test_panels_do_not_overlap() -> None:
    """Each panel has an id and a place of its own, and the user chooses the source of the data."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in panels]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {target["datasource"]["uid"] for panel in panels for target in panel.get("targets", ())} == {"${datasource}"}
