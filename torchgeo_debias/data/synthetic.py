"""A synthetic scene on the map: labelled objects in its west, the same kinds without labels in its east.

Ten kinds of objects that only their shape tells apart stand on a landscape of fields, woods, yards, water, roads and
trees. The west is long-tailed as real labels are; the east holds each kind equally often, because a rare class with
four test objects measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from PIL import Image, UnidentifiedImageError
from rasterio.errors import CRSError
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window
from scipy import ndimage
from scipy.spatial import cKDTree
from shapely.geometry import Polygon, box

from torchgeo_debias.data import _ground, _render
from torchgeo_debias.data._sketches import MAX_RADIUS, SKETCHES, sketch
from torchgeo_debias.data.chips import resize
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.files import atomic, make_folder
from torchgeo_debias.progress import ProgressCallback, silent, track

CRS = "EPSG:32633"
ORIGIN = (412_000.0, 5_318_000.0)
"""Upper left corner of every scene, metres in :data:`CRS`."""

COUNTS: dict[str, int] = {name: round(280 * 70 ** (-rank / (len(SKETCHES) - 1))) for rank, name in enumerate(SKETCHES)}
"""Labelled objects of the default scene: n_c = 280 * 70^(-r / 9), so 280 houses and 4 helipads."""

SPACING = 70.0
"""Least distance between the centres of two objects, pixels; a 64 pixel window may show the edge of a neighbour."""
MARGIN = MAX_RADIUS + 6
"""Least distance of a centre from the rim and from the middle line, pixels."""


@dataclass(frozen=True)
class Scene:
    """The files of a synthetic scene.

    Attributes:
        raster: ``scene.tif``, RGB uint8.
        labels: ``labels.gpkg``, outlines with ``class``, west half.
        footprints: ``footprints.gpkg``, outlines without class, east half.
        truth: ``truth.gpkg``, the footprints, in the same order, with ``class``; for scoring only.
    """

    raster: Path
    labels: Path
    footprints: Path
    truth: Path


@dataclass(frozen=True)
class _Item:
    name: str
    x: float
    y: float
    half: int  # 0 is west


def write_scene(
    folder: Path,
    *,
    size: int = 4096,
    seed: int = 0,
    gsd: float = 0.3,
    counts: Mapping[str, int] | None = None,
    test_count: int = 25,
    progress: ProgressCallback = silent,
) -> Scene:
    """Write a georeferenced scene with labels in its west half and bare footprints in its east half.

    Equal arguments give equal pixels and geometries. Every object is between 15 and 60 pixels long, keeps off the
    middle line and the rim, and overlaps no other.

    Args:
        folder: Where the four files go; made if need be.
        size: Side of the raster, pixels.
        seed: Of everything that is drawn at random.
        gsd: Metres per pixel.
        counts: Labelled objects by class, a subset of :data:`COUNTS`, which is the default.
        test_count: Objects of each of these classes in the east half.
        progress: Told of each step.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: If a class is unknown, a number is not positive or the objects do not fit.
        OutputError: If the folder cannot be written.
    """
    counts = COUNTS if counts is None else counts
    _check(size, gsd, counts, test_count)
    land_rng, place_rng, object_rng, camera_rng = np.random.default_rng(seed).spawn(4)
    ground = _ground.paint(size, land_rng)
    items = _positions(ground, size, counts, test_count, place_rng)
    stock = _ground.crowns(ground.sun, land_rng)
    outlines = _populate(ground, items, stock, object_rng, progress)
    transform = from_origin(*ORIGIN, gsd, gsd)
    frame = _on_map(outlines, transform, CRS, {"class": [item.name for item in items]})
    west = np.array([item.half == 0 for item in items])
    scene = Scene(*(folder / name for name in ("scene.tif", "labels.gpkg", "footprints.gpkg", "truth.gpkg")))
    make_folder(folder)
    _write_raster(scene.raster, ground, transform, camera_rng, progress)
    _write_layer(frame[west], scene.labels)
    truth = frame[~west].reset_index(drop=True)
    _write_layer(truth[["geometry"]], scene.footprints)
    _write_layer(truth, scene.truth)
    return scene


def _check(size: int, gsd: float, counts: Mapping[str, int], test_count: int) -> None:
    unknown = sorted(set(counts) - set(SKETCHES))
    if unknown:
        raise ConfigError(f"The scene knows no class {', '.join(unknown)}; it can draw {', '.join(SKETCHES)}.")
    if not counts or min(counts.values()) < 1 or test_count < 1:
        raise ConfigError("A scene needs at least one labelled and one test object of each class.")
    if size < 512 or gsd <= 0:
        raise ConfigError(f"A scene needs at least 512 pixels and a positive resolution; received {size} and {gsd}.")


def _positions(
    ground: _ground.Ground, size: int, counts: Mapping[str, int], test_count: int, rng: np.random.Generator
) -> list[_Item]:
    """A free place for every object, drawn until it fits; in random order, so that no class gets the better land."""
    items: list[_Item] = []
    for half, wanted in enumerate((dict(counts), dict.fromkeys(counts, test_count))):
        names = [name for name, count in wanted.items() for _ in range(count)]
        left = half * size / 2
        taken: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for name in rng.permutation(names):
            for _ in range(4000):
                x = float(rng.uniform(left + MARGIN, left + size / 2 - MARGIN))
                y = float(rng.uniform(MARGIN, size - MARGIN))
                if _is_apart(taken, x, y) and _ground.is_free(ground, x, y, MAX_RADIUS - 2):
                    break
            else:
                raise ConfigError(
                    f"{len(names)} objects do not fit into one half of a scene of {size} x {size} pixels; "
                    "ask for fewer objects or a larger scene."
                )
            taken.setdefault((int(x // SPACING), int(y // SPACING)), []).append((x, y))
            items.append(_Item(str(name), x, y, half))
    return items


def _is_apart(taken: Mapping[tuple[int, int], list[tuple[float, float]]], x: float, y: float) -> bool:
    column, row = int(x // SPACING), int(y // SPACING)
    near = ((c, r) for c in range(column - 1, column + 2) for r in range(row - 1, row + 2))
    return all(np.hypot(x - px, y - py) >= SPACING for cell in near for px, py in taken.get(cell, ()))


def _populate(
    ground: _ground.Ground,
    items: list[_Item],
    stock: list[Image.Image],
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> list[Polygon]:
    """Paint yards, objects and trees; the outlines as an analyst would draw them, in pixels."""
    centres = np.array([(item.x, item.y) for item in items])
    size = ground.image.width
    # Empty yards and small patches lie everywhere, so that none of them says that an object is near.
    for x, y in rng.uniform(0, size, (round(size * size / 40_000), 2)):
        reach = (26.0, 52.0) if rng.random() < 0.4 else (4.0, 14.0)
        if _ground.is_free(ground, x, y, reach[1]):
            _ground.lot(ground, x, y, rng, reach)
    # All yards come before the first object, so that none covers a neighbour.
    for item in items:
        if rng.random() < 0.5:
            _ground.lot(ground, item.x, item.y, rng)
    outlines = []
    for item in track(items, "objects", progress):
        drawn = sketch(item.name, rng)
        angle = float(rng.uniform(0, 2 * np.pi))
        _render.render(ground.image, drawn, item.x, item.y, angle, ground.sun, rng)
        # An analyst clicks few corners, and none of them quite where it is.
        clicked = shapely.get_coordinates(Polygon(_render.place(drawn, item.x, item.y, angle)).simplify(0.8))[:-1]
        outlines.append(Polygon(clicked + rng.normal(0, 0.4, clicked.shape)))
        _occlude(ground, item, drawn.radius, stock, rng)
    gap = _distance(centres, ground.trees[:, :2])
    _ground.plant(ground.image, ground.trees[gap > MAX_RADIUS + 8], stock, rng)
    return outlines


def _occlude(
    ground: _ground.Ground, item: _Item, radius: float, stock: list[Image.Image], rng: np.random.Generator
) -> None:
    """Let trees and rocks stand near many objects, and here and there lean over an edge."""
    count = int(rng.integers(0, 5))
    turn = rng.uniform(0, 2 * np.pi, count)
    reach = radius * rng.uniform(0.7, 1.4, count)
    at = np.column_stack([item.x + reach * np.cos(turn), item.y + reach * np.sin(turn)])
    _ground.plant(ground.image, np.column_stack([at, rng.uniform(5, 14, count)]), stock, rng)


def _distance(centres: npt.NDArray[np.float64], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From each of ``points`` (N, 2) to the nearest of ``centres`` (M, 2), pixels."""
    distances: npt.NDArray[np.float64] = cKDTree(centres).query(points)[0]
    return distances


