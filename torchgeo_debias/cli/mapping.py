"""From the options of ``classify`` to what mapping takes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import cast

from torchgeo_debias.cli.bands import parse_bands
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.inference.mapping import MapOptions, OutputFormats, Outputs, Resources, Shape
from torchgeo_debias.tiling.area import AreaLike
from torchgeo_debias.tiling.engine import Engine, compute_bands

_KINDS = ("layer", "map", "scores")


def map_options(
    *,
    overlap: float,
    min_score: float,
    keep_background: bool,
    bands: str | None,
    nodata: float | None,
    crs: str | None,
    area: str | None,
) -> MapOptions:
    """How the map is made."""
    return MapOptions(overlap, min_score, keep_background, parse_bands(bands), nodata, crs, _area(area))


def outputs(out: Path | None, class_map: Path | None, scores: Path | None, shape: str) -> Outputs:
    """The files of one raster or mosaic."""
    return Outputs(out, class_map, scores, cast(Shape, shape))


def output_formats(write: str, layer_format: str, shape: str) -> OutputFormats:
    """What each of many rasters becomes."""
    kinds = [part.strip() for part in write.split(",")]
    unknown = sorted(set(kinds) - set(_KINDS))
    if unknown:
        raise ConfigError(f"--write takes any of {', '.join(_KINDS)}; received {unknown[0]!r}.")
    ending = f".{layer_format.lstrip('.')}"
    return OutputFormats(ending if "layer" in kinds else None, "map" in kinds, "scores" in kinds, cast(Shape, shape))


def resources(
    engine: str, *, batch_size: int | None, workers: int | None, threads: int | None, readers: int
) -> Resources:
    """What the run may use."""
    return Resources(batch_size, workers, threads, readers, _engine(engine))


def _engine(name: str) -> Engine:
    kind, _, address = name.partition(":")
    if kind == "local" and not address:
        return compute_bands
    if kind == "ray":
        from torchgeo_debias.tiling.ray_engine import compute_bands_on_ray

        return partial(compute_bands_on_ray, address=address or None)
    raise ConfigError(f"--engine must be local, ray or ray:ADDRESS; received {name!r}.")


def _area(text: str | None) -> AreaLike | None:
    if text is None or os.path.exists(text):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text
