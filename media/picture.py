"""What a video header says of the pictures, and the aspect ratios of pixels that H.264 and HEVC share. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from media import bits

_SQUARE = (1, 1)
_OWN_ASPECT = 255
# ITU-T H.264, table E-1, and H.265, table E.1: the same.
_ASPECTS = (
    _SQUARE, _SQUARE, (12, 11), (10, 11), (16, 11), (40, 33), (24, 11), (20, 11), (32, 11), (80, 33), (18, 11), (15, 11),
    (64, 33), (160, 99), (4, 3), (3, 2), (2, 1),
)  # fmt: skip
# Wider or narrower pixels are no format of any camera, but a damaged or hostile header.
_MOST_STRETCHED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Size in pixels, the aspect ratio of one pixel, the profile's number, bits per sample, and the chroma format (0 none,
    1 4:2:0, 2 4:2:2, 3 4:4:4)."""

    width: int
    height: int
    pixel_aspect: tuple[int, int] = _SQUARE
    profile: int
    depth: int
    chroma: int

    @property
    def display_size(self) -> tuple[int, int]:
        """The size in square pixels. The larger side of a pixel decides, so no detail is lost."""
        wide, high = self.pixel_aspect
        if wide >= high:
            return round(self.width * wide / high), self.height
        return self.width, round(self.height * high / wide)


def pixel_aspect(reader: bits.Bits) -> tuple[int, int]:
    """The aspect ratio of a pixel from the beginning of the VUI parameters; square if they state none or a senseless one."""
    if not reader.take(1) or not reader.take(1):
        return _SQUARE
    index = reader.take(8)
    if index != _OWN_ASPECT:
        return _ASPECTS[index] if index < len(_ASPECTS) else _SQUARE
    wide, high = reader.take(16), reader.take(16)
    sensible = 0 < wide <= high * _MOST_STRETCHED and high <= wide * _MOST_STRETCHED
    return (wide, high) if sensible else _SQUARE


def cropped(width: int, height: int, reader: bits.Bits, unit_x: int, unit_y: int) -> tuple[int, int]:
    """The visible size: the coded one without the window's left, right, top and bottom. Raises ValueError if nothing is left."""
    if reader.take(1):
        left, right, top, bottom = (reader.unsigned() for _ in range(4))
        width -= (left + right) * unit_x
        height -= (top + bottom) * unit_y
    if width <= 0 or height <= 0:
        raise ValueError("the parameter set states no picture")
    return width, height
