"""Recipes of untidy streams, kept outside the project: what the native capture and the transcode make of each, in a table.

    python -m bench.recipes FOLDER --out var/recipes

The folder holds `flvkit.py` (tags and content) and `cases3.py`, which imports the recipes: `CASES` of name → recipe with `make`,
`modes`, `seconds` and `hold_s`. A recipe's broadcast is cut into tags by the HTTP-FLV reader of the capture and written by its
segment writer, with the arrival times of the recipe and up to 30 ms of jitter; no time passes. A server that ends the connection
is pulled again a second later. Recipes for RTMP alone (`r-…`) and those that need files of others (`srs-…`) are left out.

With `--service` the recipes go through the whole service instead, in real time, those for RTMP too (`bench/recipe_service.py`).
`--follow` lets that service follow within seconds. `--recorded` judges once more what an earlier run has kept in `--out`.

With `--follow` the segments also grow again, for a follower that joins packets within seconds (`tests/quick_following`). What it
makes must have the bytes of the transcode, which is made with the same distances; or it gives up, and says why.

Without a folder, the streams of `tests/untidy_streams.py` are judged in the same way. `bench/recipe_judge.py` has the rules.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import logging
import random
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import imageio_ffmpeg
import structlog

from bench import growth, noise, recipe_judge, recipe_service, recipe_source
from machine import errors
from media import flv, http_flv, joiner, segment_writer, transcode
from tests import quick_following

BEGAN_MS = 1_790_000_000_000
DIFFERS = "ANOTHER FILE"
MODES = tuple(recipe_judge.KINDS)
Judge = Callable[[Any, str, Path], Awaitable[tuple[str, str, str]]]
"""Takes a recipe, a mode and a folder; returns OK, told or FAIL, why, and what a follower made of it."""
_AGAIN_MS, _STALLED_MS, _JITTER_MS = 1_000, 10_000, 30.0


class _Loop:
    """Calls at once what the writer's thread would hand to an event loop."""

    def call_soon_threadsafe(self, function: Any, *given: Any) -> None:
        function(*given)


def captured(broadcast: Any, mode: str, folder: Path, seed: str) -> tuple[list[joiner.SegmentFile], list[Any]]:
    """The segments that native captures of a broadcast write, and the tags that they got."""
    chance = random.Random(seed)  # noqa: S311 - the same name gives the same jitter
    segments, tags = list[joiner.SegmentFile](), list[Any]()
    at_ms, number = 0.0, 0
    while True:
        number += 1
        pull = recipe_source.pull(broadcast, at_ms)
        path = folder / f"{number}.flv"
        base_ms = BEGAN_MS + round(at_ms)
        loop = cast("asyncio.AbstractEventLoop", _Loop())
        writer = segment_writer.SegmentWriter(path, mode, base_ms=base_ms, on_change=lambda: None, loop=loop)
        ended_ms = _write(writer, pull, at_ms, chance)
        tags += pull.tags
        noted = writer.progress
        if noted.media_ms:
            segments.append(
                joiner.SegmentFile(
                    path=path,
                    first_packet_ms=noted.first_packet_ms,
                    last_packet_ms=noted.last_packet_ms,
                    media_ms=noted.media_ms,
                    registered_ms=base_ms,
                    anchors=noted.anchors,
                )
            )
        again = ended_ms < pull.ends_ms or pull.dropped
        at_ms = max(ended_ms, pull.ends_ms if not again or pull.dropped else ended_ms) + _AGAIN_MS
        if not again or at_ms > broadcast.length():
            return segments, tags


def _write(writer: segment_writer.SegmentWriter, pull: recipe_source.Pull, from_ms: float, chance: random.Random) -> float:
    """Write one pull; returns when it ended."""
    splitter, now_ms, alive_ms, began = http_flv.TagSplitter(), from_ms, from_ms, False
    for due_ms, data in pull.pieces:
        now_ms = max(now_ms, due_ms + chance.random() ** 3 * _JITTER_MS)
        if began and now_ms - alive_ms > _STALLED_MS:
            break
        try:
            found = splitter.feed(data)
        except http_flv.NotFlv:
            break
        for kind, tag_ms, payload in found:
            if payload:
                writer.add(round(now_ms - from_ms), kind, tag_ms, payload)
                if flv.is_media(kind, payload):
                    alive_ms, began = now_ms, True
        writer.flush(now_ms / 1000)
    else:
        now_ms = max(now_ms, pull.ends_ms)
    writer.close()
    writer.flush(now_ms / 1000)
    return now_ms


