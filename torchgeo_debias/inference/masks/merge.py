"""Objects from the masks of overlapping tiles: what two tiles see of one object becomes one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage

from torchgeo_debias.inference.masks.pieces import Bounds, Piece, outlines, window_of
from torchgeo_debias.tiling.plan import TilePlan


class Joining(NamedTuple):
    """When masks of two tiles are one object, and which objects are none.

    Attributes:
        alike: Two masks are one, where their intersection over union in the strip that the two tiles share is at least
            this. A mask that its tile cuts and that is like none of the other tile belongs to the one that it shares
            most pixels with, where it is so much like a connected part that this has in the strip.
        most: Objects of more pixels are left out.
    """

    alike: float = 0.5
    most: float = math.inf


class Instance(NamedTuple):
    """An object.

    Attributes:
        polygon: In pixels of the raster, with holes where it has some.
        score: How sure the model of masks is.
        cut: Whether no tile holds it whole, so that it is put together from pieces.
    """

    polygon: Any
    score: float
    cut: bool


@dataclass
class _Group:
    """Masks known to be one object.

    Attributes:
        first: Running number of its first mask, which orders the results.
        row: Last row of tiles with a mask of it.
        whole: The surest mask that no tile cuts: score, running number, outlines.
        pieces: Outlines of the others, as long as there is no whole one.
        area: Sum of the pixels of all pieces.
        weight: The same, times their scores.
        fresh: Pixels of the pieces that came since they were last united.
        large: Whether its pieces are known to have too many pixels, and are forgotten.
    """

    first: int
    row: int
    whole: tuple[float, int, Any] | None = None
    pieces: list[Any] = field(default_factory=list)
    area: int = 0
    weight: float = 0.0
    fresh: int = 0
    large: bool = False

    def take(self, other: _Group, most: float) -> None:
        self.first, self.row = min(self.first, other.first), max(self.row, other.row)
        candidates = [whole for whole in (self.whole, other.whole) if whole is not None]
        self.whole = max(candidates, key=lambda whole: (whole[0], -whole[1]), default=None)
        self.large |= other.large
        self.pieces = [] if self.whole is not None or self.large else self.pieces + other.pieces
        self.area, self.weight = self.area + other.area, self.weight + other.weight
        self.fresh += other.fresh
        if self.pieces and self.fresh > most:  # what lies behind all objects may go on for ever
            self._unite(most)

    def instance(self, most: float) -> Instance | None:
        """The object; None where it has more than ``most`` pixels."""
        if self.whole is not None:
            score, _, polygons = self.whole
            return Instance(largest(polygons), score, False) if shapely.area(polygons).sum() <= most else None
        self._unite(most)
        return None if self.large else Instance(largest(np.array(self.pieces, object)), self.weight / self.area, True)

    def _unite(self, most: float) -> None:
        # Where outlines met there are points left on straight lines.
        joined = shapely.simplify(shapely.union_all(self.pieces), 0)
        self.large |= bool(joined.area > most)
        self.pieces, self.fresh = [] if self.large else list(shapely.get_parts(joined)), 0


class InstanceMerger:
    """Puts objects together while rows of tiles come in from the top.

    An object that a tile holds whole (its mask does not touch a rim of the tile that lies inside the raster) is what
    the surest such tile says of it; masks of it that other tiles cut are left out. An object that no tile holds whole
    is the union of its pieces. Of masks in several parts the largest is taken. Objects of more than ``joining.most``
    pixels, all parts together, are left out once they are put together, so that it does not hang on the tiles which.

    In memory are the masks of the rows of tiles that the next one overlaps, and the outlines of objects that reach
    them: it grows with the width of the raster and with the length of objects, of those up to ``most``. The order and
    the values of the results do not depend on the portions in which rows arrive.
    """

    def __init__(self, plan: TilePlan, joining: Joining) -> None:
        self._plan, self._joining = plan, joining
        self._reach = -(-plan.columns.window // plan.columns.step) - 1
        self._live: dict[tuple[int, int], list[tuple[int, Piece]]] = {}
        self._groups: dict[int, _Group] = {}
        self._parent: dict[int, int] = {}
        self._count = 0

    def add(self, row: int, pieces: Sequence[Piece]) -> Iterator[Instance]:
        """Take the masks of a row of tiles, and give out the objects that no further row can reach."""
        yield from self._close(row - self._plan.halo)
        traced = outlines([piece.pixels for piece in pieces], [piece.bounds[:2] for piece in pieces])
        for piece, polygons in zip(pieces, traced, strict=True):
            number = self._count
            self._count += 1
            self._parent[number] = number
            self._groups[number] = self._group(number, piece, polygons)
            self._live.setdefault((row, piece.column), []).append((number, piece))
        for column in sorted({piece.column for piece in pieces}):
            for above in range(row - self._plan.halo, row + 1):
                # In its own row a tile meets those to its left; the others will meet it.
                end = column if above == row else column + self._reach + 1
                for beside in range(column - self._reach, end):
                    self._join((row, column), (above, beside))

    def finish(self) -> Iterator[Instance]:
        """Say that no further row comes."""
        yield from self._close(self._plan.rows.tiles + self._plan.halo)

    def _close(self, row: int) -> Iterator[Instance]:
        """Give out what no row of tiles from ``row`` on has a part of."""
        self._live = {place: found for place, found in self._live.items() if place[0] >= row}
        done = sorted((group.first, root) for root, group in self._groups.items() if group.row < row)
        closed = {root for _, root in done}
        for _, root in done:
            if (instance := self._groups.pop(root).instance(self._joining.most)) is not None:
                yield instance
        self._parent = {child: parent for child, parent in self._parent.items() if self._root(child) not in closed}

    def _group(self, number: int, piece: Piece, polygons: npt.NDArray[np.object_]) -> _Group:
        area = int(np.count_nonzero(piece.pixels))
        group = _Group(number, piece.row, area=area, weight=area * piece.score, fresh=area)
        if self._cut(piece).any():
            group.pieces = list(polygons)
        else:
            group.whole = (piece.score, number, polygons)
        return group

    def _cut(self, piece: Piece) -> npt.NDArray[np.bool_]:
        """At which sides of its tile (left, top, right, bottom) a mask ends where the raster goes on."""
        tile = window_of(self._plan, piece.row, piece.column)
        whole = Bounds(0, 0, self._plan.columns.length, self._plan.rows.length)
        touches = [side == rim for side, rim in zip(piece.bounds, tile, strict=True)]
        return np.array(touches) & _beyond(whole, tile)

    def _join(self, here: tuple[int, int], there: tuple[int, int]) -> None:
        ours, theirs = self._live.get(here, []), self._live.get(there, [])
        windows = window_of(self._plan, *here), window_of(self._plan, *there)
        strip = windows[0].shared(windows[1])
        if strip.empty or not ours or not theirs:
            return
        shared = _shared(ours, theirs)
        areas = [np.array([_pixels(piece, strip) for _, piece in side]) for side in (ours, theirs)]
        union = areas[0][:, None] + areas[1][None] - shared
        alike = (shared > 0) & (shared >= self._joining.alike * union)
        links = {(int(i), int(j)) for i, j in np.argwhere(alike)}
        # A piece without its like may be a part of one: a bay may part an object in one tile and not in the other.
        for axis, side in enumerate((ours, theirs)):
            seen = _beyond(windows[1 - axis], windows[axis])
            for k, (_, piece) in enumerate(side):
                row = np.take(shared, k, axis=axis)
                lonely = row.any() and not np.take(alike, k, axis=axis).any()
                if lonely and (self._cut(piece) & seen).any():
                    other = int(row.argmax())
                    part = _part((theirs, ours)[axis][other][1], piece, strip)
                    if part.shared >= self._joining.alike * (areas[axis][k] + part.pixels - part.shared):
                        links.add((k, other) if axis == 0 else (other, k))
        for i, j in sorted(links):
            self._unite(ours[i][0], theirs[j][0])

    def _unite(self, one: int, other: int) -> None:
        kept, gone = sorted((self._root(one), self._root(other)))
        if kept != gone:
            self._parent[gone] = kept
            self._groups[kept].take(self._groups.pop(gone), self._joining.most)

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


def _beyond(one: Bounds, other: Bounds) -> npt.NDArray[np.bool_]:
    """At which sides (left, top, right, bottom) a window reaches further than another."""
    return np.array([one.left < other.left, one.top < other.top, one.right > other.right, one.bottom > other.bottom])


def _shared(ours: Sequence[tuple[int, Piece]], theirs: Sequence[tuple[int, Piece]]) -> npt.NDArray[np.int64]:
    """How many pixels each mask of one tile (rows) shares with each of another (columns)."""
    result = np.zeros((len(ours), len(theirs)), np.int64)
    boxes = [np.array([piece.bounds for _, piece in side]) for side in (ours, theirs)]
    low = np.maximum(boxes[0][:, None, :2], boxes[1][None, :, :2])
    high = np.minimum(boxes[0][:, None, 2:], boxes[1][None, :, 2:])
    for i, j in np.argwhere((low < high).all(axis=2)):
        one, other = ours[i][1], theirs[j][1]
        both = one.bounds.shared(other.bounds)
        result[i, j] = np.count_nonzero(one.within(both) & other.within(both))
    return result


class _Part(NamedTuple):
    """A connected part of a mask: its pixels, and those that it shares with another mask."""

    pixels: int
    shared: int


def _part(piece: Piece, other: Piece, window: Bounds) -> _Part:
    """The part of a mask, within a window that both masks reach, that shares most with another."""
    around = piece.bounds.shared(window)
    parts, _ = ndimage.label(piece.within(around))  # by edges, as outlines are
    both = around.shared(other.bounds)
    here = parts[both.top - around.top : both.bottom - around.top, both.left - around.left : both.right - around.left]
    sizes = np.bincount(here[other.within(both)])[1:]
    most = int(sizes.argmax())
    return _Part(int(np.count_nonzero(parts == most + 1)), int(sizes[most]))


def _pixels(piece: Piece, window: Bounds) -> int:
    both = piece.bounds.shared(window)
    return 0 if both.empty else int(np.count_nonzero(piece.within(both)))


def largest(polygons: Any) -> Any:  # noqa: ANN401 - shapely geometries
    """The largest of some polygons; of equal ones the first."""
    return polygons[int(np.argmax(shapely.area(polygons)))]
