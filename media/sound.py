"""Sound of FLV packets: samples per packet, the meaning of AAC configurations, and AAC packets of silence. Pure.

Formats: ISO/IEC 14496-3 (AudioSpecificConfig, raw_data_block), ISO/IEC 11172-3 (MP3 frame header), RFC 6716 (Opus TOC), Adobe
"Video File Format Specification 10.1", annex E, and Enhanced RTMP v2. A header here is the payload of a sequence header tag.

Rules: no bytes raise an exception; work is bounded by the size of the packet. SBR doubles the rate of the output and of the
samples alike, so durations are counted at the rate of the core.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from media import bits

_EXTENDED, _AAC, _SPEEX = 9, 10, 11
_MP3 = frozenset((2, 14))
_G711 = frozenset((7, 8))
_PCM = frozenset((0, 3))
_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
_FASTEST = 192_000
_LC, _SBR, _PS, _ER_LD = 2, 5, 29, 23
# Object types whose configuration begins with GASpecificConfig and its frame length.
_GENERAL = frozenset((1, 2, 3, 4, 6, 7, 17, 19, 20, 21, 22, _ER_LD))
_SYNC_SBR, _SYNC_PS = 0x2B7, 0x548
_ESCAPE_TYPE, _ESCAPE_RATE = 31, 15
# The elements of one access unit for each channel configuration: single, pair, low frequencies.
_ELEMENTS = ("", "s", "p", "sp", "sps", "spp", "sppl")
_ELEMENT_ID = {"s": 0, "p": 1, "l": 3}
_MP3_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MP3_RATES = (44_100, 48_000, 32_000)
_MP3_SHIFT = {3: 0, 2: 1, 0: 2}  # MPEG-1, MPEG-2 and MPEG-2.5
_OPUS_RATE = 48_000
_OPUS_MOST = 5_760


@dataclass(frozen=True, slots=True, kw_only=True)
class AacConfig:
    """The meaning of an AudioSpecificConfig. `rate` and `samples` (per packet) are the core's, `sbr_rate` is 0 without SBR.
    `layout` tells configurations without a standard channel layout (`channels` 0) apart."""

    object_type: int
    rate: int
    channels: int
    samples: int
    sbr_rate: int = 0
    ps: bool = False
    layout: bytes = b""


def aac_config(header: bytes) -> AacConfig | None:
    """Parse the header of an AAC track; None for another codec, or if it cannot be parsed."""
    if not header:
        return None
    if header[0] >> 4 == _AAC and header[1:2] == b"\x00":
        raw = header[2:]
    elif header[0] == _EXTENDED << 4 and header[1:5] == b"mp4a":
        raw = header[5:]
    else:
        return None
    return _parsed(raw[: bits.LONGEST_BYTES])


def same_sound(one: bytes, other: bytes) -> bool:
    """Whether two headers configure the decoder alike, although they may differ in bytes: one may say explicitly that it has no
    SBR."""
    if one == other:
        return True
    parsed = aac_config(one)
    return parsed is not None and parsed == aac_config(other)


def needs_header(payload: bytes) -> bool:
    """Whether a packet cannot be decoded without a header: AAC."""
    return payload[:1] != b"" and (payload[0] >> 4 == _AAC or (payload[0] >> 4 == _EXTENDED and payload[1:5] == b"mp4a"))


def packet_samples(payload: bytes, header: bytes | None) -> tuple[int, int] | None:
    """Samples per channel of a packet, and their rate; None if its codec is unknown, or its header is missing or damaged."""
    if len(payload) < 2:
        return None
    codec = payload[0] >> 4
    if codec == _EXTENDED:
        return _extended(payload, header) if payload[0] & 0x0F == 1 else None
    if codec == _AAC:
        return _aac(len(payload) > 2, header) if payload[1] == 1 else None
    if codec in _MP3:
        return mp3_samples(payload[1:])
    if codec in _G711:
        return (len(payload) - 1) // (1 + (payload[0] & 1)), 8_000
    if codec in _PCM:
        frame_bytes = (1 + (payload[0] & 1)) * (1 + (payload[0] >> 1 & 1))
        return (len(payload) - 1) // frame_bytes, 44_100 << (payload[0] >> 2 & 3) >> 3
    return (320, 16_000) if codec == _SPEEX else None


@functools.lru_cache(maxsize=64)
def silent_packet(header: bytes) -> bytes | None:
    """The payload of a tag with one packet of silence for this AAC header; None where only an encoder can make it: SBR, other
    frame lengths, and layouts outside the standard ones.

    A channel whose highest scale factor band is 0 has no spectrum. Nothing else in its packet depends on the rate.
    """
    config = aac_config(header)
    if config is None or config.object_type != _LC or config.sbr_rate or config.samples != 1_024:
        return None
    if not 0 < config.channels < len(_ELEMENTS):
        return None
    written = ""
    tags = dict.fromkeys("spl", 0)
    for element in _ELEMENTS[config.channels]:
        written += f"{_ELEMENT_ID[element]:03b}{tags[element]:04b}"
        tags[element] += 1
        # ics_info: one long window, no band, no prediction. Then neither pulses, noise shaping nor gain control.
        info, gain, tools = "0" * 11, "0" * 8, "000"
        written += f"1{info}00{gain}{tools}{gain}{tools}" if element == "p" else f"{gain}{info}{tools}"
    written += "111"
    written += "0" * (-len(written) % 8)
    packet = int(written, 2).to_bytes(len(written) // 8, "big")
    return b"\x91mp4a" + packet if header[0] >> 4 == _EXTENDED else header[:1] + b"\x01" + packet


def _extended(payload: bytes, header: bytes | None) -> tuple[int, int] | None:
    codec, body = payload[1:5], payload[5:]
    if codec == b"mp4a":
        return _aac(bool(body), header)
    if codec == b"Opus":
        return _opus(body)
    return mp3_samples(body) if codec == b".mp3" else None


def _aac(has_body: bool, header: bytes | None) -> tuple[int, int] | None:
    config = aac_config(header) if header is not None else None
    if config is None:
        return None
    return config.samples if has_body else 0, config.rate


@functools.lru_cache(maxsize=64)
def _parsed(raw: bytes) -> AacConfig | None:
    try:
        return _parse(raw)
    except ValueError:
        return None


def _parse(raw: bytes) -> AacConfig | None:
    reader = bits.Bits(raw)
    object_type, rate, channels = _object_type(reader), _rate(reader), reader.take(4)
    sbr_rate, ps = 0, object_type == _PS
    if object_type in (_SBR, _PS):
        sbr_rate = _rate(reader)
        object_type = _object_type(reader)
    if object_type not in _GENERAL:
        return None
    short = reader.take(1)
    samples = (480 if short else 512) if object_type == _ER_LD else (960 if short else 1_024)
    if reader.take(1):
        reader.take(14)
    extended = reader.take(1)
    if channels == 0 or extended or object_type in (6, 20):
        return AacConfig(
            object_type=object_type, rate=rate, channels=channels, samples=samples, sbr_rate=sbr_rate, ps=ps, layout=raw
        )
    if not sbr_rate:
        sbr_rate, ps = _extension(reader)
    return AacConfig(object_type=object_type, rate=rate, channels=channels, samples=samples, sbr_rate=sbr_rate, ps=ps)


def _extension(reader: bits.Bits) -> tuple[int, bool]:
    """The rate of SBR, or 0, and whether PS is used, from the part of a configuration that old decoders skip."""
    try:
        if reader.take(11) != _SYNC_SBR or _object_type(reader) != _SBR or not reader.take(1):
            return 0, False
        sbr_rate = _rate(reader)
        return sbr_rate, reader.left >= 12 and reader.take(11) == _SYNC_PS and reader.take(1) == 1
    except ValueError:
        return 0, False


def _object_type(reader: bits.Bits) -> int:
    found = reader.take(5)
    return 32 + reader.take(6) if found == _ESCAPE_TYPE else found


def _rate(reader: bits.Bits) -> int:
    index = reader.take(4)
    rate = reader.take(24) if index == _ESCAPE_RATE else _RATES[index] if index < len(_RATES) else 0
    if not 0 < rate <= _FASTEST:
        raise ValueError("the configuration states no rate")
    return rate


def mp3_samples(body: bytes) -> tuple[int, int] | None:
    """Samples per channel of the MP3 frames, and their rate; None if no frame begins here."""
    at = samples = rate = 0
    while at + 4 <= len(body):
        word = int.from_bytes(body[at : at + 4], "big")
        version, layer, kbits, index = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
        if word >> 21 != 0x7FF or version == 1 or layer != 1 or kbits == 15 or index == 3:
            break
        rate = _MP3_RATES[index] >> _MP3_SHIFT[version]
        samples += 1_152 if version == 3 else 576
        if kbits == 0:  # a free format: the length of the frame is not stated
            break
        bytes_per_frame = (144_000 if version == 3 else 72_000) * _MP3_KBITS[version != 3][kbits] // rate
        at += bytes_per_frame + (word >> 9 & 1)
    return (samples, rate) if samples else None


def _opus(body: bytes) -> tuple[int, int] | None:
    if not body:
        return 0, _OPUS_RATE
    kind, code = body[0] >> 3, body[0] & 3
    if kind < 12:
        samples = (480, 960, 1_920, 2_880)[kind & 3]
    elif kind < 16:
        samples = (480, 960)[kind & 1]
    else:
        samples = (120, 240, 480, 960)[kind & 3]
    if code == 3:
        if len(body) < 2:
            return None
        samples *= body[1] & 0x3F
    elif code:
        samples *= 2
    return (samples, _OPUS_RATE) if 0 < samples <= _OPUS_MOST else None
