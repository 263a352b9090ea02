from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_debias.data import windows
from torchgeo_debias.data.chips import ChipSpec, resize
from torchgeo_debias.data.windows import MIN_SIDE, cut_square, square_windows
from torchgeo_debias.errors import ConfigError

coordinate = st.floats(-500, 500)
extent = st.floats(0.1, 300)


@given(coordinate, coordinate, extent, extent, st.floats(0, 1))
def test_fitted_square_holds_the_object_and_its_margin(x: float, y: float, w: float, h: float, margin: float) -> None:
    bounds = np.asarray([[x, y, x + w, y + h]])
    col, row, side = square_windows(bounds, ChipSpec(8, margin=margin), None)[0]
    assert side == max(MIN_SIDE, np.rint(max(w, h) * (1 + 2 * margin)))
    # centred to half a pixel, and a rounded side takes at most another half
    assert abs(col + side / 2 - (x + w / 2)) <= 0.5 + 1e-6
    assert abs(row + side / 2 - (y + h / 2)) <= 0.5 + 1e-6


@given(st.integers(-50, 50), st.floats(0, 1, exclude_max=True), st.sampled_from([7, 8, 31.5, 64]))
def test_shift_by_a_pixel_shifts_the_window(shift: int, fraction: float, window: float) -> None:
    spec = ChipSpec(8, window=window)
    here = square_windows(np.full((1, 4), 64 + fraction), spec, None)[0]
    there = square_windows(np.full((1, 4), 64 + shift + fraction), spec, None)[0]
    np.testing.assert_array_equal(there - here, [shift, shift, 0])


def test_window_in_metres_and_rescaled_pixels() -> None:
    bounds = np.asarray([[100.0, 100.0, 100.0, 100.0]])
    assert square_windows(bounds, ChipSpec(8, window=30, unit="m"), 0.5)[0].tolist() == [70, 70, 60]
    assert square_windows(bounds, ChipSpec(8, window=30, gsd=1.0), 0.5)[0, 2] == 60
    assert square_windows(bounds, ChipSpec(8, window=30), 0.5)[0, 2] == 30


def test_points_need_a_window() -> None:
    with pytest.raises(ConfigError, match="Points have no extent"):
        square_windows(np.asarray([[1.0, 1.0, 1.0, 1.0]]), ChipSpec(8), None)


class Counting:
    """A source that is never asked for more than a band of rows of a large window."""

    def __init__(self, image: np.ndarray, valid: np.ndarray) -> None:
        self.image, self.valid, self.largest = image, valid, 0

    def __call__(self, col: int, row: int, width: int, height: int) -> tuple[Any, Any]:
        self.largest = max(self.largest, width * height)
        rows, columns = slice(row, row + height), slice(col, col + width)
        return self.image[:, rows, columns], self.valid[rows, columns]


def test_small_squares_are_resampled_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 255, (2, 50, 50), dtype=np.uint8)
    read = Counting(image, np.ones((50, 50), dtype=bool))
    pixels, _ = cut_square(read, np.asarray([5, 7, 40], dtype=np.int64), 16)
    expected, _ = resize(image[:, 7:47, 5:45], np.ones((40, 40), dtype=bool), 16)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_huge_squares_are_read_in_bands_and_look_the_same(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_MAX_READ", 256)
    side = 709
    y, x = np.mgrid[:side, :side]
    image = (120 + 80 * np.sin(x / 50) * np.cos(y / 80))[None].astype(dtype)
    valid = np.ones((side, side), dtype=bool)
    valid[: side // 2, : side // 3] = False
    read = Counting(image, valid)
    pixels, mask = cut_square(read, np.asarray([0, 0, side], dtype=np.int64), 16)
    expected, expected_mask = resize(image, valid, 16)
    assert read.largest <= 256 * 256
    np.testing.assert_allclose(pixels.astype(float), expected.astype(float), atol=3)
    assert (mask == expected_mask).all()
    assert pixels.dtype == dtype


@pytest.mark.parametrize(
    ("spec", "gsd"),
    [
        (ChipSpec(8, window=32769), None),
        (ChipSpec(8, window=1e9, unit="m"), 2.0),
        (ChipSpec(8, window=64, gsd=1e9), 2.0),
    ],
)
def test_windows_that_no_memory_holds_are_refused(spec: ChipSpec, gsd: float | None) -> None:
    with pytest.raises(ConfigError, match="at most 32768 can be read"):
        square_windows(np.array([[0.0, 0, 10, 10]]), spec, gsd)
    assert ChipSpec(8, window=32768).window_px(None) == 32768
