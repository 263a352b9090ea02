"""The part of a raster that is wanted: cells for planning, pixels for painting."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeAlias

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio.features import geometry_mask
from rasterio.transform import Affine

from torchgeo_debias.errors import ConfigError, LabelError
from torchgeo_debias.tiling._place import apply
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.plan import TilePlan

AreaLike: TypeAlias = Path | str | Sequence[float] | gpd.GeoDataFrame
"""A polygon layer in any CRS (a file, or read already), or (left, bottom, right, top) in the CRS of the raster."""

_TOUCH = 1e-6
"""Pixels by which a cell must reach into an area: sharing an edge is not enough."""

_SEGMENTS = 100
"""Straight edges become curves in another CRS: at least so many pieces across an area are moved."""

_PATH = "path"
"""Attribute of a frame that was read here: what sentences call it."""

_log = logging.getLogger(__name__)


class Area:
    """Where on a raster results are wanted."""

    def __init__(self, wanted: Any | None = None, present: Any | None = None) -> None:  # noqa: ANN401 - geometries
        """Take geometries in pixels (column, row) from the raster's outer corner.

        Args:
            wanted: The area of interest, a polygon or several in one; everything where left out.
            present: Where there may be data at all; everywhere where left out.
        """
        self._wanted, self._present = wanted, present
        # An area may have thousands of parts, and rows as many: each looks only at the parts that reach it.
        self._parts = shapely.get_parts(wanted)
        _, self._tops, _, self._bottoms = shapely.bounds(self._parts).T
        both = [geometry for geometry in (wanted, present) if geometry is not None]
        self._shape = shapely.intersection_all(both) if both else None
        for geometry in (self._shape, wanted):
            shapely.prepare(geometry)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, Any]]:
        return type(self), (self._wanted, self._present)

    @classmethod
    def of(cls, area: AreaLike | None, grid: Grid, footprints: Sequence[Any] | None = None) -> Self:
        """Read an area of interest and place it on a raster.

        Args:
            area: See :data:`AreaLike`; everything where left out.
            grid: Of the raster.
            footprints: Polygons in the CRS of the raster outside of which there is no data.

        Raises:
            ConfigError: If bounds are not four numbers in order.
            LabelError: If a layer cannot be read, has no CRS, or holds anything but polygons.
        """
        wanted = None
        if area is not None:
            wanted = _to_pixels(area_around(area, [grid]), grid)
        present = None if footprints is None else _to_pixels(shapely.union_all(footprints), grid)
        return cls(wanted, present)

    def cells(self, plan: TilePlan, row: int) -> npt.NDArray[np.bool_]:
        """Which cells of one row of cells of the plan are wanted and may hold data, (columns of cells,)."""
        columns = plan.columns.cells
        if self._shape is None:
            return np.ones(columns, dtype=bool)
        result = np.zeros(columns, dtype=bool)
        step = plan.columns.step
        left, _, right, _ = shapely.bounds(self._shape)
        if np.isnan(left):
            return result
        near = np.arange(max(int(left // step), 0), min(int(right // step) + 1, columns))
        top, height = plan.rows.cell(row)
        x0 = near * step
        x1 = np.minimum(x0 + step, plan.columns.length)
        y0 = np.full(len(near), top)
        boxes = shapely.box(x0 + _TOUCH, y0 + _TOUCH, x1 - _TOUCH, y0 + height - _TOUCH)
        result[near] = shapely.intersects(self._shape, boxes)
        return result

    def mask(self, top: int, height: int, width: int) -> npt.NDArray[np.bool_] | None:
        """Which pixels of full rows have their centre in the area of interest, (height, width); None for all."""
        if self._wanted is None:
            return None
        shapes = self._parts[(self._tops < top + height) & (self._bottoms > top)].tolist()
        if not shapes:
            return np.zeros((height, width), dtype=bool)
        mask: npt.NDArray[np.bool_] = geometry_mask(shapes, (height, width), Affine(1, 0, 0, 0, 1, top), invert=True)
        return mask

    def holds(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which points (N, 2), in pixels (column, row), lie in the area of interest or on its edge, (N,)."""
        if self._wanted is None:
            return np.ones(len(points), dtype=bool)
        inside: npt.NDArray[np.bool_] = shapely.intersects_xy(self._wanted, points[:, 0], points[:, 1])
        return inside


class Wanted:
    """The tiles of a plan that an area needs, row by row."""

    def __init__(self, plan: TilePlan, area: Area) -> None:
        self.plan = plan
        self.area = area
        # The rows of cells that one row of tiles reaches are asked for again by the next.
        self._cells = lru_cache(maxsize=4 * (plan.halo + 1))(lambda row: area.cells(plan, row))

    def __reduce__(self) -> tuple[type[Self], tuple[TilePlan, Area]]:
        return type(self), (self.plan, self.area)

    def cells(self, row: int) -> npt.NDArray[np.bool_]:
        """Which cells of a row of cells are wanted."""
        return self._cells(row)

    def columns(self, row: int) -> npt.NDArray[np.intp]:
        """Columns of the tiles of a row that cover a wanted cell: these see the same as without an area."""
        return self.plan.reached(row, self._cells)

    def __len__(self) -> int:
        return sum(len(self.columns(row)) for row in range(self.plan.rows.tiles))


