"""The table of failpoints, compared with the code and the documents."""

from __future__ import annotations

import ast
from pathlib import Path

from machine import failpoints
from tests import ast_helpers
from tests.chaos import plans

ROOT = Path(__file__).parents[2]
ROOMS = ("assembly", "bus", "tencent", "webhook", "handlers", "worker", "machine", "media", "store", "web")


def called() -> set[str]:
    """The names of all failpoints in the code."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast_helpers.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit":
                    (name,) = node.args
                    assert isinstance(name, ast.Constant), f"{path.name}:{node.lineno} names no point"
                    found.add(str(name.value))
    return found


def test_every_point_of_the_table_is_in_the_code_and_every_one_in_the_code_in_the_table() -> None:
    """Every described crash can be made to happen, and every failpoint is described."""
    assert called() == set(failpoints.POINTS)
    assert set(failpoints.POINTS) > failpoints.DISTRIBUTED_ONLY


def test_every_point_is_in_the_documents_table() -> None:
    """docs/failpoints.md has the consequence of a crash at every failpoint, in the words of the code."""
    text = (ROOT / "docs" / "failpoints.md").read_text(encoding="utf-8")
    assert [name for name, meaning in failpoints.POINTS.items() if f"| `{name}` | {meaning} |" not in text] == []


def test_a_point_is_nothing_without_a_harness_and_calls_one_with_its_name() -> None:
    """An installed harness receives every name; after removal it receives none."""
    heard: list[str] = []
    failpoints.install(heard.append)
    try:
        failpoints.hit("inbox.claim.before")
    finally:
        failpoints.install(None)
    failpoints.hit("inbox.claim.after")
    assert heard == ["inbox.claim.before"]


def test_plans_strike_every_point_of_an_engine() -> None:
    """The groups of a seed contain every failpoint once, and as many consecutive seeds as failpoints strike each of them."""
    for engine in plans.ENGINES:
        names = plans.points(engine)
        assert sorted(s.point for plan in plans.grouped(engine, 1) for s in plan.strikes) == sorted(names)
        assert {plans.make(engine, seed).strikes[0].point for seed in range(len(names))} == set(names)
        assert plans.make(engine, 7) == plans.make(engine, 7)


def test_only_plans_on_a_bounded_spool_strike_its_points() -> None:
    """A strike at a point of a bounded spool finds one, on the embedded engine; half of the followed runs do."""
    made = [plans.make(plans.EMBEDDED, seed) for seed in range(200)]
    for plan in (*made, *plans.grouped(plans.EMBEDDED, 1)):
        strikes = {strike.point for strike in plan.strikes} & failpoints.BOUNDED_ONLY
        assert not strikes or (plan.bounded and plan.follow and plan.capture == plans.NATIVE), plan.repeat
    followed = [plan for plan in made if plan.follow]
    assert 0.3 < sum(plan.bounded for plan in followed) / len(followed) < 0.8
    assert not any(plans.followed(plans.make(plans.DISTRIBUTED, seed), bounded=True).bounded for seed in range(9))
