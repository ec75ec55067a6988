"""The console's texts and templates: both languages are complete, every text is used, and no page needs more than its files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from machine import api_keys, attention, states
from web import bulk, nodes, operator_models, stuck
from web.console import frame, texts

FOLDER = Path(frame.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))
CATALOG = texts.load()
# Texts whose keys are put together: the beginning, and the words that may follow.
RULES = {rule.name for rules in (stuck.SESSION_RULES, stuck.RECORDING_RULES, stuck.DELIVERY_RULES) for rule in rules}
MADE_OF = {
    "state.": {*states.SESSION_STATES, *states.RECORDING_STATES},
    "end.": set(states.END_REASONS),
    "code.": set(states.OUTCOMES) - {states.UPLOAD_PENDING},
    "cause.": {*RULES, *attention.CAUSES},
    "todo.": {*RULES, *attention.CAUSES},
    "nav.": {name for name, _ in frame.NAVIGATION},
    "nodes.state.": set(operator_models.NODE_STATES),
    "nodes.kind.": {states.TRANSCODE, states.UPLOAD, states.DELIVERY},
    **{f"nodes.{part}.": set(nodes.ACTIONS) for part in ("do", "about", "did")},
    **{f"parked.{part}.": {"requeue", "drop"} for part in ("do", "did")},
    "parked.in.": {"queue", "outbox"},
    "parked.drop.": {"title", "what", "yes"},
    "keys.revoke.": {"title", "what", "yes", "do"},
    "keys.scope.": set(api_keys.SCOPES),
    **{f"bulk.{part}.": set(bulk.SUMMARIES) for part in ("link", "title", "what", "none", "do")},
}


def sources() -> str:
    """Everything that can use a text."""
    return "".join(path.read_text(encoding="utf-8") for path in (*TEMPLATES, *sorted(FOLDER.glob("[a-z]*.py"))))


def test_both_languages_have_every_text() -> None:
    """Each key has an English and a Chinese text with the same values, and the Chinese one has Chinese characters."""
    for key, both in CATALOG.items():
        english, chinese = both
        assert english, key
        assert re.search(r"[\u4e00-\u9fff]", chinese) or english == chinese, key
        values = [set(re.findall(r"\{(\w+)\}", text)) for text in both]
        assert values[0] == values[1], key


@pytest.mark.parametrize("beginning", MADE_OF)
def test_every_word_of_the_service_has_a_text(beginning: str) -> None:
    """States, reasons, codes and causes each have a text, and no text is for a word that the service does not have."""
    has = {key.removeprefix(beginning) for key in CATALOG if key.startswith(beginning)} - {"next", "main"}
    assert has == MADE_OF[beginning]


def test_every_text_is_used() -> None:
    """Each key is in a template or in the code, or is put together there from a beginning and a word."""
    source = sources()
    words = {one or other for one, other in re.findall(r""""([\w.-]+)"|'([\w.-]+)'""", source)}
    beginnings = set(re.findall(r'"((?:[a-z]+\.)+)" ~', source))

    def used(key: str) -> bool:
        parts = [key[: dot.end()] for dot in re.finditer(r"\.", key)]
        made = any(part in beginnings and key.removeprefix(part) in words for part in parts)
        return key in words or made or key.startswith(tuple(MADE_OF)) or re.fullmatch(r"error\.\d{3}", key) is not None

    assert [key for key in CATALOG if not used(key)] == []
    asked = set(re.findall(r"""\bt\(["']([\w.-]+)["'][,)]""", source))
    assert asked - CATALOG.keys() == set()


def test_a_key_of_two_files_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pages cannot have different texts under one key."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"same": ["x", "y"]}), encoding="utf-8")
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="same"):
        texts.load()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_no_inline_code(path: Path) -> None:
    """A template has no inline script, style or event handler, which the policy refuses, and no text that is marked as safe."""
    source = path.read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|\|\s*safe\b|autoescape|javascript:", source) == []
    assert re.findall(r"""(?:src|href|action)=["'](?!/console|\{\{|#)[^"']*""", source) == []


def test_a_language_is_chosen_by_the_browser() -> None:
    """The first of the browser's languages that the console has counts, and English if it has none."""
    assert [texts.preferred(given) for given in ("zh-CN,zh;q=0.9,en;q=0.8", "de,en-GB;q=0.7,zh;q=0.1", "fr", "")] == [
        "zh",
        "en",
        "en",
        "en",
    ]


def test_a_link_leads_to_no_other_site() -> None:
    """Only paths of the console are followed after an action or a sign-in."""
    for path in ("/console", "/console/sessions?room=a%20b&state=Open", "/console?x"):
        assert frame.own_path(path) == path
    for path in (
        "//evil.example",
        "/console\\evil",
        "https://evil.example/console",
        "/consoles",
        "/console/a b",
        "",
        "/sessions",
    ):
        assert frame.own_path(path) == "/console"
