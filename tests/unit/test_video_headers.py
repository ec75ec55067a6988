"""Video headers: pictures of real encoders, what browsers play, and headers inside key frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media import hevc, video_headers
from media.picture import Picture
from tests import flv_source

BASELINE = "17000000000142c00cffe100166742c00cda0507ec0440000003004000000783c50aa801000468ce0fc8"
WIDE_PIXELS = "17000000000142c00cffe100166742c00cda0507ec4040000003004000000783c50aa801000468ce0fc8"
MAIN = "1700000000014d400cffe10018674d400cd98141fb0110000003001000000301e0f142a68001000568e970f2c8"
HIGH_444 = "170000000001f4000cffe1001867f4000c91968141fb0110000003001000000301e0f142aa01000568ce0f1920fff8f800"
HIGH_10 = "1700000000016e000cffe10018676e000ca6cb40a0fd8088000003000800000300f078a15501000468ce0fc8fdfafa00"
HIGH_422 = "1700000000017a000cffe10017677a000cbcb40a0fd80880000003008000000f078a155001000468ce0fc8fef8f800"
AV1 = "906176303181000c000a0b0200000521e7fde017c002"
HEVC_RECORD = "0101600000009000000000003ff000fcfdf8f800000f"
HEVC_SPS = "42010101600000030090000003000003003fa00b880291cb11965654a4c2f0e68080000003008000000784"
HEVC_10_SPS = "42010102200000030090000003000003003ca00a080f136595952930bc05a020000003002000000301e1"


def _hevc(sps: str, tag: bytes = b"\x90hvc1") -> bytes:
    raw = bytes.fromhex(sps)
    return tag + bytes.fromhex(HEVC_RECORD) + b"\x02\xa0\x00\x01\x00\x02\x40\x01\xa1\x00\x01" + len(raw).to_bytes(2, "big") + raw


def _packet(header: bytes, *units: bytes) -> bytes:
    """A key frame with these NAL units, of the header's codec."""
    head = header[:1] + b"\x01\x00\x00\x00" if header[0] == 0x17 else b"\x91hvc1\x00\x00\x00"
    return head + b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


@pytest.mark.parametrize(
    ("header", "expected", "plays"),
    [
        (bytes.fromhex(BASELINE), Picture(width=320, height=240, profile=66, depth=8, chroma=1), True),
        (bytes.fromhex(MAIN), Picture(width=320, height=240, profile=77, depth=8, chroma=1), True),
        (bytes.fromhex(HIGH_444), Picture(width=320, height=240, profile=244, depth=8, chroma=3), False),
        (bytes.fromhex(HIGH_10), Picture(width=320, height=240, profile=110, depth=10, chroma=1), False),
        (bytes.fromhex(HIGH_422), Picture(width=320, height=240, profile=122, depth=8, chroma=2), False),
        (bytes.fromhex(WIDE_PIXELS), Picture(width=320, height=240, pixel_aspect=(2, 1), profile=66, depth=8, chroma=1), True),
        (flv_source.LARGER_AVC_HEADER, Picture(width=1278, height=718, profile=66, depth=8, chroma=1), True),
        (_hevc(HEVC_SPS), Picture(width=360, height=642, pixel_aspect=(4, 3), profile=1, depth=8, chroma=1), False),
        (
            _hevc(HEVC_SPS, b"\x1c\x00\x00\x00\x00"),
            Picture(width=360, height=642, pixel_aspect=(4, 3), profile=1, depth=8, chroma=1),
            False,
        ),
        (_hevc(HEVC_10_SPS), Picture(width=320, height=240, profile=2, depth=10, chroma=1), False),
        (bytes.fromhex(AV1), Picture(width=320, height=240, profile=0, depth=8, chroma=1), False),
    ],
    ids=[
        "baseline",
        "main",
        "high-444",
        "high-10-bit",
        "high-422",
        "wide-pixels",
        "cropped",
        "hevc",
        "hevc-id12",
        "hevc-10-bit",
        "av1",
    ],
)
def test_a_header_tells_its_picture(header: bytes, expected: Picture, plays: bool) -> None:
    """Size, pixel aspect, profile, depth and chroma of H.264, HEVC by both of its ids, and AV1."""
    assert video_headers.picture_of(header) == expected
    assert video_headers.plays_in_browsers(header) is plays
    assert video_headers.picture_of(header[:17]) is None


