"""The transcode plan: which tracks are copied, which are encoded, and ffmpeg's arguments for it. Pure.

Rules: a track is copied if it is complete and keeps one configuration; otherwise it alone is encoded. Pictures of another size
are scaled into the largest one, in square pixels, and centred on black of the exact length. The black also shows where a segment
has no video; missing audio becomes silence. Both hide the packets that the joiner repeats to keep the track alive. Of a track
whose codec changes, ffmpeg reads each codec as one stream: pictures lie over each other, sounds are mixed, each in its own time.

`-reinit_filter 0` keeps one filter graph over changes of the picture's size: scale and overlay take each frame as it is, while a
rebuilt graph loses a frame at every change. For the same reason no filter that fixes the size, such as `pad` or `format`, may
come between the two (both measured with 9.0.2).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ffmpeg as ffmpeg_python

from media import ffmpeg_command, flv, fragments, survey

_ANALYSIS_US = 10_000_000
_PROBE_BYTES = 50_000_000
_QUEUED_PACKETS = 65_536
# By default the muxer's thread takes 8 packets at a time: switching threads takes a fifth of the time of a copy (measured).
_HANDED_PACKETS = 128
# What is hidden ends this much before the packet that is heard or seen again. Pictures have whole milliseconds.
_SOUND_MARGIN_S, _PICTURE_MARGIN_S, _CHANGE_MARGIN_S = 0.02, 0.0005, 0.002
_RATE = 48_000
_KEY_EVERY_S = 2
# An hour of sound takes 60 MB of memory.
_INTERLEAVED_US = 3_600_000_000
_UNWATCHED_S = 60
# The expression is one argument of a command, which Linux limits to 128 KiB.
_MOST_SPANS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The treatment of each track: `copied` and `encoded` kinds. `extension` is "mp3" or "mp4"."""

    extension: str
    copied: frozenset[int]
    encoded: frozenset[int]


def plan(found: survey.Survey, mode: str, *, copy: bool = True) -> Plan:
    """Copy consistent tracks and encode the rest; with `copy` False encode all (after a copy that failed verification)."""
    extension = "mp3" if mode == "00" else "mp4"
    copied = frozenset(kind for kind in found.kinds if copy and extension == "mp4" and found.agrees(kind))
    return Plan(extension=extension, copied=copied, encoded=found.kinds - copied)


def transcode_args(
    binary: str,
    found: survey.Survey,
    chosen: Plan,
    part: str,
    *,
    appended_to: int = -1,
    watched: bool = True,
    growing: bool = False,
) -> list[str]:
    """The arguments of a transcode that reads the joined FLV from stdin, writes `part`, and prints its progress to stdout if it
    is `watched`. An MP4 `appended_to` a file descriptor has fragments, so that it only grows. `growing`: the recording becomes
    longer than the survey knows; the joined stream ends its pictures, and brings black ones where it has none."""
    source = ffmpeg_python.input(
        "pipe:0",
        format="flv",
        protocol_whitelist="pipe",
        analyzeduration=_ANALYSIS_US,
        probesize=_PROBE_BYTES,
        **({"reinit_filter:v": 0} if flv.VIDEO in chosen.encoded else {}),
    )
    streams: list[Any] = []
    options: dict[str, Any] = {
        "max_muxing_queue_size": _QUEUED_PACKETS,
        "thread_queue_size": _HANDED_PACKETS,
        "map_metadata": -1,
    }
    if flv.VIDEO in chosen.encoded:
        # While a camera pauses, pictures come at its end only: sound waits in the muxer, so that players find both side by side.
        options["max_interleave_delta"] = _INTERLEAVED_US
    if flv.VIDEO in found.kinds:
        streams.append(_video(source, found, options, growing=growing) if flv.VIDEO in chosen.encoded else source["v:0"])
        options.setdefault("c:v", "copy")
    if flv.AUDIO in found.kinds:
        streams.append(_audio(source, found, options, chosen) if flv.AUDIO in chosen.encoded else source["a:0"])
        options.setdefault("c:a", "copy")
    if appended_to >= 0 and chosen.extension == "mp4":
        part = "fd:"
        options |= {"fd": appended_to, "movflags": fragments.FLAGS, "frag_duration": fragments.FRAGMENT_US}
    output = ffmpeg_python.output(*streams, part, format=chosen.extension, **options)
    # An ffmpeg that nobody watches need not wake twice a second.
    told = ("-progress", "pipe:1") if watched else ("-stats_period", str(_UNWATCHED_S))
    return ffmpeg_command.compiled(output, binary, "-nostdin", *told)


