"""What all maps have in common: a task runs over a raster, band by band, and its parts become files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.inference.results import FIELDS, RAW_FIELDS, check_overwrite, class_columns
from torchgeo_debias.progress import Progress, ProgressCallback, silent, track
from torchgeo_debias.tiling._place import apply
from torchgeo_debias.tiling.area import AreaLike, Wanted
from torchgeo_debias.tiling.engine import COUNTS, Engine, Settings, Task, compute_bands
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.journal import Journal, Key, require_space
from torchgeo_debias.tiling.layers import check_layer_path, write_layer
from torchgeo_debias.tiling.maps import check_map_path, class_map_dtype, write_class_map, write_score_map
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.regions import regions
from torchgeo_debias.tiling.source import Source
from torchgeo_debias.tiling.staging import clear_leftovers

Shape = Literal["tiles", "points", "regions"]
"""Features of a layer: squares of the grid, their centres, or the areas of one class in the map."""

_BYTES_A_TILE = 200
_PART_BYTES_A_PIXEL = 0.15
_MAP_BYTES_A_PIXEL = 0.35
"""What a map takes on the disk while it is made: it shrinks well, and there are two of it for a while."""


@dataclass(frozen=True)
class Outputs:
    """Files that one raster becomes; at least one.

    Attributes:
        layer: Features; see :func:`~torchgeo_debias.tiling.layers.write_layer`.
        class_map: Class of each pixel; see :func:`~torchgeo_debias.tiling.maps.write_class_map`.
        scores: Score of each pixel; see :func:`~torchgeo_debias.tiling.maps.write_score_map`.
        shape: Of the features.
    """

    layer: Path | None = None
    class_map: Path | None = None
    scores: Path | None = None
    shape: Shape = "tiles"

    def __post_init__(self) -> None:
        for name in ("layer", "class_map", "scores"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(path for path in (self.layer, self.class_map, self.scores) if path is not None)

    @property
    def painted(self) -> bool:
        """Whether pixels are needed."""
        return self.class_map is not None or self.scores is not None or self.scored

    @property
    def scored(self) -> bool:
        """Whether the scores of pixels are needed."""
        return self.scores is not None or (self.layer is not None and self.shape == "regions")

    def check(self, inputs: Sequence[Path]) -> None:
        """Refuse files that cannot be written, before anything is computed.

        Raises:
            ConfigError: If there is none, or the shape is unknown.
            OutputError: If one has an unknown ending, would destroy an input, or its folder cannot be written to.
        """
        if not self.paths:
            raise ConfigError("Nothing would be written: give --out, --map, --scores or, for many rasters, --out-dir.")
        if self.shape not in get_args(Shape):
            raise ConfigError(f"Features can be {', '.join(get_args(Shape))}; received {self.shape!r}.")
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise OutputError(f"{self.paths[-1]} would be written twice; give each result a name of its own.")
        check_overwrite(inputs, self.paths)
        if self.layer is not None:
            check_layer_path(self.layer)
        for raster in (self.class_map, self.scores):
            if raster is not None:
                check_map_path(raster)


@dataclass(frozen=True)
class OutputFormats:
    """Files that each of many rasters becomes.

    Attributes:
        layer: Ending of the layers, one of :data:`~torchgeo_debias.tiling.layers.VECTOR_FORMATS`; None for no layers.
        class_map: Whether class maps are written.
        scores: Whether maps of scores are written.
        shape: Of the features.
    """

    layer: str | None = ".gpkg"
    class_map: bool = False
    scores: bool = False
    shape: Shape = "tiles"

    def of(self, folder: Path, stem: str) -> Outputs:
        """The files of one raster."""
        return Outputs(
            folder / f"{stem}{self.layer}" if self.layer else None,
            folder / f"{stem}_classes.tif" if self.class_map else None,
            folder / f"{stem}_scores.tif" if self.scores else None,
            self.shape,
        )


@dataclass(frozen=True)
class MapOptions:
    """How a map is made, whatever the raster.

    Attributes:
        overlap: Share of a tile that the next one covers again, ``0 <= overlap < 1``.
        min_score: Tiles, cells or pixels below this score are left out, 0..1.
        keep_background: Also write features of the background class.
        bands: Bands to read, by number from 1 or by name, in the model's order; all but alpha where left out.
        nodata: Takes the place of the rasters' own nodata value.
        crs: Stands in for a raster that has none.
        area: Where results are wanted; see :data:`~torchgeo_debias.tiling.area.AreaLike`.
    """

    overlap: float = 0.0
    min_score: float = 0.0
    keep_background: bool = False
    bands: Sequence[int | str] | None = None
    nodata: float | None = None
    crs: str | None = None
    area: AreaLike | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"The lowest score must lie between 0 and 1; received {self.min_score}.")


@dataclass(frozen=True)
class Resources:
    """What a run may use; None is found out by a short probe, or a plain default where tiles are few.

    Attributes:
        batch_size: Tiles in one call of the model.
        workers: Calls of the model at a time.
        threads: Threads in each call.
        readers: Threads that read.
        engine: Who computes.
    """

    batch_size: int | None = None
    workers: int | None = None
    threads: int | None = None
    readers: int = 1
    engine: Engine = compute_bands

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "threads", "readers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"The {name.replace('_', ' ')} must be at least 1; received {value}.")


@dataclass(frozen=True)
class MapJob:
    """One raster with all that is done to it.

    Attributes:
        source: The raster.
        wanted: The tiles.
        task: What is done with them.
        table: The classes.
        outputs: What comes out.
        hidden: Class without features, such as the background; None where all have some.
        twin: Whether the records name the class of the biased twin as well.
        notes: Sentences about the raster that a person should read.
    """

    source: Source
    wanted: Wanted
    task: Task
    table: ClassTable
    outputs: Outputs
    hidden: int | None = None
    twin: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """Running counts over all rasters of a run.

    Attributes:
        total: Tiles.
        done: Tiles finished.
        skipped: Of these, the ones that hold no data.
        counts: Cells or pixels by class.
    """

    total: int
    classes: int
    progress: ProgressCallback = silent
    done: int = 0
    skipped: int = 0
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.classes, dtype=np.int64)

    def tell(self, tiles: int) -> None:
        """Report finished tiles."""
        self.done += tiles
        self.progress(Progress("classify", self.done, self.total))

    def facts(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The counts as plain JSON, or what was added since ``before``."""
        values = {"done": self.done, "skipped": self.skipped, "counts": self.counts.tolist()}
        if before is None:
            return values
        counts = [now - then for now, then in zip(values["counts"], before["counts"], strict=True)]
        return {"done": self.done - before["done"], "skipped": self.skipped - before["skipped"], "counts": counts}

    def take(self, facts: Mapping[str, Any]) -> None:
        """Add the counts of a raster that was finished before."""
        self.skipped += facts["skipped"]
        self.counts += np.array(facts["counts"])
        self.tell(facts["done"])