def _on_map(shapes: list[Polygon], transform: Affine, crs: str, columns: Mapping[str, list[str]]) -> gpd.GeoDataFrame:
    """Shapes in pixels as a table in map coordinates."""
    matrix = [transform.a, transform.b, transform.d, transform.e, transform.c, transform.f]
    return gpd.GeoDataFrame(dict(columns), geometry=gpd.GeoSeries(shapes).affine_transform(matrix), crs=crs)


def _write_raster(
    path: Path, ground: _ground.Ground, transform: Affine, rng: np.random.Generator, progress: ProgressCallback
) -> None:
    """Look at the painted scene through a camera: uneven light, blur and noise, one band of rows at a time."""
    image, size, band, halo = ground.image, ground.image.width, 512, 4
    profile = {
        "driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8", "crs": CRS,
        "transform": transform, "photometric": "rgb", "compress": "deflate", "predictor": 2,
        "tiled": True, "blockxsize": band, "blockysize": band,
    }  # fmt: skip
    with atomic(path) as part, rasterio.open(part, "w", **profile) as target:
        for top in track(range(0, size, band), "raster", progress):
            rows = min(band, size - top)
            above, below = min(halo, top), min(halo, size - top - rows)
            rgb = np.asarray(image.crop((0, top - above, size, top + rows + below)), dtype=np.float32)
            rgb = ndimage.gaussian_filter(rgb, (0.55, 0.55, 0), truncate=3)[above : above + rows]
            light = 1 + 0.09 * ground.noise((0, top, size, top + rows), (256,))
            grain = rng.standard_normal((rows, size, 1), dtype=np.float32) * 4
            grain = grain + rng.standard_normal((rows, size, 3), dtype=np.float32) * 3
            out = np.clip(rgb * light[..., None] + grain, 0, 255).astype(np.uint8)
            target.write(out.transpose(2, 0, 1), window=Window(0, top, size, rows))


