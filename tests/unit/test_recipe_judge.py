"""The judge of recipes: when the media at a position of a file was live."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench import recipe_judge
from machine import alignment


@pytest.mark.parametrize("seam_ms", [1_001, 4_023, 4_024, 8_046, 16_391])
def test_a_picture_right_at_a_seam_belongs_to_what_follows(seam_ms: int) -> None:
    """A seam of 4,023 ms is at 4.023 s, and a thousand times that is less than 4,023 ms."""
    points = ((0, 0), (seam_ms, seam_ms), (seam_ms, seam_ms + 1_000), (seam_ms + 3_000, seam_ms + 4_000))
    made = SimpleNamespace(anchors=alignment.Anchors(points), gaps=[])
    assert recipe_judge.live_s(made, seam_ms / 1000) == pytest.approx(seam_ms / 1000 + 1)  # type: ignore[arg-type]
    assert recipe_judge.live_s(made, seam_ms / 1000 - 0.01) == pytest.approx(seam_ms / 1000 - 0.01)  # type: ignore[arg-type]