def run_map(job: MapJob, journal: Journal, raster: int, settings: Settings, engine: Engine, tally: Tally) -> bool:
    """Compute what is missing of one raster, then write its files.

    Args:
        job: The raster.
        journal: Of the run.
        raster: Position of the raster in the run.
        settings: Batch size and threads.
        engine: Who computes.
        tally: Counts of the run; told about each tile.

    Returns:
        Whether the raster holds data; otherwise no file is written.

    Raises:
        RasterError: If the raster is broken.
        OutputError: If a file cannot be written.
    """
    for path in job.outputs.paths:
        clear_leftovers(path)  # of an attempt that was killed while it wrote
    bands = job.wanted.plan.bands(job.source.block_shape[0], settings.batch_size)
    todo = [band for band in bands if Key(raster, band.number) not in journal]
    before = sum(int(part[COUNTS][0, 0]) for part in journal.parts(raster, [COUNTS]))
    if before:
        tally.tell(before)
    with ThreadPoolExecutor(1) as writer:
        waiting: Future[None] | None = None
        with closing(engine(job.source, job.wanted, job.task, todo, settings, tally.tell)) as results:
            for band, part in results:
                if waiting is not None:
                    waiting.result()
                waiting = writer.submit(journal.add, Key(raster, band.number), part)
        if waiting is not None:
            waiting.result()
    seen = skipped = 0
    for part in journal.parts(raster, [COUNTS, "counts"]):
        seen, skipped = seen + int(part[COUNTS][:, 0].sum()), skipped + int(part[COUNTS][:, 1].sum())
        tally.counts += part["counts"].sum(axis=0)
    tally.skipped += skipped
    if seen == skipped:
        journal.discard(raster)
        return False
    try:
        _write(job, journal, raster, tally)
    except OutputError as error:
        raise OutputError(
            f"{str(error).rstrip('.')}; what was computed is kept: run the same again to go on."
        ) from error
    return True


