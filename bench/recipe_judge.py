"""Judge of finished files: whether a file shows and plays the sent stream, by rules alone.

The content has a flash in each second, and a beep whose pitch tells the second. The rules:
- The tags that were sent tell which seconds must be seen and heard: those with a picture after the first key frame, and those
  whose beep came. A track that is reported as unreadable, and data that was sent before, count as not sent.
- By the anchors, each flash and beep is where it was live: within 120 ms, plus the delay of the encoder that made the stream.
- Picture and sound of a second are at most 150 ms apart, plus that delay. Not for recipes that state another distance (`sync`).
- The samples of the sound are as long as its track, within 0.1 s, because players play sample after sample.
- Packets of a track have increasing times, and a decoder has no complaint. Its output counts in the file's own ticks: in ticks of
  the usual frame rate, pictures closer than that have one time.
- The file and its gaps are as long as the stream. The picture has one size, in H.264 with 8 bits 4:2:0, and inside black bars
  one of the shapes that its headers state.
- Where fewer flashes are seen than came, only those count that a decoder shows of the stream as it was sent.
- Of a recipe that is `loose`, such as damaged media, only the form of the file is judged.
"""

from __future__ import annotations

import array
import itertools
import math
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg

from media import codecs, flv, transcode, video_headers

KINDS = {"00": (flv.AUDIO,), "01": (flv.VIDEO,), "02": (flv.AUDIO, flv.VIDEO)}
_NEAR_S, _APART_S, _LACKING_S = 0.12, 0.15, 0.1
_SHORTER_S, _LONGER_S = -0.3, 1.2
_RATE, _WINDOW, _WINDOW_S, _LOUD = 16_000, 160, 0.01, 1_500
# Windows of 10 ms: the length of a beep, and the least distance of two.
_BEEP_WINDOWS, _APART_WINDOWS = 12, 50
_BEEP_MS, _SHORTEST_BEEP_MS, _SHORTEST_HEARD_MS, _FEWEST_PICTURES = 100, 75, 60, 3
_BRIGHT, _BAR, _CYCLE = 160, 32, 16
_MISSHAPEN = 0.06
_UNMOVED_MS, _LATEST_MS = 300, 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Where a flash is seen (part of the height), and the pitch of second 0 and the step to the next."""

    flash_at: float
    lowest_hz: int
    step_hz: int


RECIPES = Content(flash_at=0.75, lowest_hz=600, step_hz=100)
OWN = Content(flash_at=0.25, lowest_hz=500, step_hz=90)


class Expected:
    """The seconds that tags hold, and the delay of their encoder."""

    def __init__(self, tags: Iterable[Any], hold_s: float, unreadable: Iterable[str] = ()) -> None:
        named = {flv.AUDIO: "audio", flv.VIDEO: "video"}
        silent = {kind for kind, name in named.items() if any(codec.startswith(name) for codec in unreadable)}
        sent: dict[int, list[tuple[float, bytes]]] = {flv.AUDIO: [], flv.VIDEO: []}
        known: set[tuple[int, int, bytes]] = set()
        header_ms: float | None = None
        keyed = False
        for tag in tags:
            kind = tag.kind
            payload = flv.usual_payload(kind, tag.data) if tag.data else b""
            if kind not in sent or kind in silent:
                continue
            if tag.header and kind == flv.VIDEO:
                header_ms = tag.due
            if not flv.is_media(kind, payload) or ((kind, tag.ts, payload) in known and tag.ts):
                continue
            known.add((kind, tag.ts, payload))
            keyed |= kind == flv.VIDEO and (header_ms is None or video_headers.begins_picture(payload, None))
            if kind == flv.AUDIO or keyed:
                sent[kind].append((tag.due - (hold_s * 1000 if kind == flv.AUDIO else 0), payload))
        self._sent = sent
        keys = [payload for _, payload in sent[flv.VIDEO] if payload[0] >> 4 & 7 == 1]
        begins = [at_ms for kind in sent for at_ms, _ in sent[kind][:1] if at_ms < _UNMOVED_MS]
        self.delay_s = max([*map(_delay_ms, keys), *begins], default=0) / 1000

    def came(self, kind: int) -> bool:
        """Whether any packet of a track came."""
        return bool(self._sent[kind])

    def seconds(self, kind: int) -> frozenset[int]:
        """The seconds whose flash or beep came whole."""
        times = self._times(kind)
        step_ms = self.step_ms(kind)
        counted: dict[int, float] = {}
        for at_ms in times:
            second = round(at_ms / 1000)
            if second * 1000 + max(2 * step_ms, _LATEST_MS) > times[-1]:  # an encoder's delay moves it behind the end
                continue
            if -step_ms / 2 <= at_ms - second * 1000 < _BEEP_MS:
                counted[second] = counted.get(second, 0.0) + step_ms
        return frozenset(second for second, ms in counted.items() if ms >= _SHORTEST_BEEP_MS)

    def step_ms(self, kind: int) -> float:
        """The usual distance of packets."""
        distances = sorted(b - a for a, b in itertools.pairwise(self._times(kind)) if b > a)
        return distances[len(distances) // 2] if distances else 0.0

    def length_s(self, kinds: Iterable[int]) -> float:
        """From the first to the last packet of these tracks."""
        times = [at_ms for kind in kinds for at_ms, _ in self._sent[kind]]
        return (max(times) - min(times)) / 1000 if times else 0.0

    def _times(self, kind: int) -> list[float]:
        times = [at_ms for at_ms, _ in self._sent[kind]]
        begin_ms = min(times, default=0.0)
        return sorted(at_ms - (begin_ms if begin_ms < _UNMOVED_MS else 0.0) for at_ms in times)


def _delay_ms(payload: bytes) -> int:
    if payload[0] & 0x80:
        return int.from_bytes(payload[5:8], "big", signed=True) if payload[0] & 15 == 1 and payload[1:5] != b"av01" else 0
    return int.from_bytes(payload[2:5], "big", signed=True)


def faults(made: transcode.TranscodeOutput, mode: str, recipe: Any, tags: Iterable[Any], began_ms: int) -> list[str]:
    """The faults of a finished file. `began_ms`: when the recipe began (Unix ms)."""
    sent = Expected(tags, recipe.hold_s, made.unreadable)
    content = getattr(recipe, "content", RECIPES)
    wanted = {kind for kind in KINDS[mode] if sent.came(kind)}
    with av.open(str(made.path)) as container:
        duration_s = (container.duration or 0) / 1_000_000
        tracks = {flv.AUDIO if stream.type == "audio" else flv.VIDEO for stream in container.streams}
        shapes = {(s.codec_context.name, str(s.codec_context.pix_fmt)) for s in container.streams.video}
    found = [f"tracks {sorted(tracks)}"] if tracks != wanted else []
    found += [f"picture is {shape}" for shape in shapes if shape not in (("h264", "yuv420p"), ("h264", "yuvj420p"))]
    missing_s = sum(gap.duration_s for gap in made.gaps)
    sent_s = sent.length_s(wanted)
    if not _SHORTER_S <= duration_s + missing_s - sent_s <= _LONGER_S and not recipe.loose:
        found.append(f"{duration_s:.1f} s and {missing_s:.1f} s of gaps for {sent_s:.1f} s")
    found += _form(made.path)
    flashes, beeps = dict[int, float](), dict[int, float]()
    if flv.VIDEO in tracks:
        seen, sizes, boxes = _flashes(made.path, content)
        found += [f"sizes {sizes}"] if len(sizes) > 1 else []
        known = _shapes(tags)
        if known and (odd := [box for box in boxes if min(abs(box / shape - 1) for shape in known) > _MISSHAPEN]):
            found.append(f"pictures of the shapes {odd[:3]}")
        if not recipe.loose and sent.step_ms(flv.VIDEO) * _FEWEST_PICTURES < 1_000:
            marks = [(at, live_s(made, at) - began_ms / 1000) for at in seen]
            wanted_flashes = sent.seconds(flv.VIDEO)
            if len(seen) < len(wanted_flashes):  # damaged pictures, or none that decoding can begin with
                wanted_flashes &= _decodable(made.path.with_name("sent.flv"), tags, content, wanted_flashes)
            found += _placed("flash", marks, wanted_flashes, sent.delay_s, flashes)
    if flv.AUDIO in tracks:
        heard, lacking_s = _beeps(made.path, content)
        found += [f"sound lacks {lacking_s:.2f} s"] if abs(lacking_s) > _LACKING_S else []
        if not recipe.loose:
            # A beep right behind a seam is heard up to a window before it.
            marks = [(at, live_s(made, at + _WINDOW_S) - _WINDOW_S - began_ms / 1000) for at, _ in heard]
            late_s = sent.delay_s + 2 * sent.step_ms(flv.AUDIO) / 1000
            found += _placed("beep", marks, sent.seconds(flv.AUDIO), late_s, beeps)
            found += _pitches([(live, pitch) for (_, live), (_, pitch) in zip(marks, heard, strict=True)])
    apart = [flashes[n] - beeps[n] for n in flashes.keys() & beeps.keys()]
    if recipe.sync and apart and max(map(abs, apart)) > _APART_S + sent.delay_s:
        found.append(f"out of step {min(apart):+.2f} … {max(apart):+.2f} s")
    return found


def nothing(tags: Iterable[Any], mode: str) -> tuple[str, str]:
    """The outcome of tags of which nothing was recorded: told or FAIL, and why."""
    payloads = [(tag.kind, tag.data) for tag in tags if tag.kind in KINDS[mode] and tag.data]
    media = [(kind, flv.usual_payload(kind, data)) for kind, data in payloads if flv.is_media(kind, data)]
    if any(codecs.is_readable(kind, data) for kind, data in media):
        return "FAIL", "nothing was captured"
    return "told", "no media" if not media else f"unreadable: {codecs.name(*media[0])}"


def word(made: transcode.TranscodeOutput) -> tuple[str, str]:
    """The outcome of a file without faults: OK or told, and what is reported."""
    told = [f"gaps of {sum(gap.duration_s for gap in made.gaps):.1f} s"] if made.gaps else []
    told += [f"unreadable: {codec}" for codec in made.unreadable]
    return ("told", ", ".join(told)) if told else ("OK", "")


def _placed(
    name: str, marks: list[tuple[float, float]], wanted: frozenset[int], late_s: float, into: dict[int, float]
) -> list[str]:
    """Faults of (position, live time) pairs; their seconds are noted in `into`."""
    off = []
    for at_s, live in marks:
        second = round(live - late_s / 2)
        if -_NEAR_S <= live - second <= _NEAR_S + late_s:
            into.setdefault(second, at_s)
        else:
            off.append(f"{at_s:.2f}")
    found = [f"{name} of {sorted(wanted - into.keys())} lost"] if wanted - into.keys() else []
    return found + ([f"{name} at {' '.join(off[:4])} is misplaced"] if off else [])


def _pitches(marks: list[tuple[float, int]]) -> list[str]:
    """Faults of (live time, pitch) pairs: every pitch is as far from its second, because a recipe may begin at any second."""
    shifts = [(pitch - round(live)) % _CYCLE for live, pitch in marks]
    usual = max(set(shifts), key=shifts.count, default=0)
    return [f"pitches {shifts}"] if any(shift != usual for shift in shifts) else []


def live_s(made: transcode.TranscodeOutput, at_s: float) -> float:
    """When the media at a position was live, by the anchors (Unix seconds)."""
    points = made.anchors.points
    # Half a millisecond: 4.023 s times 1,000 are less than 4,023 ms, and a flash right at a seam would be before it.
    before = max((number for number, (at_ms, _) in enumerate(points) if at_ms <= at_s * 1000 + 0.5), default=0)
    at_ms, time_ms = points[before]
    if before + 1 < len(points):
        to_ms, next_ms = points[before + 1]
        if to_ms > at_ms and not any(at_ms < gap.at_s * 1000 < to_ms for gap in made.gaps):
            return (time_ms + (at_s * 1000 - at_ms) * (next_ms - time_ms) / (to_ms - at_ms)) / 1000
    return (time_ms - at_ms) / 1000 + at_s


def _form(path: Path) -> list[str]:
    """Faults of a file that a player or decoder would notice."""
    found = []
    with av.open(str(path)) as container:
        times: dict[str, list[int]] = {stream.type: [] for stream in container.streams}
        for packet in container.demux():
            if packet.dts is not None:
                times[packet.stream.type].append(packet.dts)
    found += [
        f"{kind} packets have equal times" for kind, each in times.items() if any(b <= a for a, b in itertools.pairwise(each))
    ]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "warning", "-i", str(path), "-enc_time_base:v", "demux"]
    done = subprocess.run([*command, "-fps_mode", "passthrough", "-f", "null", "-"], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "low score" not in line]  # of MP3 files that are too short to tell
    return found + ([f"decoder: {said[0][:120]}"] if said or done.returncode else [])


def _flashes(path: Path, content: Content) -> tuple[list[float], list[tuple[int, int]], set[float]]:
    """When a flash begins, the sizes of the frames, and the shapes (width by height) of the pictures inside black bars."""
    found, sizes, shapes, was = list[float](), set[tuple[int, int]](), set[float](), False
    with av.open(str(path)) as container:
        for frame in _frames(container):
            sizes.add((frame.width, frame.height))
            plane = frame.reformat(format="gray").planes[0]
            luma = bytes(plane)
            box = _box(luma, frame.width, frame.height, plane.line_size)
            shapes |= set() if box is None else {round(box[2] / box[3], 2)}
            lit = box is not None and _lit(luma, plane.line_size, box, content.flash_at)
            if lit and not was:
                found.append(float(frame.time or 0))
            was = lit
    return found, sorted(sizes), shapes


def _frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """All pictures that can be decoded; a stream as it was sent may be damaged."""
    for packet in container.demux(container.streams.video[0]):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _decodable(path: Path, tags: Iterable[Any], content: Content, wanted: frozenset[int]) -> frozenset[int]:
    """The seconds whose flash a decoder shows of the pictures as they were sent, the first header before them all; all that are
    wanted if it does not read them."""
    sent = [tag for tag in tags if tag.kind == flv.VIDEO and tag.data]
    first = [flv.encode(flv.VIDEO, 0, tag.data) for tag in sent if tag.header][:1]
    pictures = [flv.encode(flv.VIDEO, max(0, round(tag.due)), tag.data) for tag in sent]
    path.write_bytes(flv.header(audio=False, video=True) + b"".join(first + pictures))
    try:
        return frozenset(round(at_s - _NEAR_S / 2) for at_s in _flashes(path, content)[0])
    except (av.error.FFmpegError, IndexError):
        return wanted


def _box(luma: bytes, width: int, height: int, line: int) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the picture between black bars; None for black."""
    rows = [y for y in range(0, height, 2) if max(luma[y * line : y * line + width]) > _BAR]
    if not rows:
        return None
    top, high = rows[0], rows[-1] + 2 - rows[0]
    across = [(top + int(high * part)) * line for part in (0.4, 0.65)]
    columns = [x for x in range(0, width, 2) if max(luma[row + x] for row in across) > _BAR]
    return (columns[0], top, columns[-1] + 2 - columns[0], high) if columns else None


