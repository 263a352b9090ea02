"""From the boxes that a detector finds in tiles to the features of a layer, row of tiles by row of tiles.

Whose is a box? Tiles overlap, and the *core* of a tile is the tile less half the overlap at each side that another one
shares: the cores cover the raster once. A tile keeps the boxes whose centre lies in its core. An object whose upright
box is shorter than the overlap is seen wholly by the tile that keeps it; what another tile sees of it, cut by its rim,
has its centre outside that tile's core. A model may place a centre a little differently in two tiles, so that each of
them leaves it to the other: therefore a tile also keeps boxes a little outside its core, unless its rim cuts them.
Suppression takes those that come twice.

Hence, where a model answers the same wherever in a tile an object lies, the result does not depend on the tiles, for
objects shorter than the overlap by 2 pixels of the model and more. Pieces of larger objects are kept, and marked as
cut. A model that suppresses within the tile is not quite such a model: a box falls to a stronger one that itself would
have fallen, had the tile shown what lies beyond its rim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from torchgeo_debias.boxes.convert import Floats, oriented_to_horizontal, to_corners
from torchgeo_debias.boxes.merge import Detections, StreamingSuppression
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.inference.mapping import Parts, Tally
from torchgeo_debias.inference.results import FIELDS, class_columns, count_classes
from torchgeo_debias.tiling._place import apply, ground_lengths
from torchgeo_debias.tiling.area import Area, Wanted
from torchgeo_debias.tiling.engine import Answer
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.plan import Tile

BOX_FIELDS = FIELDS | {"angle": "float64", "length": "float64", "width": "float64", "cut": "bool"}
"""pandas dtypes of the attributes of detected objects."""

_RIM = 1.0
"""Pixels of the model from the rim of a tile within which a box is taken to be cut by it."""

_SLACK = 1 / 8
"""Share of the overlap by which boxes may lie outside the core."""

_BYTES_A_BOX = 60

_BOXES_A_TILE = 10
"""Boxes that would be kept at a score of 1; at lower ones as many more as the square of the score is smaller.

