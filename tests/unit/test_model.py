"""The values of decisions: a changed copy equals the one that dataclasses would make, and each field has a comment."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from machine import model
from tests import ast_helpers, examples

VALUES = (
    (examples.recording(output=model.Output(duration_ms=1, size_bytes=2)), {"state": "Failed", "job": None, "present": False}),
    (examples.session(), {"state": "Closing", "closing_ms": 5}),
    (model.Delivery(task_id=examples.TASK, revision=1, url="http://x/", body="{}"), {"state": "failed", "failures": 3}),
)


@pytest.mark.parametrize(("value", "changes"), VALUES)
def test_a_changed_copy(value: Any, changes: dict[str, Any]) -> None:
    """`changed` equals dataclasses.replace, leaves the old value untouched, and refuses an unknown field."""
    before = dataclasses.asdict(value)
    assert model.changed(value, **changes) == dataclasses.replace(value, **changes)
    assert dataclasses.asdict(value) == before
    with pytest.raises(TypeError):
        model.changed(value, speed=1)


def uncommented(source: str) -> list[str]:
    """The fields of a module's dataclasses that have a comment neither on their first line nor on the line above."""
    lines = source.splitlines()
    return [
        f"{kind.name}.{ast.unparse(field.target)}"
        for kind in ast.walk(ast_helpers.parse(source))
        if isinstance(kind, ast.ClassDef)
        for field in kind.body
        if isinstance(field, ast.AnnAssign)
        if "  # " not in lines[field.lineno - 1] and not lines[field.lineno - 2].lstrip().startswith("# ")
    ]


def test_every_field_has_a_comment() -> None:
    """A reader of the core's values learns each field's meaning and unit where it is defined."""
    assert uncommented(Path(model.__file__).read_text(encoding="utf-8")) == []
    assert uncommented("class A:\n    x: int\n    y: int  # the height\n    # The depth.\n    z: int\n") == ["A.x"]
