"""The main job from end to end: labels and a raster in; a de-biased model, maps and a report out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.windows import Window

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.data.layers import chips_from_layer
from torchgeo_debias.data.longtail import long_tail
from torchgeo_debias.data.synthetic import COUNTS, CRS, mosaic, write_scene
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation import Scores, comparison_report, map_picture, score
from torchgeo_debias.files import atomic
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.evaluation import report_facts
from torchgeo_debias.inference.features import classify_features
from torchgeo_debias.inference.mapping import MapOptions, Outputs
from torchgeo_debias.inference.rasters import classify_raster
from torchgeo_debias.package import check_target
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.tiling.layers import write_layer
from torchgeo_debias.training import TrainConfig, train

WINDOW = 64
"""Side of the square cut around an object of the synthetic scene, pixels."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves.

    Attributes:
        before: Scores of plain LoRA on the objects it never saw.
        after: Those of debLoRA.
        files: What was written, by what it is.
    """

    before: Scores
    after: Scores
    files: dict[str, Path]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "files": {name: str(path) for name, path in self.files.items()},
        }


@dataclass(frozen=True)
class _Job:
    """Training chips, and the unseen ground to map: a raster with footprints whose classes are kept for scoring."""

    title: str
    chips: Chips
    raster: Path
    footprints: Path
    truth: gpd.GeoDataFrame
    config: TrainConfig


def run_demo(
    out: Path,
    *,
    data: Path | None = None,
    imbalance: float | None = None,
    epochs: int | None = None,
    seed: int = 0,
    size: int = 4096,
    progress: ProgressCallback = silent,
) -> DemoResult:
    """Train plain LoRA and debLoRA, classify unseen objects, map unseen ground, and write a report.

    Args:
        out: Folder for everything; made if it is missing.
        data: A scene folder; its test images are laid out as one map. None writes a synthetic scene, trains on the
            objects of its west half and maps its east half.
        imbalance: Subsample the training images of ``data`` to this largest-over-smallest class count.
        epochs: Of each stage; None for the default of the job.
        seed: Of everything random.
        size: Side of the synthetic scene, pixels.
        progress: Told about every stage.

    Raises:
        ConfigError: If a number is out of range or ``imbalance`` is given without ``data``.
        OutputError: If ``out`` cannot be written.
        DataError: If ``data`` cannot be used.
    """
    out = Path(out)
    if data is None and imbalance is not None:
        raise ConfigError("The synthetic scene has its own long tail: give an imbalance only with a scene folder.")
    check_target(out / "model")
    usual = 8 if data is None else 10
    config = TrainConfig(seed=seed, epochs=usual if epochs is None else epochs)
    if data is None:
        job = _synthetic(out, size, config, progress)
    else:
        job = _scene_folder(out, Path(data), imbalance, config, progress)
    files = {
        "scene": job.raster,
        "model": out / "model",
        "objects": out / "objects.gpkg",
        "tiles": out / "tiles.gpkg",
        "map": out / "class_map.tif",
        "report": out / "report.html",
    }
    trained = train(job.chips, job.config, progress=progress, provenance={"data": job.title})
    predictor = PackagePredictor(trained.package)
    classify_features(job.raster, job.footprints, predictor, files["objects"], progress=progress)
    outputs = Outputs(files["tiles"], files["map"])
    classify_raster(job.raster, predictor, outputs, MapOptions(keep_background=True), progress=progress)
    before, after = _score_objects(files["objects"], job.truth, trained.package.table)
    trained.package.metrics["demo"] = {"raw": before.to_json(), "model": after.to_json()}
    trained.package.save(files["model"])
    _report(job, predictor, before, after, files)
    return DemoResult(before, after, files)


def _synthetic(out: Path, size: int, config: TrainConfig, progress: ProgressCallback) -> _Job:
    seed = config.seed
    share = (size / 4096) ** 2  # as many objects a hectare as the scene of the default size
    counts = {name: max(2, round(share * count)) for name, count in COUNTS.items()}
    tests = max(2, round(share * 25))
    scene = write_scene(out / "scene", seed=seed, size=size, counts=counts, test_count=tests, progress=progress)
    with rasterio.open(scene.raster) as source:
        left, bottom, right, top = source.bounds
    chips = chips_from_layer(
        [scene.raster],
        scene.labels,
        "class",
        ChipSpec(70, WINDOW),
        background=size // 16,
        seed=seed,
        area=shapely.box(left, bottom, (left + right) / 2, top),
        progress=progress,
    )
    east = out / "scene" / "east.tif"
    _copy_east(scene.raster, east)
    return _Job("the synthetic scene", chips, east, scene.footprints, gpd.read_file(scene.truth), config)


def _scene_folder(
    out: Path, data: Path, imbalance: float | None, config: TrainConfig, progress: ProgressCallback
) -> _Job:
    seed = config.seed
    chips = read_folder(data, 112, split="train", seed=seed, progress=progress)
    if len(chips.bands) != 3 or chips.images.dtype != np.uint8:
        raise DataError(
            f"The demo lays its test images out as one RGB map, but {data} holds {len(chips.bands)} bands of "
            f"{chips.images.dtype}; use 'train' and 'classify' for such data."
        )
    if imbalance is not None:
        chips = long_tail(chips, imbalance, seed)
    test = read_folder(data, 112, split="test", seed=seed, classes=chips.table.names, progress=progress)
    raster = out / "scene" / "test_mosaic.tif"
    truth = mosaic(data, raster, test.spec.gsd or 1.0, CRS, round(test.spec.window or 112), list(test.sources))
    footprints = out / "scene" / "footprints.gpkg"
    write_layer(footprints, [truth[["geometry"]]], crs=truth.crs, fields={})
    return _Job(data.name, chips, raster, footprints, truth, config)


def _copy_east(scene: Path, east: Path) -> None:
    with rasterio.open(scene) as source:
        half = source.width // 2
        window = Window(half, 0, source.width - half, source.height)
        profile = {**source.profile, "width": window.width, "transform": source.window_transform(window)}
        with atomic(east) as part, rasterio.open(part, "w", **profile) as target:
            for row in range(0, source.height, 512):
                rows = min(512, source.height - row)
                target.write(
                    source.read(window=Window(half, row, window.width, rows)),
                    window=Window(0, row, window.width, rows),
                )


def _score_objects(objects: Path, truth: gpd.GeoDataFrame, table: ClassTable) -> tuple[Scores, Scores]:
    """Scores of plain LoRA and of debLoRA; features keep their order, so that truth and result go row by row."""
    result = gpd.read_file(objects, layer=objects.stem)
    ids = {name: i for i, name in enumerate(table.names)}
    known = truth["class"].map(ids).to_numpy()

    def of(field: str) -> Scores:
        return score(known, None, table, y_pred=result[field].map(ids).to_numpy())

    return of("class_raw"), of("class")


def _report(job: _Job, predictor: PackagePredictor, before: Scores, after: Scores, files: dict[str, Path]) -> None:
    unseen = chips_from_layer([job.raster], job.truth, "class", predictor.spec)
    order = [predictor.table.names.index(name) for name in unseen.table.names]
    facts = report_facts(predictor.package, {"Data": job.title, **_map_facts(job, predictor.table, files["tiles"])})
    comparison_report(
        files["report"],
        title=f"Rare classes on {job.title}: LoRA and debLoRA",
        before=before,
        after=after,
        table=predictor.table,
        facts=facts,
        features_before=predictor.features(unseen.images, unseen.valid, raw=True),
        features_after=predictor.features(unseen.images, unseen.valid),
        labels=np.asarray(order, dtype=np.int64)[unseen.labels],
        map_figure=_picture(job.raster, files["map"], predictor.table),
    )


def _map_facts(job: _Job, table: ClassTable, tiles: Path) -> dict[str, str]:
    """How often the tile at the centre of an object has its class, and how many tiles are called an object."""
    tile = gpd.read_file(tiles, layer=tiles.stem)
    centres = gpd.GeoDataFrame({"truth": job.truth["class"]}, geometry=job.truth.geometry.centroid, crs=job.truth.crs)
    seen = gpd.sjoin(centres, tile, predicate="within")
    groups = dict(zip(table.names, table.groups, strict=True))
    rare = seen["truth"].map(groups) == "tail"
    facts = {}
    for name, field in (("LoRA", "class_raw"), ("debLoRA", "class")):
        right = seen["truth"] == seen[field]
        facts[f"On the tile map of {name}"] = (
            f"{right.sum()} of {len(right)} objects have their class at their centre, {right[rare].sum()} of "
            f"{rare.sum()} of the tail; {(tile[field].map(groups) != 'background').sum()} of {len(tile)} tiles are "
            "called an object"
        )
    return facts


def _picture(raster: Path, class_map: Path, table: ClassTable) -> Any:  # noqa: ANN401 (a matplotlib figure)
    with rasterio.open(raster) as image, rasterio.open(class_map) as classes:
        shrink = max(1, max(image.height, image.width) // 1600)
        shape = (image.height // shrink, image.width // shrink)
        rgb = image.read([1, 2, 3], out_shape=(3, *shape)).transpose(1, 2, 0)
        return map_picture(rgb, classes.read(1, out_shape=shape), table, tuple(image.bounds))