def _video(source: Any, found: survey.Survey, options: dict[str, Any], *, growing: bool) -> Any:
    width, height = found.canvas
    rate = found.rate
    options |= {
        "c:v": "libx264",
        "preset": "veryfast",
        "crf": 23,
        "pix_fmt": "yuv420p",
        "g": rate * _KEY_EVERY_S,
        "fps_mode": "passthrough",
        "enc_time_base:v": "1:1000",
    }
    # In ticks of the frame rate, pictures behind the last black one would have its time.
    lasts = "" if growing else f":duration={_seconds(found.duration_ms)}"
    described = f"color=color=black:size={width}x{height}:rate={rate}{lasts},format=yuv420p,settb=1/1000"
    black = ffmpeg_python.input(described, format="lavfi").video
    margin_s = _CHANGE_MARGIN_S if found.changes(flv.VIDEO) else _PICTURE_MARGIN_S
    joined = black
    for index, spans_ms in enumerate(found.hidden_ms(flv.VIDEO)):
        shape = _shape(found.aspects(index))
        # By default the first picture would decide for all: a later one of another shape would be stretched.
        fitted = {"w": _fitted(width, f"{height}*{shape}"), "h": _fitted(height, f"{width}/{shape}"), "eval": "frame"}
        picture = source[f"v:{index}"].filter("scale", **fitted).filter("setsar", 1)
        hidden = "" if growing else _within(spans_ms, margin_s)
        until: dict[str, Any] = {"shortest": 1} if growing else {"eof_action": "repeat"}
        enable = {"enable": f"not({hidden})"} if hidden else {}
        joined = ffmpeg_python.overlay(joined, picture, x="(W-w)/2", y="(H-h)/2", **until, **enable)
    return joined.filter("setsar", 1)


def _fitted(side: int, by_shape: str) -> str:
    """One side of a picture that fits the canvas in square pixels, as an expression."""
    return f"max(2,min({side},round({by_shape}/2)*2))"


def _shape(aspects: Sequence[tuple[int, float]]) -> str:
    """The shape of a picture as it is to be shown, as an expression. ffmpeg gives all frames the pixels of the first one."""
    if not aspects:
        return "dar"
    changes = "".join(
        f"+gte(t,{_seconds(from_ms - 1)})*{ratio - before:.6f}" for (_, before), (from_ms, ratio) in itertools.pairwise(aspects)
    )
    return f"(iw/ih*({aspects[0][1]:.6f}{changes}))"


def _audio(source: Any, found: survey.Survey, options: dict[str, Any], chosen: Plan) -> Any:
    options |= {"c:a": "libmp3lame" if chosen.extension == "mp3" else "aac", "b:a": "128k"}
    changes = found.changes(flv.AUDIO)
    if changes or len(found.headers.get(flv.AUDIO, ())) > 1:
        options |= {"ar": _RATE, "ac": 2}
    sounds = []
    for index, spans_ms in enumerate(found.hidden_ms(flv.AUDIO)):
        sound = source[f"a:{index}"]
        hidden = _within(spans_ms)
        if hidden and found.silences is None:
            sound = sound.filter("volume", volume=0, enable=hidden)
        if changes:  # mixed sample by sample, whatever their times: so all begin at 0
            sound = sound.filter("aresample", _RATE, **{"async": 1, "first_pts": 0}).filter("aformat", channel_layouts="stereo")
        else:
            sound = sound.filter("aresample", **{"async": 1})
        sounds.append(sound)
    return ffmpeg_python.filter(sounds, "amix", inputs=len(sounds), normalize=0) if changes else sounds[0]


def _within(spans_ms: Iterable[tuple[int, int]], margin_s: float = _SOUND_MARGIN_S) -> str:
    """An expression that is true inside the spans. Adjacent spans are merged; of very many, the longest count. "" for none."""
    merged: list[tuple[int, int]] = []
    for from_ms, to_ms in sorted(spans_ms):
        if merged and from_ms - merged[-1][1] <= 100:
            merged[-1] = (merged[-1][0], max(to_ms, merged[-1][1]))
        else:
            merged.append((from_ms, to_ms))
    if len(merged) > _MOST_SPANS:
        merged = sorted(sorted(merged, key=lambda span: span[0] - span[1])[:_MOST_SPANS])
    return "+".join(f"between(t,{_seconds(max(0, a - 1))},{b / 1000 - margin_s:.4f})" for a, b in merged)


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms / 1000:.3f}"
