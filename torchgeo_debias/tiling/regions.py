"""The polygons of a class map that arrives in strips, without seams.

A region is a set of pixels of one class that hang together over their edges (4-connectivity). A strip together with
the row above it is enough to find every corner of an outline that lies in it, so that outlines do not depend on where
the map was cut and there is nothing to stitch. What is carried from strip to strip are the last row and, for each
region that reaches it, its corners so far. Once a region is not in the last row any more, its corners are linked to
rings: along each line of the pixel grid they are in turn the beginning and the end of a stretch of its outline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from torchgeo_debias.tiling.maps import SCORE_NODATA

# Strips are worked on in slices, which bounds the memory of the work whatever the strips are.
_SLICE_PIXELS = 2**19

_Ints = npt.NDArray[np.signedinteger[Any]]
_Mask = npt.NDArray[np.bool_]


class Regions(NamedTuple):
    """Some regions of a class map.

    Attributes:
        ids: Their class ids (n,), int64.
        geometries: Their valid shapely polygons (n,), objects, in pixels (column, row) from the outer corner of the
            raster. Only corners are vertices. Outer rings run counter-clockwise on a map with north up.
        pixels: Their areas (n,), int64, in pixels.
        scores: The means of their pixels' scores (n,), float64, 0 to 1; NaN where no pixel has one.
    """

    ids: npt.NDArray[np.int64]
    geometries: npt.NDArray[np.object_]
    pixels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


def regions(
    strips: Iterable[tuple[int, npt.NDArray[Any]]],
    nodata: int,
    *,
    skip: int | None = None,
    scores: Iterable[tuple[int, npt.NDArray[np.uint8]]] | None = None,
) -> Iterator[Regions]:
    """Polygons of a class map, each given out as soon as its last row is known to be its last.

    The sequence of all regions is ordered by last row, then by first pixel (row, then column). Neither it nor any of
    its values depends on how the map was cut into strips; only the sizes of the batches do. Memory is that of a
    strip, plus 8 bytes for each corner of the regions still open and, while a region is closed, some 160 for each of
    its corners.

    Args:
        strips: ``(row_off, ids (rows, W))`` from the top of the map to its bottom, without gaps; integers of one dtype.
        nodata: Id of pixels without class, within the range of that dtype; they belong to no region.
        skip: A class to leave out, such as the background.
        scores: ``(row_off, percent (rows, W))`` for the same strips, uint8, 0 to 100, :data:`SCORE_NODATA` for
            none.

    Yields:
        Batches of finished regions, none of them empty.

    Raises:
        ValueError: If the strips leave gaps or overlap, or if ``scores`` come in other strips than the ids.
    """
    tracer: _Tracer | None = None
    paired: Iterable[Any] = zip(strips, repeat((None, None))) if scores is None else zip(strips, scores, strict=True)
    for (row_off, ids), (score_off, percent) in paired:
        tracer = tracer or _Tracer(ids.shape[1], ids.dtype, nodata, skip)
        if row_off != tracer.rows or (percent is not None and (score_off, percent.shape) != (row_off, ids.shape)):
            raise ValueError(f"A strip of ids or scores does not begin at row {tracer.rows}, where the last one ended.")
        step = max(1, _SLICE_PIXELS // ids.shape[1])
        for top in range(0, len(ids), step):
            part = slice(top, top + step)
            yield from tracer.add(ids[part], None if percent is None else percent[part])
    if tracer is not None:
        # A row of nothing closes what is open.
        yield from tracer.add(np.full((1, tracer.width), nodata, tracer.dtype), None)


class _Tracer:
    """What is carried from slice to slice.

    Attributes:
        rows: Rows seen so far.
        last: Ids (W,) of the last of them.
        owner: For each pixel of it the open region that it belongs to (W,), -1 where to none.
        tallies: Pixels, sum of their percents and pixels with a percent of each open region (3, n), float64, which is
            exact up to 2**53.
        corners: The corners of each open region, in pieces, coded as by :func:`_corners`.
    """

    def __init__(self, width: int, dtype: np.dtype[Any], nodata: int, skip: int | None) -> None:
        self.width, self.dtype, self.nodata, self.rows = width, dtype, nodata, 0
        self._outside = [nodata] if skip is None else [nodata, skip]
        self.last = np.full(width, nodata, dtype)
        self.owner: _Ints = np.full(width, -1, np.int64)
        self.tallies: npt.NDArray[np.float64] = np.zeros((3, 0))
        self.corners: list[list[_Ints]] = []

    def add(self, ids: npt.NDArray[Any], percent: npt.NDArray[np.uint8] | None) -> Iterator[Regions]:
        """Take in the next rows, and give out the regions that they finish."""
        # Rims without class: then every stretch of an outline lies between two pixels.
        grid = np.full((len(ids) + 1, self.width + 2), self.nodata, self.dtype)
        grid[0, 1:-1], grid[1:, 1:-1] = self.last, ids
        across, down = grid[:, 1:] != grid[:, :-1], grid[1:] != grid[:-1]
        starts = np.pad(across, ((0, 0), (1, 0)), constant_values=True)
        begin = np.flatnonzero(starts)
        run = np.cumsum(starts, dtype=np.int32).reshape(grid.shape) - 1
        id_of_run = grid.ravel()[begin]
        inside = ~np.isin(id_of_run, self._outside)

        # Runs hang together where they meet, and those of the row above also by the open regions they belong to.
        meet = ~down & (starts[1:] | starts[:-1])
        above = np.flatnonzero(inside[: run[1, 0]])
        first = len(self.corners)
        count, label = _components(
            np.concatenate([self.owner[begin[above] - 1], first + run[:-1][meet]]),
            np.concatenate([first + above, first + run[1:][meet]]),
            first + len(begin),
        )
        of_open, of_run = label[:first], label[first:]
        tallies: npt.NDArray[np.float64] = np.stack([
            np.bincount(label, np.concatenate(parts), count)
            for parts in zip(self.tallies, _tallies(begin, grid.shape, percent), strict=True)
        ])  # fmt: skip
        id_of = np.empty(count, np.int64)
        id_of[of_run] = id_of_run

        ending = run[-1, 1:-1]
        still = np.unique(of_run[ending[inside[ending]]])
        rank = np.full(count, -1, np.int64)
        rank[still] = np.arange(len(still))

        corners, runs = _corners(across, down, run, self.rows)
        corners, region = corners[inside[runs]], of_run[runs[inside[runs]]]
        closed = self._settle(corners, region, of_open, rank, len(still))
        self.rows += len(ids)
        self.last, self.owner, self.tallies = ids[-1].copy(), rank[of_run[ending]], tallies[:, still]
        if len(closed[0]):
            found, geometries = _polygons(*closed)
            pixels, total, scored = tallies[:, found]
            mean = np.divide(total, 100 * scored, out=np.full(len(found), np.nan), where=scored > 0)
            yield Regions(id_of[found], geometries, pixels.astype(np.int64), mean)

    def _settle(self, corners: _Ints, region: _Ints, of_open: _Ints, rank: _Ints, still: int) -> tuple[_Ints, _Ints]:
        """Put new corners and those of the regions open so far with the regions that stay open; returns the rest.

        Args:
            corners: New corners (c,).
            region: The regions that they belong to (c,).
            of_open: The regions that those open so far have become part of.
            rank: For each region its place among those that stay open, -1 for the others.
            still: How many stay open.

        Returns:
            The corners of the regions that are finished, and their regions.
        """
        pieces: list[list[_Ints]] = [[] for _ in range(still)]
        done = rank[region] < 0
        closed, closed_region = [corners[done]], [region[done]]
        for to, before in zip(of_open, self.corners, strict=True):
            if rank[to] < 0:
                closed += before
                closed_region += [np.full(len(piece), to) for piece in before]
            else:
                pieces[rank[to]] += before
        corners, place = corners[~done], rank[region[~done]]
        order = np.argsort(place, kind="stable")
        ends = np.cumsum(np.bincount(place, minlength=still))
        for k in np.unique(place):
            # A copy, since a view would keep the corners of all the others in memory for as long as this one.
            pieces[k].append(corners[order[ends[k - 1] if k else 0 : ends[k]]])
        self.corners = pieces
        return np.concatenate(closed), np.concatenate(closed_region)


def _components(a: _Ints, b: _Ints, count: int) -> tuple[int, _Ints]:
    """Number of groups, and the group of each of ``count`` things, of which each ``a`` hangs together with a ``b``."""
    links = coo_array((np.ones(len(a), np.int8), (a, b)), (count, count))
    groups, label = connected_components(links, directed=False)
    return int(groups), label


def _tallies(begin: _Ints, shape: tuple[int, ...], percent: npt.NDArray[np.uint8] | None) -> list[npt.NDArray[Any]]:
    """Pixels, sum of their percents and pixels with a percent of each run, without the row above: it has been counted.

    Args:
        begin: Where the runs begin in the flat grid of ids.
        shape: Rows and columns of that grid: the row above and the slice, with rims.
        percent: Those of the slice.
    """
    pixels = np.diff(begin, append=shape[0] * shape[1])
    pixels[begin < shape[1]] = 0
    if percent is None:
        return [pixels, np.zeros(len(begin)), np.zeros(len(begin))]
    grid = np.full(shape, SCORE_NODATA, np.uint8)
    grid[1:, 1:-1] = percent
    has = (grid != SCORE_NODATA).ravel()
    total = np.add.reduceat(np.where(has, grid.ravel(), 0), begin, dtype=np.int64)
    return [pixels, total, np.add.reduceat(has, begin, dtype=np.int64)]


def _corners(across: _Mask, down: _Mask, run: _Ints, row: int) -> tuple[_Ints, _Ints]:
    """Where outlines turn.

    Seen from one of the four pixels around a point of the grid, the outline of its region turns there if its two
    neighbours among the four are both others (the pixel sticks out) or both equal (then the pixel opposite, if it
    differs, is a notch in the region). Outlines run with their region on the left; on a turn they either arrive
    level, along a row, and leave upright, along a column, or the other way round.

    Args:
        across: Where a pixel differs from the one left of it, (h + 1, W + 1).
        down: Where a pixel differs from the one above it, (h, W + 2).
        run: The run of each pixel, (h + 1, W + 2).
        row: That of the points between the first two rows of pixels.

    Returns:
        The corners (c,), coded ``row << 32 | column << 1 | arrives level`` and ordered by that, and the run of a pixel
        of the region each of them belongs to. Two corners of one region are equal where it touches itself.
    """
    at = np.flatnonzero((across[:-1] | across[1:]) & (down[:, :-1] | down[:, 1:]))
    rows, columns = np.divmod(at, across.shape[1])
    top, bottom = across[:-1].ravel()[at], across[1:].ravel()[at]
    left, right = down[rows, columns], down[rows, columns + 1]
    turns = np.stack([top == left, top == right, bottom == left, bottom == right], axis=1)
    level = np.stack([top, ~top, ~bottom, bottom], axis=1)
    corner = run.ravel()[(rows * run.shape[1] + columns)[:, None] + [0, 1, run.shape[1], run.shape[1] + 1]]
    coded = ((row + rows) << 32 | columns << 1)[:, None] | level
    return coded[turns], corner[turns]


def _polygons(corners: _Ints, region: _Ints) -> tuple[_Ints, npt.NDArray[np.object_]]:
    """Link the corners of some regions to polygons.

    Returns:
        The regions, ordered by last row, then first pixel, and their polygons.
    """
    order = np.lexsort((corners, region))
    corners, region = corners[order], region[order]
    row, column, level = corners >> 32, (corners & 0xFFFFFFFF) >> 1, (corners & 1).astype(bool)

    # In this order, corners 2k and 2k + 1 are the ends of a stretch along a row; in the other one, along a column.
    # Where a region touches itself it has two corners in one place. Each then takes the stretches on both sides of
    # the same foreign pixel, as otherwise a ring would touch itself, and a polygon of such a ring is not valid.
    twice = np.append((corners[1:] == corners[:-1]) & (region[1:] == region[:-1]), False)
    by_column = np.lexsort((column << 32 | row << 1 | (twice & level), region))
    upright = np.empty_like(by_column)
    upright[by_column[::2]], upright[by_column[1::2]] = by_column[1::2], by_column[::2]
    here = np.arange(len(corners))
    follower = np.where(level, upright, here ^ 1)

    count, ring = _components(here, follower, len(here))
    first = np.empty(count, np.int64)
    first[ring[::-1]] = here[::-1]  # the last assignment wins, that of the first corner
    head = np.sort(first)
    ends = np.cumsum(np.bincount(ring)[ring[head]])

    # One walk through all rings: each one's last corner leads on to the next one's first.
    before = np.empty_like(here)
    before[follower] = here
    follower[before[head[:-1]]] = head[1:]
    chain = csr_array((np.ones(len(here), np.int8), follower, np.arange(len(here) + 1)))
    walk = depth_first_order(chain, head[0], return_predecessors=False)
    walk = np.insert(walk, ends, head)  # closes the rings

    # The first corner of a region lies on its outer ring.
    outer = np.flatnonzero(np.diff(region[head], prepend=-1))
    geometries = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        np.stack([column[walk], row[walk]], axis=1).astype(np.float64),
        (np.append(0, ends + np.arange(1, count + 1)), np.append(outer, count)),
    )
    begin = head[outer]
    last = np.append(begin[1:], len(here)) - 1
    order = np.lexsort((corners[begin], row[last]))
    return region[begin[order]], geometries[order]
