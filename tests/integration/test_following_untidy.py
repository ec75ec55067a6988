"""Following untidy streams: what a follower makes of each kind has the bytes of the transcode from the finished segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import growth, recipe_source, recipes
from media import transcode
from tests import flv_source, quick_following

ENCODED = "a track has to be encoded as a whole"
RESHAPED = "a track changes its format"
GIVEN_UP = {
    "another-shape": RESHAPED,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are joined some seconds after their arrival."""
    for module, figures in quick_following.FIGURES.items():
        for name, value in figures.items():
            monkeypatch.setattr(module, name, value)


async def outcome(name: str, folder: Path) -> str:
    """Why following gave up; "" for the same file."""
    recipe = recipe_source.own()[name]
    segments, _ = recipes.captured(recipe.make(), "02", folder, name)
    (folder / "growing").mkdir()
    made = await transcode.Transcoder(flv_source.FFMPEG).transcode(segments, "02", folder / "afterwards.mp4")
    found = await growth.followed(segments, "02", folder / "growing")
    if found.made is None:
        return found.why
    same = found.made.path.read_bytes() == made.path.read_bytes() and replace(found.made, path=made.path) == made
    return "" if same else "another file"
