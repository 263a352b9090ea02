"""Real imagery through the real predictor: what the map says is what the images say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from tests.inference.fakes import classify
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.data.longtail import long_tail
from torchgeo_debias.data.synthetic import mosaic
from torchgeo_debias.errors import RasterError
from torchgeo_debias.evaluation import score
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.evaluation import evaluate_chips
from torchgeo_debias.training import TrainConfig, train

pytestmark = pytest.mark.real_data
CELL, SIZE, PER_CLASS = 256, 112, 5


@dataclass(frozen=True)
class Trained:
    predictor: PackagePredictor
    folder: Path


@pytest.fixture(scope="module")
def trained(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A probe on long-tailed UC Merced, saved and loaded again."""
    chips = long_tail(read_folder(real_data / "ucmerced", SIZE, split="train"), imbalance=40, seed=0)
    package = train(chips, TrainConfig(method="probe", precision="32")).package
    path = tmp_path_factory.mktemp("package") / "probe.tgd"
    package.save(path)
    return Trained(PackagePredictor.load(path, precision="32"), real_data)


def some(chips: Chips) -> Chips:
    """The first images of each class."""
    return chips.subset(np.concatenate([np.flatnonzero(chips.labels == c)[:PER_CLASS] for c in set(chips.labels)]))


def test_the_map_of_a_mosaic_scores_as_its_images_do(trained: Trained, tmp_path: Path) -> None:
    predictor, table = trained.predictor, trained.predictor.table
    test = trained.folder / "ucmerced" / "test"
    images = some(read_folder(test, SIZE, classes=table.names))
    on_images = evaluate_chips(predictor, images).scores

    truth = mosaic(test, tmp_path / "m.tif", 0.3, "EPSG:32611", CELL, images=images.sources.tolist())
    summary = classify([tmp_path / "m.tif"], predictor, tmp_path / "m.gpkg", map_path=tmp_path / "map.tif")
    cells = gpd.read_file(tmp_path / "m.gpkg", layer="m")

    columns = int(np.ceil(np.sqrt(len(images))))
    tiles = columns * -(-len(images) // columns)
    assert len(images) == len(truth) == len(cells) == PER_CLASS * len(table.names)
    assert (summary.tiles, summary.skipped) == (tiles, tiles - len(images))
    assert sum(summary.counts.values()) == len(images)
    with rasterio.open(tmp_path / "m.tif") as raster, rasterio.open(tmp_path / "map.tif") as found:
        assert (found.crs, found.transform, found.shape) == (raster.crs, raster.transform, raster.shape)
        assert cells.crs == raster.crs == "EPSG:32611"
        assert tuple(cells.total_bounds) == pytest.approx(tuple(raster.bounds))
        classes = found.read(1)[CELL // 2 :: CELL, CELL // 2 :: CELL].ravel()

    joined = truth.sjoin(cells.set_geometry(cells.representative_point()), predicate="contains", rsuffix="map")
    assert len(joined) == len(truth)
    labels = np.array([table.names.index(name) for name in joined["class_left"]])
    np.testing.assert_array_equal(joined["class_id"], classes[joined.index])
    on_map = score(labels, None, table, y_pred=joined["class_id"].to_numpy(dtype=np.int64))
    for group in ("head", "middle", "tail", "macro"):
        assert on_map.f1[group] == pytest.approx(on_images.f1[group], abs=0.02), group
    assert on_images.f1["macro"] > 0.4


def test_naip_needs_its_bands_named(trained: Trained, tmp_path: Path) -> None:
    naip = next((trained.folder / "rasters").glob("naip*.tif"))
    out, map_path = tmp_path / "naip.gpkg", tmp_path / "naip.tif"
    with pytest.raises(RasterError, match="--bands") as refused:
        classify([naip], trained.predictor, out, map_path=map_path)
    assert str(refused.value).rstrip(".").count(". ") == 0
    assert list(tmp_path.iterdir()) == []

    summary = classify([naip], trained.predictor, out, map_path=map_path, bands=[1, 2, 3])
    cells = gpd.read_file(out, layer="naip")
    names = set(trained.predictor.table.names)
    with rasterio.open(naip) as given, rasterio.open(map_path) as found:
        assert cells.crs == given.crs == "EPSG:26914"
        assert (found.crs, found.transform, found.shape) == (given.crs, given.transform, given.shape)
        left, bottom, right, top = given.bounds
        painted = (found.read(1) != found.nodata).mean()
    west, south, east, north = cells.total_bounds
    assert left <= west < east <= right
    assert bottom <= south < north <= top
    assert painted > 0.9
    assert len(cells) == sum(summary.counts.values()) == summary.tiles - summary.skipped > 0
    assert set(cells["class"]) <= names
    assert set(cells["group"]) <= {"head", "middle", "tail"}
    assert cells["score"].between(1 / len(names), 1).all()
    assert (cells["class_id"].map(dict(enumerate(trained.predictor.table.names))) == cells["class"]).all()
