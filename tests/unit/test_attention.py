"""What needs attention beyond single sessions: workers, spools, clocks, dead letters, rows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from machine import attention, database_clock
from web import stuck

NOW_MS, ALIVE_MS = 1_800_000_000_000, 60_000


def node(name: str, *, ago_ms: int = 1_000, free: int | None = 10 << 30, needed: int | None = 1 << 30) -> attention.NodeView:
    return attention.NodeView(node=name, seen_ms=NOW_MS - ago_ms, free_bytes=free, needed_bytes=needed)


def causes(*nodes: attention.NodeView) -> list[tuple[str, str]]:
    return [(each.cause, each.subject) for each in attention.of_nodes(nodes, NOW_MS, ALIVE_MS)]


def test_a_healthy_cluster_needs_nothing() -> None:
    """One living worker with space is enough; nodes that stopped long ago do not matter."""
    assert causes(node("w1"), node("w2", ago_ms=ALIVE_MS + 1, free=0), node("api", needed=None, free=None)) == []


def test_no_worker_is_alive() -> None:
    """The time is that of the last worker's heartbeat; a living api is no worker."""
    (found,) = attention.of_nodes([node("w1", ago_ms=ALIVE_MS + 1), node("api", needed=None)], NOW_MS, ALIVE_MS)
    assert (found.cause, found.since_ms) == ("no-worker", NOW_MS - ALIVE_MS - 1)
    assert "`recorder serve --roles=worker`" in found.next
    assert causes() == [("no-worker", "")]


def test_spools() -> None:
    """A full spool and one that cannot be read are two causes, each of its node."""
    assert causes(node("w1"), node("w2", free=5), node("w3", free=None)) == [("disk-low", "w2"), ("spool-unreadable", "w3")]


@pytest.mark.parametrize(("skew_ms", "told"), [(None, ""), (999, ""), (1_000, "1.0 s ahead of"), (-61_500, "61.5 s behind")])
def test_clocks(skew_ms: int | None, told: str) -> None:
    """A clock counts as off as soon as its own node warns of it, also that of a node without a worker."""
    api = replace(node("api", needed=None, free=None), skew_ms=skew_ms)
    found = attention.of_nodes([node("w1"), api, replace(api, node="gone", seen_ms=0)], NOW_MS, ALIVE_MS)
    assert [(each.cause, each.subject) for each in found] == ([("clock-off", "api")] if told else [])
    assert all(told in each.why and database_clock.off(skew_ms or 0) in each.why for each in found)


def test_dead_letters() -> None:
    """The number, whether there are more, and the commands."""
    assert attention.of_parked(attention.IN_BROKER, 0) == []
    (one,), (many,) = attention.of_parked("database", 1, 5), attention.of_parked("database", 1_000, more=True)
    assert (one.cause, one.subject, one.since_ms, one.why.startswith("1 message is parked")) == ("parked", "database", 5, True)
    assert many.why.startswith("More than 1000 messages are parked")
    assert "`recorder parked list`" in many.next


def test_texts() -> None:
    """One line begins with its cause; a node's own warning stays as it is. No line names a subject."""
    assert attention.of_row("sessions", "01J").text.startswith("row-unreadable: A row of the table sessions cannot be read")
    assert "01J" not in attention.of_row("sessions", "01J").text
    assert attention.Attention(cause=attention.NODE_WARNING, why="A queue is full.").text == "A queue is full."


RULES = {rule.name: rule for rule in (*stuck.DELIVERY_RULES, *stuck.RECORDING_RULES, *stuck.SESSION_RULES)}
HEADINGS = {"operate.md": "### What needs attention", "operate.zh-CN.md": "### 需要处理的问题"}


def tables(page: str) -> list[dict[str, tuple[str, str]]]:
    """The tables of the section: cause → meaning and action."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    section = re.split(r"\n##+ ", text.split(HEADINGS[page], 1)[1], maxsplit=1)[0]
    blocks = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = [[line.strip("|").split(" | ") for line in block.splitlines()[2:]] for block in blocks]
    return [{cells[0].strip(" `"): (cells[1].strip(), cells[2].strip()) for cells in table} for table in rows]


@pytest.mark.parametrize("page", HEADINGS)
def test_the_page_has_every_cause_and_its_command(page: str) -> None:
    """The tables have the causes and rules of the code, and no others; the commands of a finding are in its action."""
    beyond, rules = tables(page)
    assert (set(beyond), set(rules)) == ({*attention.CAUSES}, {*RULES})
    low, hung, off = node("w", free=5), node("w", free=None), replace(node("w"), skew_ms=9_000)
    samples = [*attention.of_nodes([low, hung, off], NOW_MS, ALIVE_MS), *attention.of_nodes([], NOW_MS, ALIVE_MS)]
    samples += [*attention.of_parked("database", 1), attention.of_row("sessions", "01J")]
    assert {sample.cause for sample in samples} == {*attention.CAUSES} - {attention.NODE_WARNING}
    for sample in samples:
        commands = {" ".join(words.split()) for words in re.findall(r"`((?:recorder|timedatectl) [^`]+)`", sample.next)}
        assert all(command in beyond[sample.cause][1] for command in commands), sample
    assert all(action for _, action in (*beyond.values(), *rules.values()))


def test_the_page_has_the_meaning_of_each_rule() -> None:
    """The sentence of the code is that of the page."""
    _, rules = tables("operate.md")
    assert {name: meaning for name, (meaning, _) in rules.items()} == {name: rule.meaning for name, rule in RULES.items()}
