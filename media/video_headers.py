"""Headers of video tracks: the picture that they announce, whether browsers play it, and headers inside key frames. Pure.

A header is the payload of a sequence header tag: H.264, HEVC (Enhanced RTMP, or codec id 12 of Chinese servers) or AV1.

Rule: no bytes raise an exception, and work is bounded; what cannot be parsed gives None.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType

from media import av1, avc, bits, hevc, picture

_RECORD_AT = 5
_IDS = {7: "avc", 12: "hevc"}
_FOURCC = {b"avc1": "avc", b"hvc1": "hevc", b"av01": "av1"}
_CODECS: dict[str, ModuleType] = {"avc": avc, "hevc": hevc, "av1": av1}
# Baseline, Main and High: 8 bits and 4:2:0 in every browser and player.
_USUAL_PROFILES = frozenset((66, 77, 100))
_MOST_UNITS = 64


@functools.lru_cache(maxsize=512)
def picture_of(header: bytes) -> picture.Picture | None:
    """What a header says of its pictures."""
    name = _codec(header)
    if name is None:
        return None
    return _picture(name, header[_RECORD_AT:])


def plays_in_browsers(header: bytes) -> bool:
    """Whether every browser plays the track as it is: H.264 Baseline, Main or High with 8 bits and 4:2:0. An H.264 header that
    cannot be parsed counts as such."""
    if _codec(header) != "avc":
        return False
    found = picture_of(header)
    return found is None or (found.profile in _USUAL_PROFILES and found.depth == 8 and found.chroma == 1)


def inband_header(payload: bytes, header: bytes | None) -> bytes | None:
    """The header that the parameter sets inside a key frame amount to, if they differ from those of `header`. Without a header,
    the one that an H.264 packet brings itself."""
    name = _codec(payload)
    if name is None or (header is not None and _codec(header) != name) or not _is_key(payload):
        return None
    begin = _body_at(payload)
    if begin is None:
        return None
    record = None if header is None else header[_RECORD_AT:]
    try:
        made = _inband(name, payload, begin, record)
    except (IndexError, ValueError):
        return None
    if made is None:
        return None
    if header is not None:
        return header[:_RECORD_AT] + made
    return payload[:1] + b"\x00\x00\x00\x00" + made if not payload[0] & 0x80 else bytes((0x90,)) + payload[1:5] + made


def pixel_aspect(header: bytes) -> float:
    """Width by height of a pixel; 1 if the header cannot be parsed."""
    found = picture_of(header)
    return 1.0 if found is None else found.pixel_aspect[0] / found.pixel_aspect[1]


def composition_ms(payload: bytes) -> int:
    """How much later than its tag says a picture is to be shown."""
    begin = _body_at(payload)
    if begin is None or (payload[0] & 0x80 and begin == _RECORD_AT):
        return 0
    return int.from_bytes(payload[begin - 3 : begin], "big", signed=True)


def begins_picture(payload: bytes, header: bytes | None) -> bool:
    """Whether decoding can begin with a packet: it is flagged as a key frame, or holds an IDR picture that is not."""
    if _is_key(payload):
        return True
    name, begin = _codec(payload), _body_at(payload)
    if name not in ("avc", "hevc") or begin is None:
        return False
    codec = _CODECS[name]
    return any(codec.kind(unit) in codec.IDR for unit in _units(payload, begin, _length_bytes(name, header)))


def without_empty_units(payload: bytes, header: bytes | None) -> bytes:
    """The same H.264 or HEVC packet without NAL units of length 0, at which decoders fail."""
    name, begin = _codec(payload), _body_at(payload)
    if name not in ("avc", "hevc") or begin is None:
        return payload
    size = _length_bytes(name, header)
    at, kept, empty = begin, list[bytes](), False
    while at + size <= len(payload):
        following = at + size + int.from_bytes(payload[at : at + size], "big")
        empty |= following == at + size
        if following > at + size:
            kept.append(payload[at:following])
        at = following
    return payload[:begin] + b"".join(kept) if empty else payload


def restarting(payload: bytes, header: bytes | None) -> bytes:
    """A key frame that a decoder accepts again and again. HEVC takes it for a duplicate, unless it begins a new sequence."""
    begin = _body_at(payload)
    if begin is None or _codec(payload) != "hevc" or not _is_key(payload):
        return payload
    length = len(hevc.END).to_bytes(_length_bytes("hevc", header), "big")
    return payload[:begin] + length + hevc.END + payload[begin:]


def _length_bytes(name: str, header: bytes | None) -> int:
    """How many bytes state the length of a NAL unit: four, if no header tells."""
    try:
        return 4 if header is None else int(_CODECS[name].length_bytes(header[_RECORD_AT:]))
    except IndexError:
        return 4


def continues_picture(payload: bytes, header: bytes | None) -> bool:
    """Whether a packet belongs to the picture that an earlier packet began: further slices, or what follows the last slice.
    Anything else, such as a delimiter, belongs to the next picture."""
    name, begin = _codec(payload), _body_at(payload)
    if name not in ("avc", "hevc") or begin is None:
        return False
    codec = _CODECS[name]
    for unit in _units(payload, begin, _length_bytes(name, header)):
        if codec.is_slice(unit):
            return not codec.is_first_slice(unit)
        if codec.kind(unit) in codec.TRAILING:
            return True
    return False


def holds_slice(payload: bytes, header: bytes | None) -> bool:
    """Whether a packet holds at least a part of a picture, and not only what precedes one."""
    name, begin = _codec(payload), _body_at(payload)
    if name not in ("avc", "hevc") or begin is None:
        return True
    return any(_CODECS[name].is_slice(unit) for unit in _units(payload, begin, _length_bytes(name, header)))


def merged(one: bytes, other: bytes, header: bytes | None) -> bytes | None:
    """One packet with the NAL units of both, if they belong to one picture; None if `other` begins the next one, and for other
    codecs."""
    name, begin, other_begin = _codec(one), _body_at(one), _body_at(other)
    if name not in ("avc", "hevc") or _codec(other) != name or begin is None or begin != other_begin:
        return None
    if holds_slice(one, header) and not continues_picture(other, header):
        return None
    head = one if _is_key(one) else other
    return head[:begin] + one[begin:] + other[begin:]


def needs_header(payload: bytes) -> bool:
    """Whether a packet cannot be decoded without a header: H.264 and HEVC."""
    return _codec(payload) in ("avc", "hevc")


def _inband(name: str, payload: bytes, begin: int, record: bytes | None) -> bytes | None:
    if name == "av1":
        if record is None:
            return None
        made = av1.record_of(av1.sequence_header(payload[begin : begin + bits.LONGEST_BYTES]), record)
        return None if av1.parse(made) == _picture("av1", record) else made
    codec = _CODECS[name]
    sets = dict[int, bytes]()
    for unit in _units(payload, begin, 4 if record is None else codec.length_bytes(record)):
        if codec.is_slice(unit):
            break
        if codec.kind(unit) in codec.PARAMETER_SETS:
            sets.setdefault(codec.kind(unit), unit)
    if codec.SPS not in sets or (record is not None and codec.sps(record).rstrip(b"\x00") == sets[codec.SPS].rstrip(b"\x00")):
        return None
    changed: bytes = codec.record_of(sets, record)
    codec.parse(changed)
    return changed


def _picture(name: str, record: bytes) -> picture.Picture | None:
    try:
        found: picture.Picture = _CODECS[name].parse(record[: bits.LONGEST_BYTES])
    except (IndexError, ValueError):
        return None
    return found


def _units(payload: bytes, at: int, length_bytes: int) -> Iterator[bytes]:
    """The first NAL units of a packet, no longer than a parameter set may be; ends at a damaged length."""
    for _ in range(_MOST_UNITS):
        begin = at + length_bytes
        length = int.from_bytes(payload[at:begin], "big")
        at = begin + length
        if begin >= len(payload) or at > len(payload):
            return
        if length:
            yield payload[begin : begin + min(length, bits.LONGEST_BYTES)]


def _codec(payload: bytes) -> str | None:
    if not payload:
        return None
    return _FOURCC.get(payload[1:5]) if payload[0] & 0x80 else _IDS.get(payload[0] & 0x0F)


def _is_key(payload: bytes) -> bool:
    return payload[0] >> 4 & 7 == 1


def _body_at(payload: bytes) -> int | None:
    """Where the media of a packet begins; None for another kind of tag."""
    if not payload:
        return None
    if not payload[0] & 0x80:
        return 5 if payload[1:2] == b"\x01" else None
    kind = payload[0] & 0x0F
    if kind == 3:
        return 5
    if kind == 1:
        return 5 if payload[1:5] == b"av01" else 8
    return None
