"""Codecs of FLV packets: which of them ffmpeg can read.

Sources: Adobe "Video File Format Specification 10.1", annex E; the FourCCs of Enhanced RTMP v2. A packet of another codec would
end the whole transcode, so it counts as no media, and the result names it.
"""

from __future__ import annotations

from media import flv

_SOUND = frozenset((0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 14))
_PICTURE = frozenset((2, 3, 4, 5, 7))
_FOURCC = {
    flv.AUDIO: frozenset((b"mp4a", b"Opus", b".mp3", b"fLaC", b"ac-3", b"ec-3")),
    flv.VIDEO: frozenset((b"avc1", b"hvc1", b"av01", b"vp09", b"vp08", b"vvc1")),
}
_EXTENDED_SOUND = 9
# What ffmpeg reads as one codec, although FLV has several ids for it.
_SOUND_NAMES = {0: "pcm", 2: "mp3", 3: "pcm", 4: "nellymoser", 5: "nellymoser", 6: "nellymoser", 10: "aac", 14: "mp3"}
_PICTURE_NAMES = {7: "avc"}
_FOURCC_NAMES = {b"mp4a": "aac", b".mp3": "mp3", b"avc1": "avc", b"hvc1": "hevc"}


def is_readable(kind: int, payload: bytes) -> bool:
    """Whether ffmpeg can read an audio or video packet."""
    first = payload[0]
    if kind == flv.AUDIO:
        return payload[1:5] in _FOURCC[kind] if first >> 4 == _EXTENDED_SOUND else first >> 4 in _SOUND
    return payload[1:5] in _FOURCC[kind] if first & 0x80 else first & 0x0F in _PICTURE


def identity(kind: int, payload: bytes) -> str:
    """Which stream ffmpeg reads a packet or a sequence header into."""
    first = payload[0]
    if first & 0x80 if kind == flv.VIDEO else first >> 4 == _EXTENDED_SOUND:
        return _FOURCC_NAMES.get(payload[1:5]) or payload[1:5].decode("latin-1")
    if kind == flv.VIDEO:
        return _PICTURE_NAMES.get(first & 0x0F) or str(first & 0x0F)
    known = _SOUND_NAMES.get(first >> 4) or str(first >> 4)
    return f"pcm{first >> 1 & 1}" if known == "pcm" else known


def name(kind: int, payload: bytes) -> str:
    """The name of a packet's codec, for messages."""
    track, first = ("audio", payload[0] >> 4) if kind == flv.AUDIO else ("video", payload[0] & 0x0F)
    extended = first == _EXTENDED_SOUND if kind == flv.AUDIO else bool(payload[0] & 0x80)
    return f"{track} codec {payload[1:5].decode('ascii', 'backslashreplace') if extended else first}"