async def outcome(recipe: Any, mode: str, folder: Path, *, follow: bool = False) -> tuple[str, str, str]:
    """OK, told or FAIL; why; and what a follower made of it."""
    recipe_service.empty(folder)
    broadcast = recipe.make()
    segments, tags = captured(broadcast, mode, folder, f"{recipe.name}.{mode}")
    if not segments:
        return *recipe_judge.nothing(broadcast.tags, mode), "–"
    output = folder / ("finished.mp3" if mode == "00" else "finished.mp4")
    try:
        made = await transcode.Transcoder(imageio_ffmpeg.get_ffmpeg_exe()).transcode(segments, mode, output)
    except errors.TranscodeFailed as error:
        return *(("told", error.detail) if error.reason == "no-media" else ("FAIL", error.detail)), "–"
    said = await _followed(segments, mode, folder, made) if follow else "–"
    faults = await asyncio.to_thread(recipe_judge.faults, made, mode, recipe, tags, BEGAN_MS)
    if faults or said == DIFFERS:
        return "FAIL", "; ".join(faults), said
    return *recipe_judge.word(made), said


async def _followed(segments: list[joiner.SegmentFile], mode: str, folder: Path, made: transcode.TranscodeOutput) -> str:
    """What a follower makes of the segments, compared with the file that was made of them afterwards."""
    growing = folder / "growing"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    found = await growth.followed(segments, mode, growing)
    if found.made is None:
        return f"gave up: {found.why}"
    if found.made.path.read_bytes() != made.path.read_bytes() or replace(found.made, path=made.path) != made:
        return DIFFERS
    return "the same file" + (f", begun {found.restarts + 1} times" if found.restarts else "")


def chosen(folder: Path | None, names: list[str], left_out: tuple[str, ...]) -> list[Any]:
    """The recipes of the folder, or the project's own streams."""
    if folder is None:
        every: dict[str, Any] = recipe_source.own()
    else:
        sys.path.insert(0, str(folder))
        every = importlib.import_module("cases3").CASES
    return [recipe for name, recipe in every.items() if not name.startswith(left_out) and (not names or name in names)]


async def run(recipes: Sequence[Any], modes: list[str], out: Path, judged: Judge, *, follow: bool) -> list[list[str]]:
    """A line for each recipe: its outcome in each mode, why, and what a follower made of it."""
    lines = []
    for recipe in recipes:
        cells, why, followers = [], [], []
        for mode in MODES:
            if mode not in recipe.modes or mode not in modes:
                cells.append("–")
                continue
            word, detail, said = await judged(recipe, mode, out / f"{recipe.name}.{mode}")
            cells.append(word)
            followers.append(f"{mode}: {said}")
            why += [f"{mode}: {detail}"] if detail else []
            print(f"{recipe.name}.{mode}: {word} {detail}{f' ({said})' if follow else ''}", file=sys.stderr, flush=True)
        lines.append([recipe.name, *cells, " · ".join(why), _together(followers)])
    return lines


async def _through_service(recipes: Sequence[Any], given: argparse.Namespace, out: Path) -> list[list[str]]:
    """The lines of `run` for the whole service."""
    runs = [
        recipe_service.Run(recipe=recipe, mode=mode, folder=out / f"{recipe.name}.{mode}")
        for recipe in recipes
        for mode in MODES
        if mode in recipe.modes and mode in given.modes
    ]
    if not given.recorded:
        for each in runs:
            recipe_service.empty(each.folder)
        await recipe_service.record(runs, out, at_once=given.at_once, follow=given.follow)
    return await run(recipes, given.modes, out, await recipe_service.Judge.of(runs, out), follow=given.follow)


def _together(followers: list[str]) -> str:
    """One cell for all modes; equal ones once."""
    by_words: dict[str, list[str]] = {}
    for mode, _, words in (each.partition(": ") for each in followers):
        by_words.setdefault(words, []).append(mode)
    return " · ".join(words if len(by_words) == 1 else f"{', '.join(modes)}: {words}" for words, modes in by_words.items())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", type=Path, nargs="?", help="the folder of the recipes")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--out", type=Path, default=Path("var/recipes"), help="where segments and finished files are kept")
    parser.add_argument("--follow", action="store_true", help="follow the segments while they grow, too")
    parser.add_argument("--service", action="store_true", help="through the whole service, in real time")
    parser.add_argument("--at-once", type=int, default=16, metavar="N", help="so many recipes are live in the service at once")
    parser.add_argument("--recorded", action="store_true", help="judge what an earlier run with --service has kept")
    given = parser.parse_args()
    if given.follow:
        quick_following.shorten()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    quiet = noise.Noise()
    recipes = chosen(given.recipes, given.only, ("srs-",) if given.service else ("r-", "srs-"))
    out = given.out.absolute()
    if given.service:
        lines = asyncio.run(_through_service(recipes, given, out))
    else:
        judged = functools.partial(outcome, follow=given.follow)
        lines = asyncio.run(run(recipes, given.modes, out, judged, follow=given.follow))
    cells = [cell for line in lines for cell in line[1:4]]
    shown = [line[:4] + line[5:] * given.follow for line in lines]
    print(noise.table(["recipe", "mode 00", "mode 01", "mode 02", *["following"] * given.follow], shown))
    print(", ".join(f"{cells.count(word)} {word}" for word in ("OK", "told", "FAIL")))
    for name, *_, why, _ in lines:
        if why:
            print(f"{name} {why}")
    print(quiet)


if __name__ == "__main__":
    main()
