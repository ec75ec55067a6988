"""Texts of the console in both languages: `texts/<page>.json` has key → [English, Chinese].

Rule: a text is data. The template escapes it and the values in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

LANGUAGES = ("en", "zh")
HTML_LANGUAGE = {"en": "en", "zh": "zh-CN"}
FOLDER = Path(__file__).with_name("texts")


def load() -> dict[str, list[str]]:
    """Every text by its key. Raises ValueError for a key of two files."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        texts = json.loads(path.read_text(encoding="utf-8"))
        if twice := found.keys() & texts.keys():
            raise ValueError(f"{path.name}: other files have {', '.join(sorted(twice))} too")
        found |= texts
    return found


def translator(catalog: dict[str, list[str]], language: str) -> Callable[..., str]:
    """`t(key, **values)` of one language. Raises KeyError for an unknown key."""
    place = LANGUAGES.index(language)

    def translate(key: str, **values: object) -> str:
        text = catalog[key][place]
        return text.format(**values) if values else text

    return translate


def preferred(accepted: str) -> str:
    """The language of an Accept-Language header: Chinese if it comes before English, else English."""
    for part in accepted.lower().split(","):
        name = part.partition(";")[0].strip()[:2]
        if name in LANGUAGES:
            return name
    return LANGUAGES[0]
