"""Following untidy streams: what a follower makes of each kind has the bytes of the transcode from the finished segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import growth, recipe_judge, recipe_source, recipes
from media import transcode
from tests import flv_source, quick_following

RESHAPED = "a track changes its format"
GIVEN_UP = {
    "header-of-the-sound-comes-late": "a configuration came after its packets",
    "another-shape": RESHAPED,
    "aac-then-g711": RESHAPED,
    "avc-then-hevc": RESHAPED,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are joined some seconds after their arrival."""
    for module, figures in quick_following.FIGURES.items():
        for name, value in figures.items():
            monkeypatch.setattr(module, name, value)


async def outcome(recipe: Any, name: str, folder: Path) -> str:
    """Why following gave up; "" for the same file."""
    segments, _ = recipes.captured(recipe.make(), "02", folder, name)
    (folder / "growing").mkdir()
    made = await transcode.Transcoder(flv_source.FFMPEG).transcode(segments, "02", folder / "afterwards.mp4")
    found = await growth.followed(segments, "02", folder / "growing")
    if found.made is None:
        return found.why
    same = found.made.path.read_bytes() == made.path.read_bytes() and replace(found.made, path=made.path) == made
    return "" if same else "another file"


async def test_a_follower_joins_a_second_pull_in_a_pause(tmp_path: Path, quick: None) -> None:
    """The server ends the connection while the publisher pauses, and hands the next pull its last group of pictures again. Each
    picture and each beep is in the file once, where it was live."""
    recipe = recipe_source.own()["plain"]
    broadcast = recipe.make()
    broadcast.tags = [tag for tag in broadcast.tags if tag.header or not 2_000 <= tag.due < 7_000]
    broadcast.drop_at = [2_500]
    segments, sent = recipes.captured(broadcast, "02", tmp_path, "a pause")
    assert len(segments) == 2
    made = await transcode.Transcoder(flv_source.FFMPEG).transcode(segments, "02", tmp_path / "afterwards.mp4")
    assert recipe_judge.faults(made, "02", recipe, sent, recipes.BEGAN_MS) == []
    (tmp_path / "growing").mkdir()
    followed = await growth.followed(segments, "02", tmp_path / "growing")
    assert followed.made is not None, followed.why
    assert followed.made.path.read_bytes() == made.path.read_bytes()


async def test_a_follower_makes_the_same_file_or_gives_up(tmp_path: Path, quick: None) -> None:
    """For each kind of disorder the follower makes the transcode's file to the byte, or says why it cannot."""
    found = {}
    for name, recipe in recipe_source.own().items():
        (tmp_path / name).mkdir()
        found[name] = await outcome(recipe, name, tmp_path / name)
    assert {name: why for name, why in found.items() if why} == GIVEN_UP
    assert found.keys() > GIVEN_UP.keys()