def _lit(luma: bytes, line: int, box: tuple[int, int, int, int], at: float) -> bool:
    left, top, wide, high = box
    return luma[(top + int(high * at)) * line + left + wide // 2] > _BRIGHT


def _shapes(tags: Iterable[Any]) -> list[float]:
    """The shapes of the pictures that were sent, by their headers."""
    payloads = [flv.usual_payload(tag.kind, tag.data) for tag in tags if tag.kind == flv.VIDEO and tag.data]
    headers = {video_headers.inband_header(payload, None) or payload for payload in payloads if payload[0] >> 4 & 7 == 1}
    pictures = [video_headers.picture_of(header) for header in headers]
    return [picture.display_size[0] / picture.display_size[1] for picture in pictures if picture is not None]


def _beeps(path: Path, content: Content) -> tuple[list[tuple[float, int]], float]:
    """(position, second modulo 16) of each whole beep, and by how much the samples are shorter than the track."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_RATE)
    samples, begins_s, ends_s, heard_s = array.array("h"), None, 0.0, 0.0
    with av.open(str(path)) as container:
        for decoded in container.decode(audio=0):
            start_s, lasts_s = float(decoded.time or 0), decoded.samples / decoded.sample_rate
            begins_s, ends_s, heard_s = start_s if begins_s is None else begins_s, start_s + lasts_s, heard_s + lasts_s
            for frame in resampler.resample(decoded):
                samples.frombytes(bytes(frame.planes[0])[: frame.samples * 2])
    loud = [max(map(abs, samples[at : at + _WINDOW])) > _LOUD for at in range(0, len(samples) - _WINDOW, _WINDOW)]
    found, last = list[tuple[float, int]](), -_APART_WINDOWS
    for window, now in enumerate(loud):
        whole = now and sum(loud[window : window + _BEEP_WINDOWS]) * 10 >= _SHORTEST_HEARD_MS
        if whole and window - last >= _APART_WINDOWS:
            last = window
            heard = samples[window * _WINDOW : window * _WINDOW + _RATE // 9]
            pitch = max(range(_CYCLE), key=lambda n: _power(heard, content.lowest_hz + content.step_hz * n))
            found.append(((begins_s or 0.0) + window / 100, pitch))
    return found, ends_s - (begins_s or 0.0) - heard_s


def _power(samples: array.array[int], hertz: int) -> float:
    """How much of one frequency there is (Goertzel)."""
    factor, one, two = 2 * math.cos(2 * math.pi * hertz / _RATE), 0.0, 0.0
    for sample in samples:
        one, two = sample + factor * one - two, one
    return one * one + two * two - factor * one * two
