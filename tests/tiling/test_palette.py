from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_debias.tiling.palette import BACKGROUND, palette


@given(st.integers(1, 60), st.data())
def test_background_takes_its_place_and_leaves_the_other_colours_alone(n: int, data: st.DataObject) -> None:
    background = data.draw(st.none() | st.integers(0, n - 1))
    colours = palette(n, background)
    assert len(colours) == len(set(colours)) == n
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    objects = [colour for i, colour in enumerate(colours) if i != background]
    assert objects == palette(60)[: len(objects)]
    if background is not None:
        assert colours[background] == BACKGROUND


def test_21_colours_stay_apart_without_red_and_green_cones() -> None:
    # An independent simulation: Viénot, Brettel and Mollon (1999), deuteranopia, in linear RGB.
    vienot = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = ((np.array(palette(21)) / 255) ** 2.2 @ vienot.T).clip(0, 1) ** (1 / 2.2)
    assert min(np.abs(a - b).max() for a, b in combinations(seen, 2)) > 0.04


def test_more_classes_than_a_byte_holds() -> None:
    assert len(set(palette(256))) == 256


@pytest.mark.parametrize("module", ["torch", "matplotlib", "sklearn"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, torchgeo_debias.tiling.palette; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
