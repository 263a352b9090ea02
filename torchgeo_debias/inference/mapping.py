"""What all maps have in common: the files, the options, what may be used, and the running counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.inference.results import check_overwrite
from torchgeo_debias.progress import Progress, ProgressCallback, silent
from torchgeo_debias.tiling.area import Area, AreaLike, Wanted, area_digest, in_memory
from torchgeo_debias.tiling.engine import Engine, Task, compute_bands
from torchgeo_debias.tiling.journal import require_space
from torchgeo_debias.tiling.layers import check_layer_path
from torchgeo_debias.tiling.maps import check_map_path
from torchgeo_debias.tiling.parts import Part
from torchgeo_debias.tiling.plan import TilePlan, check_overlap
from torchgeo_debias.tiling.source import Source

Shape = Literal["tiles", "points", "regions", "boxes"]
"""Features of a layer: squares of the grid, the areas of one class in the map, boxes around objects; or, in place of
squares and boxes, their centres."""

CLASSIFY_SHAPES: tuple[Shape, ...] = ("tiles", "points", "regions")
"""What classifying makes."""

DETECT_SHAPES: tuple[Shape, ...] = ("boxes", "points")
"""What detecting makes."""

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
        shape: Of the features; where left out, boxes of a detector and tiles of a classifier.
    """

    layer: Path | None = None
    class_map: Path | None = None
    scores: Path | None = None
    shape: Shape | None = None

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
        if self.shape not in (None, *get_args(Shape)):
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
        shape: Of the features; where left out, boxes of a detector and tiles of a classifier.
    """

    layer: str | None = ".gpkg"
    class_map: bool = False
    scores: bool = False
    shape: Shape | None = None

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
        overlap: Share of a tile that the next one covers again, 0 to 0.9.
        min_score: Tiles, cells, pixels or objects below this score are left out, 0..1.
        keep_background: Also write features of the background class.
        bands: Bands to read, by number from 1 or by name, in the model's order; all but alpha where left out.
        nodata: Takes the place of the rasters' own nodata value.
        crs: Stands in for a raster that has none.
        area: Where results are wanted; see :data:`~torchgeo_debias.tiling.area.AreaLike`.
        verb: What a run does, as people and its journal call it.
    """

    verb: ClassVar[str] = "classify"

    overlap: float = 0.0
    min_score: float = 0.0
    keep_background: bool = False
    bands: Sequence[int | str] | None = None
    nodata: float | None = None
    crs: str | None = None
    area: AreaLike | None = None

    def __post_init__(self) -> None:
        check_overlap(self.overlap)
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"The lowest score must lie between 0 and 1; received {self.min_score}.")

    def wanted(self, source: Source, side: float) -> Wanted:
        """The tiles of ``side`` pixels that a raster is looked at in."""
        plan = TilePlan.of(source.width, source.height, side, self.overlap)
        return Wanted(plan, Area.of(self._area, source.grid, source.footprints))

    def hidden(self, table: ClassTable) -> int | None:
        """The class that gets no features, None where all do."""
        return None if self.keep_background else table.background

    def described(self) -> dict[str, Any]:
        """All that the result of a run hangs on, as plain JSON."""
        return {
            "overlap": float(self.overlap),
            "min-score": float(self.min_score),
            "keep-background": self.keep_background,
            "bands": None if self.bands is None else [str(band) for band in self.bands],
            "nodata": repr(self.nodata),  # in JSON, NaN would not even equal itself
            "crs": None if self.crs is None else str(self.crs),
            "area": area_digest(self._area),
        }

    @cached_property
    def _area(self) -> AreaLike | None:
        """The area, read once: there may be thousands of rasters."""
        return None if self.area is None else in_memory(self.area)


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


Parts = Callable[[Sequence[str]], Iterator[Part]]
"""The parts of one raster from the top, with the arrays of these names."""


class Features(Protocol):
    """How the features of a layer are made of the parts of a raster, where they are neither tiles nor regions.

    Attributes:
        fields: pandas dtype of each attribute.
        bytes_a_tile: What they take on the disk, roughly.
    """

    @property
    def fields(self) -> Mapping[str, str]: ...  # noqa: D102

    @property
    def bytes_a_tile(self) -> int: ...  # noqa: D102

    def frames(self, parts: Parts, quietly: Parts, tally: Tally) -> Iterator[gpd.GeoDataFrame]:
        """The features, a few at a time.

        Args:
            parts: To be gone through once, to the end: tells how far the writing has come.
            quietly: The same, as often as need be.
            tally: Takes the counts.
        """
        ...


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
        features: Makes those of the layer; None for tiles and regions.
    """

    source: Source
    wanted: Wanted
    task: Task
    table: ClassTable
    outputs: Outputs
    hidden: int | None = None
    twin: bool = False
    notes: tuple[str, ...] = ()
    features: Features | None = None


@dataclass
class Tally:
    """Running counts over all rasters of a run.

    Attributes:
        total: Tiles.
        classes: Number of classes.
        progress: Told about finished tiles.
        stage: What they are finished with, for ``progress``.
        done: Tiles finished.
        skipped: Of these, the ones that hold no data.
        cut: Objects that reach the rim of their tile.
        reach: Overlap that would hold all of these, pixels of the model.
        counts: Cells, pixels or objects by class.
    """

    total: int
    classes: int
    progress: ProgressCallback = silent
    stage: str = MapOptions.verb
    done: int = 0
    skipped: int = 0
    cut: int = 0
    reach: int = 0
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.classes, dtype=np.int64)

    def tell(self, tiles: int) -> None:
        """Report finished tiles."""
        self.done += tiles
        self.progress(Progress(self.stage, self.done, self.total))

    def facts(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The counts as plain JSON, or what was added since ``before``."""
        sums = {"done": self.done, "skipped": self.skipped, "cut": self.cut}
        counts = self.counts.tolist()
        if before is not None:
            sums = {name: value - before[name] for name, value in sums.items()}
            counts = [now - then for now, then in zip(counts, before["counts"], strict=True)]
        return {**sums, "reach": self.reach, "counts": counts}

    def take(self, facts: Mapping[str, Any]) -> None:
        """Add the counts of a raster that was finished before."""
        self.skipped += facts["skipped"]
        self.cut += facts["cut"]
        self.reach = max(self.reach, facts["reach"])
        self.counts += np.array(facts["counts"])
        self.tell(facts["done"])


def room(job: MapJob) -> Counter[Path]:
    """Bytes that a run needs in each folder, by a rough estimate: maps and polygons shrink very differently."""
    needed: Counter[Path] = Counter()
    pixels = job.source.width * job.source.height
    records = len(job.wanted) * (_BYTES_A_TILE if job.features is None else job.features.bytes_a_tile)
    parts = pixels * (job.outputs.painted + job.outputs.scored) * _PART_BYTES_A_PIXEL
    needed[job.outputs.paths[0].parent] += int(parts + records)
    for path in job.outputs.paths:
        rough = records if path == job.outputs.layer else pixels * _MAP_BYTES_A_PIXEL
        needed[path.parent] += int(rough)
    return needed


def require_room(needed: Mapping[Path, int], output: Path) -> None:
    """Refuse runs that the disks have no room for.

    Args:
        needed: See :func:`room`; of several runs, summed up.
        output: Named in the sentence.

    Raises:
        OutputError: If less is free where results, or the parts they are made of, go.
    """
    for folder, size in needed.items():
        require_space(folder, size, output)