def require_room(jobs: Sequence[MapJob]) -> None:
    """Refuse runs that the disks have no room for, by a rough estimate: maps and polygons shrink very differently.

    Raises:
        OutputError: If less is free where results, or the parts they are made of, go.
    """
    needed: Counter[Path] = Counter()
    for job in jobs:
        pixels, tiles = job.source.width * job.source.height, len(job.wanted)
        parts = pixels * (job.outputs.painted + job.outputs.scored) * _PART_BYTES_A_PIXEL
        needed[job.outputs.paths[0].parent] += int(parts + tiles * _BYTES_A_TILE)
        for path in job.outputs.paths:
            rough = tiles * _BYTES_A_TILE if path == job.outputs.layer else pixels * _MAP_BYTES_A_PIXEL
            needed[path.parent] += int(rough)
    for folder, size in needed.items():
        require_space(folder, size, jobs[0].outputs.paths[0])


def _write(job: MapJob, journal: Journal, raster: int, tally: Tally) -> None:
    outputs, grid = job.outputs, job.source.grid
    told = _Told(job, journal, raster, tally)
    if outputs.class_map is not None:
        write_class_map(outputs.class_map, told.strips("ids"), grid, job.table)
    if outputs.scores is not None:
        write_score_map(outputs.scores, told.strips("percent"), grid)
    if outputs.layer is not None:
        # With "regions" the twin has no say: its map would have other areas.
        twin = job.twin and outputs.shape != "regions"
        write_layer(
            outputs.layer,
            told.areas() if outputs.shape == "regions" else told.records(),
            crs=grid.crs,
            fields=FIELDS | RAW_FIELDS if twin else FIELDS,
            geometry_type="Point" if outputs.shape == "points" else "Polygon",
            table=job.table,
        )


@dataclass
class _Told:
    """Parts on their way into files, with a word about each; who is told may stop it."""

    job: MapJob
    journal: Journal
    raster: int
    tally: Tally

    def parts(self, names: Sequence[str], progress: ProgressCallback | None = None) -> Iterator[Part]:
        total = self.journal.count(self.raster)
        yield from track(self.journal.parts(self.raster, names), "write", progress or self.tally.progress, total)

    def strips(self, name: str, progress: ProgressCallback | None = None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        top = 0
        for part in self.parts([name], progress):
            yield top, part[name]
            top += len(part[name])

    def records(self) -> Iterator[gpd.GeoDataFrame]:
        job = self.job
        for part in self.parts(["cells", "classes", "scores", "raw_classes", "raw_scores"]):
            if len(part["cells"]):
                raw = (part["raw_classes"], part["raw_scores"]) if job.twin else None
                columns = class_columns(job.table, part["classes"], part["scores"], raw)
                geometry = _centres if job.outputs.shape == "points" else _squares
                yield gpd.GeoDataFrame(columns, geometry=geometry(part, job.source.grid), crs=job.source.grid.crs)

    def areas(self) -> Iterator[gpd.GeoDataFrame]:
        job = self.job
        _, nodata = class_map_dtype(job.table)
        transform = job.source.grid.transform

        def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return np.column_stack(apply(transform, points[:, 0], points[:, 1]))

        scores = self.strips("percent", silent)  # side by side with the ids, which are told
        for found in regions(self.strips("ids"), nodata, skip=job.hidden, scores=scores):
            columns = class_columns(job.table, found.ids, found.scores)
            geometry = shapely.transform(found.geometries, place)
            yield gpd.GeoDataFrame(columns, geometry=geometry, crs=job.source.grid.crs)


def _corners(part: Part, grid: Grid) -> tuple[npt.NDArray[np.float64], ...]:
    columns, rows = part["cells"][:, ::2].T.astype(np.float64), part["cells"][:, 1::2].T.astype(np.float64)
    left, top = apply(grid.transform, columns[0], rows[0])
    right, low = apply(grid.transform, columns[1], rows[1])
    return left, top, right, low


def _squares(part: Part, grid: Grid) -> npt.NDArray[np.object_]:
    left, top, right, low = _corners(part, grid)
    boxes: npt.NDArray[np.object_] = shapely.box(
        np.minimum(left, right), np.minimum(top, low), np.maximum(left, right), np.maximum(top, low)
    )
    return boxes


def _centres(part: Part, grid: Grid) -> npt.NDArray[np.object_]:
    left, top, right, low = _corners(part, grid)
    points: npt.NDArray[np.object_] = np.asarray(shapely.points((left + right) / 2, (top + low) / 2))
    return points