def test_wide_and_high_pixels_keep_their_detail_in_square_ones() -> None:
    """The shorter side of a pixel is the square's side."""
    wide = video_headers.picture_of(bytes.fromhex(WIDE_PIXELS))
    assert wide is not None
    assert wide.display_size == (640, 240)
    high = Picture(width=480, height=480, pixel_aspect=(3, 4), profile=66, depth=8, chroma=1)
    assert high.display_size == (480, 640)


def test_parameter_sets_in_a_key_frame_are_a_header_of_their_own() -> None:
    """Another size in a key frame's SPS gives its header; the same SPS, a frame without one and one behind a slice give none."""
    header, larger = bytes.fromhex(BASELINE), flv_source.LARGER_AVC_HEADER
    length = int.from_bytes(larger[11:13], "big")
    sps, pps, slice_ = larger[13 : 13 + length], larger[16 + length :], b"\x65\x88\x84"
    found = video_headers.inband_header(_packet(header, b"\x09\xf0", sps, pps, slice_), header)
    assert found is not None
    assert video_headers.picture_of(found) == video_headers.picture_of(larger)
    assert video_headers.inband_header(_packet(larger, sps, pps, slice_), larger) is None
    assert video_headers.inband_header(_packet(header, slice_), header) is None
    assert video_headers.inband_header(_packet(header, slice_, sps), header) is None
    assert video_headers.inband_header(b"\x27" + _packet(header, sps, slice_)[1:], header) is None
    alone = video_headers.inband_header(_packet(larger, sps, pps, slice_), None)
    assert alone is not None
    assert alone[:5] + alone[9:] == larger[:5] + larger[9:]
    high = _hevc(HEVC_SPS)
    other = bytes.fromhex(HEVC_10_SPS)
    found = video_headers.inband_header(_packet(high, b"\x40\x01\x0c", other, b"\x26\x01\xaf"), high)
    assert found is not None
    assert video_headers.picture_of(found) == video_headers.picture_of(_hevc(HEVC_10_SPS))
    assert hevc.sps(found[5:]) == other


def test_which_packets_belong_to_one_picture() -> None:
    """Delimiters go with the picture that follows, further slices and end marks with the one before. A first slice begins the
    next picture, also if its tag has the same time."""
    head = b"\x27\x01\x00\x00\x00"
    first, more = (head + b"\x00\x00\x00\x03\x41" + begin + b"\x00" for begin in (b"\x9a", b"\x5a"))
    delimiter, end = head + b"\x00\x00\x00\x02\x09\xf0", head + b"\x00\x00\x00\x01\x0a"
    assert video_headers.merged(delimiter, first, None) == delimiter + first[5:]
    assert video_headers.merged(first, more, None) == first + more[5:]
    assert video_headers.merged(first, end, None) == first + end[5:]
    assert video_headers.merged(first, first, None) is None
    assert video_headers.merged(first, delimiter, None) is None
    hevc_first, hevc_more = (b"\xa3hvc1" + b"\x00\x00\x00\x04\x02\x01" + begin + b"\x00" for begin in (b"\xd0", b"\x50"))
    assert video_headers.merged(hevc_first, hevc_more, None) == hevc_first + hevc_more[5:]
    assert video_headers.merged(hevc_first, hevc_first, None) is None


HEADERS = [bytes.fromhex(each) for each in (BASELINE, HIGH_444, HIGH_10, AV1)] + [_hevc(HEVC_SPS)]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A header with some bytes changed, cut off or added."""
    raw = bytearray(draw(st.sampled_from(HEADERS)))
    for at, byte in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[at] = byte
    return bytes(raw[: draw(st.integers(0, len(raw)))]) + draw(st.binary(max_size=20))


@given(damaged(), st.one_of(damaged(), st.binary(max_size=60)))
def test_no_bytes_raise(header: bytes, payload: bytes) -> None:
    """Damaged headers and packets give None or a picture of a positive size."""
    for found in (video_headers.picture_of(header), video_headers.picture_of(payload)):
        assert found is None or min(found.width, found.height, *found.display_size) > 0
    video_headers.plays_in_browsers(header)
    for given_header in (header, None):
        made = video_headers.inband_header(payload, given_header)
        assert made is None or video_headers.picture_of(made) is not None
        video_headers.merged(payload, payload, given_header)
    video_headers.composition_ms(payload)
