"""The bar code in the simulator's picture, and its reader.

Rules: a test can read a decoded picture with this module alone, because it takes the luma plane as plain bytes. Everything is a
fraction of the picture, so every size carries the same code.

Geometry: the bar is the bottom fifteenth of the picture, cut into 20 cells of equal width; a white cell is 1.

    cell      0      1      2 … 11          12 … 15           16, 17       18                    19
    meaning   white  black  frame of loop   speaker's number  size's index  parity of 2 … 17      white

The highest bit of a number is on the left; the parity cell makes the number of white cells in 2 … 18 even. The frame number
counts from 0 through the loop of 64 s at 15 frames/s, so its second is `frame // 15`. The flash is the top quarter of the
picture: white in the first two frames (133 ms) of each second, else black.
"""

from __future__ import annotations

from dataclasses import dataclass

CELLS = 20
BAR_FRACTION = 15
FLASH_FRACTION = 4
FLASH_FRAMES = 2
FRAMES_PER_SECOND = 15
FRAME_CELLS = range(2, 12)
SPEAKER_CELLS = range(12, 16)
SIZE_CELLS = range(16, 18)
PARITY_CELL = 18
WHITE = 125
"""Luma above which a cell counts as white: the middle of the 16 … 235 of television range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part of the picture, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A decoded bar code: frame 0 … 959 of the loop, speaker's number 0 … 15, index of the size 0 … 3."""

    frame: int
    speaker: int
    size: int

    @property
    def second(self) -> int:
        """Second 0 … 63 of the loop."""
        return self.frame // FRAMES_PER_SECOND


def cell_box(cell: int, picture: Box) -> Box:
    """The place of one cell of the bar in a picture."""
    top = picture.height - picture.height // BAR_FRACTION
    left, right = picture.width * cell // CELLS, picture.width * (cell + 1) // CELLS
    return Box(x=picture.x + left, y=picture.y + top, width=right - left, height=picture.height - top)


def flash_box(picture: Box) -> Box:
    """The place of the flash in a picture."""
    return Box(x=picture.x, y=picture.y, width=picture.width, height=picture.height // FLASH_FRACTION)


def brightness(luma: bytes, stride: int, box: Box) -> float:
    """Mean luma of the inner half of a box; its edges are left out because coding blurs them."""
    left, right = box.x + box.width // 4, box.x + box.width - box.width // 4
    rows = range(box.y + box.height // 4, box.y + box.height - box.height // 4)
    total = sum(sum(luma[row * stride + left : row * stride + right]) for row in rows)
    return total / (len(rows) * (right - left))


def read(luma: bytes, width: int, height: int, *, stride: int = 0, area: Box | None = None) -> Reading | None:
    """Read the bar code of a picture's luma plane; None if there is none (markers or parity do not match).

    `stride` is the plane's bytes per row (0 = `width`). `area` is the simulator's picture inside a padded one.
    """
    picture = area or Box(x=0, y=0, width=width, height=height)
    bits = [brightness(luma, stride or width, cell_box(cell, picture)) > WHITE for cell in range(CELLS)]
    if not (bits[0] and not bits[1] and bits[CELLS - 1]) or sum(bits[2 : PARITY_CELL + 1]) % 2:
        return None
    return Reading(frame=_number(bits, FRAME_CELLS), speaker=_number(bits, SPEAKER_CELLS), size=_number(bits, SIZE_CELLS))


def flashes(luma: bytes, width: int, height: int, *, stride: int = 0, area: Box | None = None) -> bool:
    """Whether the flash is lit in this picture."""
    return brightness(luma, stride or width, flash_box(area or Box(x=0, y=0, width=width, height=height))) > WHITE


def _number(bits: list[bool], cells: range) -> int:
    return sum(bits[cell] << (cells[-1] - cell) for cell in cells)