def _write_layer(frame: gpd.GeoDataFrame, path: Path) -> None:
    with atomic(path) as part:
        frame.to_file(part, driver="GPKG", layer=path.stem)


def mosaic(
    folder: Path, out: Path, gsd: float, crs: str, cell: int, images: Sequence[str] | None = None
) -> gpd.GeoDataFrame:
    """Lay the images of a scene folder side by side as one map whose classes are known.

    The order is shuffled, always alike, so that neighbours differ in class. One row of cells is held at a time.

    Args:
        folder: ``<class>/<image>``, one folder a class.
        out: The GeoTIFF to write, RGB uint8; the cells go to the GeoPackage of the same name. Cells left over in the
            last row are masked.
        gsd: Metres per pixel of the map.
        crs: Of the map, projected.
        cell: Side of a cell, pixels; images of another size are resized to it.
        images: Paths within ``folder`` of the images to lay out, their parent naming the class; default: all.

    Returns:
        One square a cell, in row order, with ``class`` and ``source`` (path within ``folder``).

    Raises:
        ConfigError: If the resolution or the cell is not positive, or the reference system is unknown.
        DataError: If the folder holds no images, or one of them cannot be read.
        OutputError: If the map cannot be written.
    """
    if gsd <= 0 or cell < 1 or not _is_crs(crs):
        raise ConfigError(f"A mosaic needs a positive gsd and cell and a known CRS; received {gsd}, {cell} and {crs}.")
    found = folder.glob("*/*") if images is None else [folder / name for name in images]
    sources = sorted(p for p in found if p.is_file() and not p.name.startswith("."))
    if not sources:
        raise DataError(f"No image found in {folder}; it must hold one folder of images a class.")
    order = np.random.default_rng(0).permutation(len(sources))
    sources = [sources[i] for i in order]
    columns = int(np.ceil(np.sqrt(len(sources))))
    rows = -(-len(sources) // columns)
    transform = from_origin(*ORIGIN, gsd, gsd)
    profile = {
        "driver": "GTiff", "width": columns * cell, "height": rows * cell, "count": 3, "dtype": "uint8", "crs": crs,
        "transform": transform, "photometric": "rgb", "compress": "deflate", "blockysize": cell,
    }  # fmt: skip
    make_folder(out.parent)
    with (
        atomic(out) as part,
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(part, "w", **profile) as target,
    ):
        for row in range(rows):
            strip = np.zeros((3, cell, columns * cell), dtype=np.uint8)
            chosen = sources[row * columns : (row + 1) * columns]
            for column, source in enumerate(chosen):
                strip[:, :, column * cell : (column + 1) * cell] = _read(source, cell)
            window = Window(0, row * cell, columns * cell, cell)
            target.write(strip, window=window)
            target.write_mask(np.arange(columns * cell) < np.full((cell, 1), len(chosen) * cell), window=window)
    squares = [
        box(column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        for row, column in (divmod(i, columns) for i in range(len(sources)))
    ]
    known = {
        "class": [source.parent.name for source in sources],
        "source": [source.relative_to(folder).as_posix() for source in sources],
    }
    frame = _on_map(squares, transform, crs, known)
    _write_layer(frame, out.with_suffix(".gpkg"))
    return frame


def _is_crs(text: str) -> bool:
    try:
        rasterio.crs.CRS.from_user_input(text)
    except CRSError:
        return False
    return True


def _read(source: Path, side: int) -> npt.NDArray[np.uint8]:
    """One image as (3, side, side)."""
    try:
        with Image.open(source) as image:
            rgb = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"Cannot read the image {source}: {error}; remove it or replace it.") from error
    resized, _ = resize(rgb, np.ones(rgb.shape[1:], dtype=bool), side)
    return resized.astype(np.uint8, copy=False)