Near duplicates stay until the run suppresses them: of the demo's detector, tiles of 280 pixels had 11, 50, 128, 614 and
4001 boxes from scores of 0.5, 0.3, 0.2, 0.1 and 0.05 on.
"""

_LEAST_SCORE = 0.05
"""Detectors tell of nothing below."""


class BoxMerger:
    """Boxes in the pixel frame of the raster, each from the tile that it belongs to.

    Memory is the boxes of one row of tiles.
    """

    def __init__(self, wanted: Wanted, oriented: bool, size: int) -> None:
        """Begin with nothing.

        Args:
            wanted: The tiles, in pixels of the raster.
            oriented: Whether boxes have an angle.
            size: Side of a tile as the model sees it, pixels, in whose frame its boxes are.
        """
        self._plan = wanted.plan
        self._columns = 5 if oriented else 4
        self._scale = wanted.plan.columns.window / size
        self._found: list[Part] = []

    def add(self, tile: Tile, own: npt.NDArray[np.bool_], answer: Answer | None) -> None:
        """Keep what belongs to the tile of what was found in it."""
        if answer is None:
            return
        found, scores, classes = answer[0]
        boxes = np.hstack([found[:, :4] * self._scale, found[:, 4:]])
        middle = centres(boxes)
        cut = self._cut(tile, boxes)
        corner = np.array([tile.window.col_off, tile.window.row_off])
        stays = self._near_core(tile, middle + corner, np.where(cut > 0, 0.0, _SLACK * self._plan.columns.overlap))
        moved = boxes[stays]
        moved[:, :2] += corner
        if self._columns == 4:
            moved[:, 2:] += corner
        self._found.append({"boxes": moved, "scores": scores[stays], "classes": classes[stays], "cut": cut[stays]})

    def settle(self, row: int) -> Part:
        """What the tiles of a row keep.

        Returns:
            Of n boxes ``boxes`` (n, 4) or (n, 5), ``scores`` (n,) float32, ``classes`` (n,) int64, and ``cut`` (n,)
            float32: how long a box is, in pixels, along the axis on which the rim of its tile cuts it; 0 where none
            does. And ``top`` (1,), the row of pixels where the uppermost begins, infinite where there is none.
        """
        nothing: Part = {
            "boxes": np.zeros((0, self._columns)),
            "scores": np.zeros(0, np.float32),
            "classes": np.zeros(0, np.int64),
            "cut": np.zeros(0, np.float32),
        }
        found, self._found = [nothing, *self._found], []
        part = {name: np.concatenate([piece[name] for piece in found]) for name in nothing}
        tops = _upright(part["boxes"])[:, 1]
        return {**part, "top": np.array([tops.min(initial=np.inf)])}

    def _cut(self, tile: Tile, boxes: Floats) -> npt.NDArray[np.float32]:
        """How long boxes are along the axis on which the rim cuts them, 0 for those that it does not cut."""
        upright = _upright(boxes)
        cut = np.zeros(len(boxes), dtype=np.float32)
        for axis, plan, place in ((0, self._plan.columns, tile.column), (1, self._plan.rows, tile.row)):
            first, last = upright[:, axis], upright[:, axis + 2]
            rim = _RIM * self._scale
            begins = (first < rim) & (place > 0)
            ends = (last > plan.window - rim) & (place < plan.tiles - 1)
            length = np.minimum(last, plan.window) - np.maximum(first, 0)
            cut = np.where(begins | ends, np.maximum(cut, length.astype(np.float32)), cut)
        return cut

    def _near_core(self, tile: Tile, points: Floats, slack: Floats) -> npt.NDArray[np.bool_]:
        """Which points (n, 2) lie no further than ``slack`` (n,) outside the core of a tile."""
        near = np.ones(len(points), dtype=bool)
        for axis, (begin, end) in enumerate((self._plan.columns.core(tile.column), self._plan.rows.core(tile.row))):
            near &= (points[:, axis] >= begin - slack) & (points[:, axis] < end + slack)
        return near


class BoxFeatures(NamedTuple):
    """Features of the boxes that no stronger one suppresses, as :class:`~torchgeo_debias.inference.mapping.Features`.

    Attributes:
        table: The classes.
        grid: Of the raster.
        area: Objects whose centre lies outside are left out; as others do, they take weaker ones along.
        overlap: Of the tiles, pixels.
        scale: Pixels of the raster for each of the model's.
        min_score: Of the boxes.
        threshold: Intersection over union above which the weaker of two boxes goes.
        agnostic: Whether boxes suppress those of other classes too.
        points: Whether a feature is the centre of its box.
    """

    table: ClassTable
    grid: Grid
    area: Area
    overlap: int
    scale: float
    min_score: float
    threshold: float
    agnostic: bool
    points: bool

    @property
    def fields(self) -> Mapping[str, str]:
        """Of the attributes."""
        return BOX_FIELDS

    @property
    def bytes_a_tile(self) -> int:
        """Roughly."""
        return int(_BYTES_A_BOX * _BOXES_A_TILE / max(self.min_score, _LEAST_SCORE) ** 2)

    def frames(self, parts: Parts, quietly: Parts, tally: Tally) -> Iterator[gpd.GeoDataFrame]:
        """The features from the top: those that no box of a later part can suppress."""
        # Boxes may stick out of their tiles, by how much shows only when all are there.
        tops = np.array([part["top"].min() for part in quietly(["top"])])
        frontiers = np.minimum.accumulate(np.append(tops[1:], np.inf)[::-1])[::-1]
        suppression = StreamingSuppression(self.threshold, per_class=not self.agnostic)
        for part, frontier in zip(parts(["boxes", "scores", "classes", "cut"]), frontiers, strict=True):
            ranks = self._ranks(part["boxes"], part["scores"])
            found = suppression.add(part["boxes"], ranks, part["classes"], float(frontier), part["cut"])
            yield self._frame(found, tally)
            tally.reach = max(tally.reach, self._reach(part))
        yield self._frame(suppression.finish(), tally)

    def _ranks(self, boxes: Floats, scores: npt.NDArray[np.float32]) -> Floats:
        """Scores as float64 that put the upper of equal ones first, whichever tile saw it.

        What is taken off is too little to be seen in float32: as such they are the scores again.
        """
        shares = centres(boxes) / [self.grid.width, self.grid.height]
        down = np.clip((shares[:, 1] + shares[:, 0] / math.pi) / 2, 0, 1)
        ranks: Floats = scores - np.spacing(np.abs(scores)).astype(np.float64) * down / 8
        return ranks

    def _frame(self, found: Detections, tally: Tally) -> gpd.GeoDataFrame:
        """Features with :data:`BOX_FIELDS`."""
        inside = self.area.holds(centres(found.boxes))
        boxes, classes, cut = found.boxes[inside], found.classes[inside], found.payload[inside] > 0
        tally.counts += count_classes(self.table, classes)
        tally.cut += int(cut.sum())
        columns = [
            class_columns(self.table, classes, found.scores[inside].astype(np.float32)),
            box_columns(boxes, self.grid),
            pd.DataFrame({"cut": cut}),
        ]
        return gpd.GeoDataFrame(pd.concat(columns, axis="columns"), geometry=self._geometry(boxes), crs=self.grid.crs)

    def _reach(self, part: Part) -> int:
        """Overlap, in pixels of the model, that holds all objects but those of which a tile sees only the middle."""
        inside = self.area.holds(centres(part["boxes"]))
        upright, cut = _upright(part["boxes"][inside]), part["cut"][inside]
        sides = upright[:, 2:] - upright[:, :2]
        # What two tiles cut is as long as both pieces less the overlap, which they share.
        pieces = 2 * cut[cut > 0] - self.overlap
        longest = max(float(sides.max(initial=0)), float(pieces.max(initial=0))) + 2 * _RIM * self.scale
        return math.ceil(math.ceil(longest) / self.scale)  # tiles begin and end with a pixel of the raster

    def _geometry(self, boxes: Floats) -> npt.NDArray[Any]:
        points = centres(boxes) if self.points else to_corners(boxes)
        placed = np.stack(apply(self.grid.transform, points[..., 0], points[..., 1]), axis=-1)
        made: npt.NDArray[Any] = np.asarray((shapely.points if self.points else shapely.polygons)(placed))
        return made


def box_columns(boxes: Floats, grid: Grid) -> pd.DataFrame:
    """Angle, length and width of boxes as people read them.

    Args:
        boxes: (N, 4) or (N, 5) in the pixel frame of ``grid``.
        grid: Of the raster.

    Returns:
        ``length`` and ``width``, metres on the ground at the place of the box, the length not below the width; and
        ``angle`` of the longer sides in the CRS of the raster, degrees counter-clockwise from east, 0 <= angle < 180,
        below 90 where both are alike.
    """
    corners = to_corners(boxes)
    middles = (corners + np.roll(corners, -1, axis=1)) / 2  # of the sides, the first one along the box's own axis
    lines = (middles[:, 3], middles[:, 1]), (middles[:, 0], middles[:, 2])
    lengths = np.stack([ground_lengths(grid, *line) for line in lines]).round(3)
    t = grid.transform
    across, down = np.moveaxis(np.stack([end - start for start, end in lines]), -1, 0)
    angles = np.degrees(np.arctan2(t.d * across + t.e * down, t.a * across + t.b * down))
    longer = (lengths[1] > lengths[0]).astype(np.int64)
    period = np.where(lengths[0] == lengths[1], 90.0, 180.0)
    angle = np.mod(np.mod(angles[longer, np.arange(len(boxes))], period).round(3), period)
    return pd.DataFrame({"angle": angle, "length": lengths.max(axis=0), "width": lengths.min(axis=0)})


def centres(boxes: Floats) -> Floats:
    """Centres (N, 2) of boxes (N, 4) or (N, 5)."""
    middle: Floats = (boxes[:, :2] + boxes[:, 2:]) / 2 if boxes.shape[1] == 4 else boxes[:, :2]
    return middle


def _upright(boxes: Floats) -> Floats:
    return boxes if boxes.shape[1] == 4 else oriented_to_horizontal(boxes)
