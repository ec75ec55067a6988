"""Plain language in documents, docstrings and comments: the field's words, and none of the project's old dialect.

Rule: a pattern is forbidden in every file, old or new. Rates use the definitions of `bench/source_text.py`, so that this test and
the benchmark agree.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from bench import source_text
from tests import ast_helpers

ROOT = Path(__file__).parents[2]
DIALECT = {
    r"\banew\b": "again, or the verb itself",
    r"\b(?:of|by) ours\b": "our own, or the name of the thing",
    r"\bbeside (?:it|them|him|another|that|this|these|those|what)\b": "next to, in addition to",
    r"\b(?:lies|lie|lay) (?:in|on|there|here|with|under)\b": "is in, is on",
    r"\bstands? (?:in|on|there|behind|for itself)\b": "is in, is on",
    r"\b(?:is|are|was|were|be|been) (?:said|told)\b": "is reported, is published",
    r"\bsigns? of life\b": "heartbeat",
    r"\bin vain\b": "failed, without a result",
    r"\bby itself alone\b": "alone",
    r"\brooms? of the house\b": "package",
    r"\b(?:imports?|knows?) this room\b|\broom's door\b|\bpure rooms?\b": "package",
    r"\bfault points?\b": "failpoint",
    r"\b(?:un)?seal(?:s|ed|ing|able)?\b": "encrypt, decrypt",
}
"""Pattern → the plain word for it."""
FREE_CLAUSES_PER_1000 = 0.5
RETRIES_PER_1000 = 1.5
QUESTION_HEADERS_PERCENT = 3.0


@functools.cache
def prose() -> tuple[tuple[str, str], ...]:
    """(file, paragraph) of everything that a person reads in this tree, without code spans and code blocks."""
    found = []
    for name in source_text.files(ROOT):
        path = ROOT / name
        if not path.is_file() or path == Path(__file__):
            continue
        if name.endswith(".py"):
            text = source_text.read(path)
            found += [(name, source_text.CODE_SPAN.sub("", p)) for p in source_text.explanations(ast_helpers.parse(text), text)]
        elif name.endswith(".md") and not name.endswith(".zh-CN.md"):
            found.append((name, source_text.plain(source_text.read(path))))
    return tuple(found)


@pytest.mark.parametrize("pattern", DIALECT)
def test_no_text_uses_the_old_dialect(pattern: str) -> None:
    """A reader who knows queues and media need not translate: each pattern has a plain word."""
    found = [f"{name}: {hit.group()!r}" for name, text in prose() for hit in re.finditer(pattern, text, re.IGNORECASE)]
    assert found == [], f"write: {DIALECT[pattern]}"


def test_rates_of_documents_and_headers() -> None:
    """Documents name things instead of paraphrasing them, and speak of retries; headers name their subject."""
    figures = source_text.figures(ROOT)
    assert figures['documents: free "what is …" clauses, per 1,000 words'] <= FREE_CLAUSES_PER_1000
    assert figures['docstrings, comments: free "what is …" clauses, per 1,000 words'] <= FREE_CLAUSES_PER_1000
    assert figures["documents: retry, backoff, per 1,000 words"] >= RETRIES_PER_1000
    assert figures["module headers with What/Who/How/Why/Where, %"] <= QUESTION_HEADERS_PERCENT


OLD = (
    "written anew",
    "a module of ours",
    "the file beside it",
    "the copy lies on the disk",
    "it stands in the outbox",
    "nobody was told",
    "no sign of life",
    "a try in vain",
    "by itself alone",
    "the rooms of the house",
    "imports this room",
    "a fault point",
    "sealed",
)
PLAIN = "The relay publishes the message again after a backoff, and the inbox deduplicates the repeated event."


@pytest.mark.parametrize(("phrase", "pattern"), list(zip(OLD, DIALECT, strict=True)))
def test_each_pattern_finds_its_phrase(phrase: str, pattern: str) -> None:
    """Each pattern finds the phrase that it was made for, and leaves a plain sentence alone."""
    assert re.search(pattern, phrase, re.IGNORECASE)
    assert not re.search(pattern, PLAIN, re.IGNORECASE)