def area_digest(area: AreaLike | None) -> str | None:
    """SHA-256 of an area as it was given, None for none; errors as in :meth:`Area.of`."""
    if area is None:
        return None
    geometry, crs = read_area(area)
    described = shapely.to_wkb(geometry) + (b"" if crs is None else crs.to_wkt().encode())
    return hashlib.sha256(described).hexdigest()


def in_memory(area: AreaLike) -> AreaLike:
    """An area whose layer is read, for those who ask for it again and again; errors as in :meth:`Area.of`."""
    return _read_layer(Path(area)) if isinstance(area, str | Path) else area


def read_area(area: AreaLike, of: str = "raster") -> tuple[Any, Any]:
    """The area as one geometry, and its CRS, None where it is the one ``of`` the data; errors as in :meth:`Area.of`."""
    if not isinstance(area, str | Path | gpd.GeoDataFrame):
        if len(area) != 4 or not np.isfinite(area).all() or area[0] >= area[2] or area[1] >= area[3]:
            raise ConfigError(
                f"An area of bounds needs left, bottom, right, top in the CRS of the {of}; received {_name(area)}."
            )
        return shapely.box(*area), None
    frame = area if isinstance(area, gpd.GeoDataFrame) else _read_layer(Path(area))
    frame = frame[~(frame.geometry.is_empty | frame.geometry.isna())]
    geometry = _united(frame.geometry.to_numpy())
    if geometry.is_empty or not frame.geom_type.str.endswith("Polygon").all():
        raise LabelError(f"The area {_name(area)} must have polygons and nothing else.")
    if frame.crs is None:
        raise _no_crs(area)
    return geometry, frame.crs


def area_around(area: AreaLike, grids: Sequence[Grid]) -> Any:  # noqa: ANN401 - a shapely geometry
    """The area in the CRS of the first of some rasters, without what lies far away from all; errors as in `Area.of`.

    Far away from a raster, what its CRS shows of the earth may come out anywhere.
    """
    geometry, crs = read_area(area)
    target = grids[0].crs
    if crs is None or crs == target:
        return geometry
    try:
        geometry = _united(np.array([_near(geometry, crs, grid) for grid in grids], np.object_))
        if geometry.is_empty:
            return geometry
        left, bottom, right, top = geometry.bounds
        fine = shapely.segmentize(geometry, max(right - left, top - bottom) / _SEGMENTS)
        return _united(gpd.GeoSeries([fine], crs=crs).to_crs(target).to_numpy())
    except ProjError as error:  # of a drawing, or of another planet
        raise _no_crs(area) from error


def _near(geometry: Any, crs: Any, grid: Grid) -> Any:  # noqa: ANN401 - a shapely geometry, a CRS of pyproj
    """What of an area lies around a raster: in the CRS of the raster, what lies far away may come out anywhere."""
    columns, rows = np.meshgrid(np.linspace(0, grid.width, 21), np.linspace(0, grid.height, 21))
    there = Transformer.from_crs(CRS.from_wkt(grid.crs.to_wkt()), crs, always_xy=True)
    x, y = there.transform(*apply(grid.transform, columns, rows))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return geometry
    spare = max(np.ptp(x), np.ptp(y)) / 10
    # Degrees east may be counted from 0 to 360.
    turns = (-360, 0, 360) if crs.is_geographic else (0,)
    around = [shapely.box(x.min() + t - spare, y.min() - spare, x.max() + t + spare, y.max() + spare) for t in turns]
    return _united(shapely.intersection([geometry], shapely.union_all(around)))


def _united(geometries: npt.NDArray[np.object_]) -> Any:  # noqa: ANN401 - a shapely geometry
    """One valid geometry, without the lines that crumpled polygons leave: burnt into a mask they would take pixels."""
    parts = shapely.get_parts(shapely.make_valid(geometries))
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def _read_layer(path: Path) -> gpd.GeoDataFrame:
    if not path.exists():
        raise LabelError(f"There is no area layer at {path}; check the path.")
    try:
        # Beside its layer a GeoPackage may hold plain tables, such as the styles.
        spatial = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        frame = pyogrio.read_dataframe(path, layer=spatial[0], columns=[]) if spatial else gpd.GeoDataFrame(geometry=[])
    except (DataSourceError, DataLayerError) as error:
        raise LabelError(f"{path} cannot be read as a layer of polygons; check the file.") from error
    if len(spatial) > 1:
        _log.warning("%s has the layers %s; taking %s for the area.", path, ", ".join(spatial), spatial[0])
    frame.attrs[_PATH] = str(path)
    return frame


def _to_pixels(geometry: Any, grid: Grid) -> Any:  # noqa: ANN401 - shapely geometries
    inverse = ~grid.transform

    def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        columns, rows = apply(inverse, points[:, 0], points[:, 1])
        return np.column_stack([columns, rows])

    return shapely.transform(geometry, place)


def _no_crs(area: AreaLike) -> LabelError:
    return LabelError(
        f"The area {_name(area)} has no coordinate reference system on the earth; assign the right one first."
    )


def _name(area: AreaLike) -> str:
    if isinstance(area, gpd.GeoDataFrame):
        return str(area.attrs.get(_PATH, f"of {len(area)} features"))
    return str(area) if isinstance(area, str | Path) else ", ".join(f"{v:g}" for v in area)
