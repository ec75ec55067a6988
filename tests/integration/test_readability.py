"""The benchmark `bench.readability`: exact figures of a small tree, and a smoke run on this one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bench import call_paths, readability, source_text

ROOT = Path(__file__).parent.parent.parent
MODULE = (
    '''"""What it is for. Two words: retry, backoff."""

import typing


class Reader(typing.Protocol):
    """One method."""

    def read(self) -> bytes: ...


class File:
    """Told and said."""

    def read(self) -> bytes:
        # It lies where
        # it stands: what
        # was sealed anew.
        return b"retry"  # noqa: X1 - what is of ours


def long() -> int:
    """A function of 61 lines."""
    number = 0
'''
    + "    number += 1\n" * 57
    + "    return number\n"
)
DOCUMENT = """# Words

What is this? It shows what is sent and
what was retried. `what is code`

```sh
echo what is code
```
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout of two modules, a test and two documents."""
    files = {
        "queue/reader.py": MODULE,
        "queue/plain.py": '"""Plain."""\n',
        "tests/test_reader.py": "\n" * 7,
        "bench/speed.py": "\n" * 1000,
        "README.md": DOCUMENT,
        "README.zh-CN.md": "what is this\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    return tmp_path


def test_the_text_figures_of_a_small_tree_are_exact(tree: Path) -> None:
    """Sizes, Protocols, headers and rates follow the definitions; code and questions do not count."""
    found = source_text.figures(tree)
    assert found["source lines"] == MODULE.count("\n") + 1
    assert (found["source files"], found["source files over 400 lines"]) == (2, 0)
    assert found["functions over 60 lines"] == 1
    assert (found["test lines"], found["test files"]) == (7, 1)
    assert (found["Protocols"], found["Protocols with one implementation"]) == (1, 1)
    assert found["module headers with What/Who/How/Why/Where, %"] == 50
    counted = {}
    for name, rate in found.items():
        place, _, form = name.partition(": ")
        if form.endswith(", per 1,000 words"):
            counted[place, form.removesuffix(", per 1,000 words")] = round(rate * found[f"{place}: words"] / 1000)
    documents, prose = "documents", "docstrings, comments"
    assert found["documents: words"] == 13
    assert counted[documents, 'free "what is …" clauses'] == 2
    assert counted[documents, "retry, backoff"] == 1
    assert counted[prose, 'free "what is …" clauses'] == 1
    assert counted[prose, "retry, backoff"] == 2
    assert counted[prose, "of ours"] == 0
    assert {form for (place, form), count in counted.items() if place == prose and count == 1} == {
        'free "what is …" clauses', "seal", "anew", "stands", "lies", "told", "said",
    }  # fmt: skip


def test_a_smoke_run_measures_this_tree() -> None:
    """One pass through each path of this tree counts calls in several files and packages. The table has every figure, and below
    it is how busy the machine was."""
    written: list[str] = []
    readability.main([str(ROOT), "--repetitions", "1", "--runs", "1"], written.append)
    table = dict(line.rsplit("  ", 1) for line in written[0].splitlines()[2:])
    figures = {name.strip(): float(figure.replace(",", "")) for name, figure in table.items()}
    for title in call_paths.PATHS.values():
        for figure in call_paths.FIGURES:
            assert figures[f"{title}: {figure}"] >= 5
        assert figures[f"{title}: calls"] >= figures[f"{title}: functions"] >= figures[f"{title}: files"]
    assert figures["source lines"] > 10_000
    for kind in ("wall", "CPU"):
        assert figures[f"recorder --help: {kind} seconds"] > 0
        assert figures[f"recorder --help: {kind} ratio to the first tree"] == 1
    assert re.search(r"other work on the machine took \d+% of them", written[1]), written[1]
