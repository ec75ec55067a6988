"""Recipes of untidy streams, kept outside the project: what the native capture and the transcode make of each, in a table.

    python -m bench.recipes FOLDER --out var/recipes

The folder holds `flvkit.py` (tags and content) and `cases3.py`, which imports the recipes: `CASES` of name → recipe with `make`,
`modes`, `seconds` and `hold_s`. A recipe's broadcast is cut into tags by the HTTP-FLV reader of the capture and written by its
segment writer, with the arrival times of the recipe and up to 30 ms of jitter; no time passes. A server that ends the connection
is pulled again a second later. Recipes for RTMP alone (`r-…`) and those that need files of others (`srs-…`) are left out.

With `--follow` the segments also grow again, for a follower that joins packets within seconds (`tests/quick_following`). What it
makes must have the bytes of the transcode, which is made with the same distances; or it gives up, and says why.

Without a folder, the streams of `tests/untidy_streams.py` are judged in the same way. `bench/recipe_judge.py` has the rules.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import imageio_ffmpeg
import structlog

from bench import growth, noise, recipe_judge, recipe_source
from machine import errors
from media import codecs, flv, http_flv, joiner, segment_writer, transcode
from tests import quick_following

BEGAN_MS = 1_790_000_000_000
DIFFERS = "ANOTHER FILE"
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
    broadcast = recipe.make()
    segments, tags = captured(broadcast, mode, folder, f"{recipe.name}.{mode}")
    if not segments:
        return *_nothing(broadcast, mode), "–"
    output = folder / ("finished.mp3" if mode == "00" else "finished.mp4")
    try:
        made = await transcode.Transcoder(imageio_ffmpeg.get_ffmpeg_exe()).transcode(segments, mode, output)
    except errors.TranscodeFailed as error:
        return *(("told", error.detail) if error.reason == "no-media" else ("FAIL", error.detail)), "–"
    said = await _followed(segments, mode, folder, made) if follow else "–"
    faults = await asyncio.to_thread(recipe_judge.faults, made, mode, recipe, tags, BEGAN_MS)
    if faults or said == DIFFERS:
        return "FAIL", "; ".join(faults), said
    told = [f"gaps of {sum(gap.duration_s for gap in made.gaps):.1f} s"] if made.gaps else []
    told += [f"unreadable: {codec}" for codec in made.unreadable]
    return ("told", ", ".join(told), said) if told else ("OK", "", said)


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


def _nothing(broadcast: Any, mode: str) -> tuple[str, str]:
    """The outcome of a recipe of which nothing was captured."""
    payloads = [(tag.kind, tag.data) for tag in broadcast.tags if tag.kind in recipe_judge.KINDS[mode] and tag.data]
    media = [(kind, flv.usual_payload(kind, data)) for kind, data in payloads if flv.is_media(kind, data)]
    if any(codecs.is_readable(kind, data) for kind, data in media):
        return "FAIL", "nothing was captured"
    return "told", "no media" if not media else f"unreadable: {codecs.name(*media[0])}"


def chosen(folder: Path | None, names: list[str]) -> Iterator[Any]:
    """The recipes of the folder, or the project's own streams."""
    if folder is None:
        every: dict[str, Any] = recipe_source.own()
    else:
        sys.path.insert(0, str(folder))
        every = importlib.import_module("cases3").CASES
    for name, recipe in every.items():
        if not name.startswith(("r-", "srs-")) and (not names or name in names):
            yield recipe


async def run(recipes: Iterator[Any], modes: list[str], out: Path, *, follow: bool = False) -> list[list[str]]:
    """A line for each recipe: its outcome in each mode, why, and what a follower made of it."""
    lines = []
    for recipe in recipes:
        cells, why, followers = [], [], []
        for mode in ("00", "01", "02"):
            if mode not in recipe.modes or mode not in modes:
                cells.append("–")
                continue
            folder = out / f"{recipe.name}.{mode}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder)
            folder.mkdir()
            word, detail, said = await outcome(recipe, mode, folder, follow=follow)
            cells.append(word)
            followers.append(f"{mode}: {said}")
            why += [f"{mode}: {detail}"] if detail else []
            print(f"{recipe.name}.{mode}: {word} {detail}{f' ({said})' if follow else ''}", file=sys.stderr, flush=True)
        lines.append([recipe.name, *cells, " · ".join(why), _together(followers)])
    return lines


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
    parser.add_argument("--modes", nargs="+", default=["00", "01", "02"])
    parser.add_argument("--out", type=Path, default=Path("var/recipes"), help="where segments and finished files are kept")
    parser.add_argument("--follow", action="store_true", help="follow the segments while they grow, too")
    given = parser.parse_args()
    if given.follow:
        quick_following.shorten()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    quiet = noise.Noise()
    lines = asyncio.run(run(chosen(given.recipes, given.only), given.modes, given.out.absolute(), follow=given.follow))
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
