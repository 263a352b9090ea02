"""Classifying the features of an existing layer: footprints, parcels, points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.data.layers import cut_chips, read_layer
from torchgeo_debias.errors import ConfigError, LabelError
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction, thresholds_of
from torchgeo_debias.inference.results import (
    FIELDS,
    RAW_FIELDS,
    ClassifySummary,
    best,
    check_job,
    check_source,
    count_classes,
    prediction_columns,
)
from torchgeo_debias.progress import Progress, ProgressCallback, silent
from torchgeo_debias.tiling.layers import check_layer_path, write_layer
from torchgeo_debias.tiling.source import RasterSource, extent


def classify_features(
    rasters: Path | Sequence[Path],
    layer: Path,
    predictor: ChipPredictor,
    out: Path,
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    crs: str | None = None,
    batch_size: int = 64,
    progress: ProgressCallback = silent,
) -> ClassifySummary:
    """Give every feature of a layer a class.

    The result has the features of the layer in their order, with their geometry, attributes and CRS, and the
    attributes ``class``, ``class_id``, ``score``, ``group`` and, for models with a biased twin, ``class_raw`` and
    ``score_raw``. An attribute of the layer with one of these names (or with a name that GeoPackage keeps for itself,
    ``fid`` and ``geom``) becomes ``class_label`` and so on, and so does the second of two that differ by case alone.

    A feature is known to be an object: the background class, if the model has one, is left out and the other
    probabilities are scaled to sum to 1. A feature belongs to the first raster that contains the centre of its bounds
    and has data there; one that belongs to none has nulls in the new attributes.

    Args:
        rasters: One, or several that together cover the layer.
        layer: Points need a model whose chips have a fixed window.
        predictor: The model.
        out: ``.gpkg``, ``.parquet``, ``.fgb`` or ``.geojson``; see :func:`~torchgeo_debias.tiling.layers.write_layer`.
        bands: Bands to read, counted from 1 or by name, in the model's order; all but alpha where left out.
        nodata: Takes the place of the rasters' own nodata value.
        crs: Stands in for rasters that have none.
        batch_size: Chips in memory, and in one call of the model.
        progress: Told about each batch; may cancel.

    Raises:
        ConfigError: If an option is out of range, or points meet a model without a fixed window.
        LabelError: If the layer cannot be read, is empty, has no CRS on the earth or lies on no data at all.
        RasterError: If a raster cannot be read or does not fit the model.
        OutputError: If the result cannot be written.
    """
    paths = [Path(rasters)] if isinstance(rasters, str | Path) else [Path(path) for path in rasters]
    if not paths:
        raise ConfigError("Name at least one raster to classify.")
    check_job([*paths, layer], [out], batch_size)
    check_layer_path(out)
    sources = [partial(RasterSource, path, bands, nodata, crs) for path in paths]
    extents = []
    for opened in sources:
        with opened() as source:
            check_source(source, predictor)
            extents.append(f"{source.path} {extent(source.bounds, source.crs)}")
    frame = free_names(read_layer(layer).reset_index(drop=True), [*FIELDS, *RAW_FIELDS])

    thresholds = thresholds_of(predictor)
    prediction = _predict(sources, frame.geometry, predictor, batch_size, progress)
    if np.isnan(prediction.probabilities[:, 0]).all():
        raise LabelError(
            f"No feature of {layer} lies where a raster has data: the layer spans "
            f"{extent(frame.total_bounds, frame.crs)}, {extents[0]}; check the CRS of both and the nodata value."
        )
    write_layer(
        out,
        [frame.join(prediction_columns(predictor.table, prediction, thresholds))],
        crs=frame.crs,
        fields=FIELDS,
        geometry_type=_geometry_type(frame.geometry),
        table=predictor.table,
    )
    counts = count_classes(predictor.table, best(prediction.probabilities, thresholds)[0]).tolist()
    unseen = int(np.isnan(prediction.probabilities[:, 0]).sum())
    return ClassifySummary(dict(zip(predictor.table.names, counts, strict=True)), len(frame), unseen, (Path(out),))


def _predict(
    sources: Sequence[Callable[[], RasterSource]],
    geometries: gpd.GeoSeries,
    predictor: ChipPredictor,
    batch_size: int,
    progress: ProgressCallback,
) -> Prediction:
    """Probabilities of every feature, rows of NaN where none is to be had."""
    shape = (len(geometries), len(predictor.table.names))
    probabilities = np.full(shape, np.nan, dtype=np.float32)
    raw: npt.NDArray[np.float32] | None = None
    progress(Progress("classify", 0, len(geometries)))
    for opened in sources:
        with opened() as source:
            here = geometries.to_crs(source.crs)
            items = np.flatnonzero(_centred_in(here, source) & np.isnan(probabilities[:, 0]))
            # Neighbours one after the other, so that a block of the file serves several of them.
            items = items[np.argsort(here.iloc[items].hilbert_distance())] if len(items) > 1 else items
            for start in range(0, len(items), batch_size):
                batch = items[start : start + batch_size]
                images, valid, kept = cut_chips(source, here.iloc[batch], predictor.spec)
                if len(kept):
                    found = predictor.predict(images, valid)
                    probabilities[batch[kept]] = _objects_only(found.probabilities, predictor.table.background)
                    if found.raw is not None:
                        raw = np.full(shape, np.nan, dtype=np.float32) if raw is None else raw
                        raw[batch[kept]] = _objects_only(found.raw, predictor.table.background)
                done = int(np.isfinite(probabilities[:, 0]).sum())
                progress(Progress("classify", done, len(geometries)))
    progress(Progress("classify", len(geometries), len(geometries)))
    return Prediction(probabilities, raw)


def _centred_in(geometries: gpd.GeoSeries, source: RasterSource) -> npt.NDArray[np.bool_]:
    x0, y0, x1, y1 = shapely.bounds(geometries.to_numpy()).T
    inside: npt.NDArray[np.bool_] = shapely.intersects_xy(shapely.box(*source.bounds), (x0 + x1) / 2, (y0 + y1) / 2)
    return inside


def _objects_only(probabilities: npt.NDArray[np.float32], background: int | None) -> npt.NDArray[np.float32]:
    if background is None:
        return probabilities
    objects = probabilities.copy()
    objects[:, background] = 0
    total = objects.sum(axis=1, keepdims=True)
    # A model that is quite sure of background says nothing about the objects: all alike.
    alike = np.full(objects.shape[1], 1 / (objects.shape[1] - 1), dtype=np.float32)
    alike[background] = 0
    return np.where(total > 0, objects / np.where(total > 0, total, 1), alike)


def _geometry_type(geometries: gpd.GeoSeries) -> str:
    kinds = set(geometries.geom_type)
    single = {kind.removeprefix("Multi") for kind in kinds}
    if len(single) > 1:
        return "Unknown"
    kind = single.pop()
    depth = " Z" if geometries.has_z.any() else ""
    return (kind if kinds == {kind} else f"Multi{kind}") + depth


def free_names(frame: gpd.GeoDataFrame, new: Iterable[str]) -> gpd.GeoDataFrame:
    """Rename attributes that would clash with new ones, letters' case aside: GeoPackage does not tell it apart."""
    seen = {*new, "fid", "geom"}
    taken = {str(name).lower() for name in frame.columns} | seen
    names: dict[str, str] = {}
    for name in frame.columns.drop(frame.active_geometry_name):
        free = str(name)
        if free.lower() in seen:
            while free.lower() in taken:
                free += "_label"
            taken.add(free.lower())
            names[name] = free
        seen.add(free.lower())
    return frame.rename(columns=names)
