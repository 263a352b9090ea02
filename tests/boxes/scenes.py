"""Random boxes, and suppression as its definition says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

from torchgeo_debias.boxes import candidates
from torchgeo_debias.boxes import suppress as suppress_module
from torchgeo_debias.boxes.candidates import Indices
from torchgeo_debias.boxes.convert import Floats
from torchgeo_debias.boxes.overlap import METRICS
from torchgeo_debias.boxes.suppress import MetricName


class Scene(NamedTuple):
    boxes: Floats
    scores: Floats
    classes: Indices


def scenes(max_size: int = 40) -> st.SearchStrategy[Scene]:
    """Horizontal or oriented boxes, on whole numbers (duplicates, shared edges, sizes of zero) or anywhere; equal
    scores; few places for many boxes or many for few."""
    return st.builds(
        scene,
        seed=st.integers(0, 2**32 - 1),
        count=st.integers(0, max_size),
        extent=st.sampled_from([1, 4, 20, 100]),
        whole=st.booleans(),
        oriented=st.booleans(),
    )


def scene(seed: int, count: int, extent: float, whole: bool, oriented: bool) -> Scene:
    rng = np.random.default_rng(seed)
    low, sides = rng.uniform(0, extent, (count, 2)), rng.choice([1.0, 3.0, 8.0], (count, 1)) * rng.random((count, 2))
    angle = rng.uniform(-400, 400, count)
    if whole:
        low, sides, angle = np.round(low), np.round(sides), np.round(angle / 45) * 45
    boxes = np.column_stack([low + sides / 2, sides, angle]) if oriented else np.hstack([low, low + sides])
    return Scene(boxes, rng.integers(0, 1 + count // 2, count) / 10, rng.integers(0, 3, count))


def brute_force(scene: Scene, threshold: float, metric: MetricName, per_class: bool) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scene.boxes)), key=lambda i: (-scene.scores[i], i)):
        rivals = np.array(kept, np.int64)
        if per_class:
            rivals = rivals[scene.classes[rivals] == scene.classes[index]]
        if not (METRICS[metric](scene.boxes[rivals], scene.boxes[index]) > threshold).any():
            kept.append(index)
    return kept


@contextmanager
def small_lots(pairs: int) -> Iterator[None]:
    """Cut the work as if so few pairs filled the memory."""
    with patch.object(candidates, "BLOCK", pairs), patch.object(suppress_module, "BLOCK", pairs):
        yield
