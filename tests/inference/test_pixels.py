from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from rasterio.features import shapes

from tests.tiling.rasters import noise, write_raster
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.inference.mapping import MapOptions, Outputs, Resources
from torchgeo_debias.inference.pixels import classify_pixels

TABLE = ClassTable.from_counts({"dark": 500, "grey": 30, "bright": 3}, background="dark")
STEPS = np.array([0, 90, 170])


@dataclass
class ByBrightness:
    """Scores of a pixel fall with the distance of its value from 45, 130 and 210; what is near a tile's rim is worse.

    Attributes:
        rim: How much a pixel at the rim of a tile is darker for the model than one in the middle.
    """

    size: int = 32
    gsd: float | None = None
    bands: tuple[str, ...] = ("band_1",)
    dtype: str = "uint8"
    table: ClassTable = TABLE
    rim: float = 0.0
    seen: list[int] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return f"by brightness, {self.rim}"

    def use_threads(self, n: int) -> None:
        pass

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        self.seen.append(len(images))
        line = np.abs(np.arange(self.size) - (self.size - 1) / 2) / self.size * 2
        values = images[:, 0] - self.rim * np.maximum.outer(line, line)
        scores = np.exp(-np.abs(values[:, None] - np.array([45, 130, 210])[None, :, None, None]) / 20)
        total: npt.NDArray[np.float32] = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
        return total


ONE = Resources(batch_size=3, workers=1, threads=1)


def expected(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    ids: npt.NDArray[Any] = np.abs(pixels[0][None].astype(int) - np.array([45, 130, 210])[:, None, None]).argmin(0)
    return ids


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("shape", [(50, 75), (20, 20), (32, 64), (1, 100), (100, 1), (1, 1)])
def test_every_pixel_gets_its_class(tmp_path: Path, overlap: float, shape: tuple[int, int]) -> None:
    pixels = noise((1, *shape))
    path = write_raster(tmp_path / "m.tif", pixels)
    outputs = Outputs(class_map=tmp_path / "a.tif", scores=tmp_path / "s.tif")
    summary = classify_pixels(path, ByBrightness(), outputs, MapOptions(overlap=overlap), resources=ONE)
    wanted = expected(pixels)
    with rasterio.open(tmp_path / "a.tif") as found:
        np.testing.assert_array_equal(found.read(1), wanted)
    with rasterio.open(tmp_path / "s.tif") as found:
        assert (found.read(1) >= 33).all()
        assert (found.read(1) <= 100).all()
    assert list(summary.counts.values()) == np.bincount(wanted.ravel(), minlength=3).tolist()


def test_constant_in_constant_out_to_the_last_pixel(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", np.full((1, 70, 90), 200, np.uint8))
    for overlap in (0.1, 0.5, 0.7):
        outputs = Outputs(class_map=tmp_path / "a.tif", scores=tmp_path / "s.tif")
        classify_pixels(path, ByBrightness(), outputs, MapOptions(overlap=overlap), resources=ONE)
        with rasterio.open(tmp_path / "a.tif") as ids, rasterio.open(tmp_path / "s.tif") as scores:
            assert set(ids.read(1).ravel()) == {2}
            assert len(set(scores.read(1).ravel())) == 1


def test_blending_takes_the_seams_away(tmp_path: Path) -> None:
    """A model that is worse at the rim of its tiles makes a grid without overlap and none with it."""
    path = write_raster(tmp_path / "m.tif", np.full((1, 128, 128), 100, np.uint8))
    wrong = {}
    for overlap in (0.0, 0.5):
        outputs = Outputs(class_map=tmp_path / "a.tif")
        classify_pixels(path, ByBrightness(rim=20), outputs, MapOptions(overlap=overlap), resources=ONE)
        with rasterio.open(tmp_path / "a.tif") as found:
            wrong[overlap] = (found.read(1)[16:-16, 16:-16] != 1).mean()
    assert wrong[0.0] > 0.1
    assert wrong[0.5] == 0


def test_nodata_area_and_low_scores(tmp_path: Path) -> None:
    pixels = noise((1, 96, 96))
    pixels[:, :40, :40] = 0
    path = write_raster(tmp_path / "m.tif", pixels, nodata=0)
    model = ByBrightness()
    area = (500_000 + 20, 5_400_000 - 180, 500_000 + 150, 5_400_000 - 10)  # columns 10 to 75, rows 5 to 90
    outputs = Outputs(class_map=tmp_path / "a.tif", scores=tmp_path / "s.tif")
    options = MapOptions(overlap=0.25, area=area, min_score=0.6)
    summary = classify_pixels(path, model, outputs, options, resources=ONE)
    inside = np.zeros((96, 96), bool)
    inside[5:90, 10:75] = True
    scores = ByBrightness(size=96).predict(pixels[None], pixels > 0)[0]
    wanted = np.where((pixels[0] > 0) & inside & (scores.max(axis=0) >= 0.6), expected(pixels), 255)
    with rasterio.open(tmp_path / "a.tif") as found:
        np.testing.assert_array_equal(found.read(1), wanted)
    with rasterio.open(tmp_path / "s.tif") as found:
        np.testing.assert_array_equal(found.read(1) == 255, wanted == 255)
    assert summary.skipped == 1
    assert summary.tiles == 16 == sum(model.seen) + summary.skipped


def test_regions_are_those_of_the_whole_map(tmp_path: Path) -> None:
    coarse = noise((1, 20, 25)).repeat(6, axis=1).repeat(6, axis=2)
    path = write_raster(tmp_path / "m.tif", coarse, blockysize=16, blockxsize=16, tiled=True)
    outputs = Outputs(tmp_path / "r.gpkg", tmp_path / "a.tif", shape="regions")
    classify_pixels(path, ByBrightness(), outputs, MapOptions(overlap=0.3), resources=ONE)
    found = gpd.read_file(tmp_path / "r.gpkg", layer="r")
    with rasterio.open(tmp_path / "a.tif") as dataset:
        ids = dataset.read(1)
        whole = gpd.GeoDataFrame.from_features(
            [
                {"type": "Feature", "geometry": geometry, "properties": {"class_id": int(value)}}
                for geometry, value in shapes(ids, mask=ids != 0, transform=dataset.transform)
            ],
            crs=dataset.crs,
        )
    assert len(found) == len(whole)
    key = ["class_id", "minx", "miny", "maxx", "maxy", "area"]
    both = [
        frame.join(frame.bounds).assign(area=frame.area).sort_values(key).reset_index(drop=True)
        for frame in (found, whole)
    ]
    assert both[0].geometry.geom_equals(both[1].geometry).all()
    assert both[0]["class_id"].tolist() == both[1]["class_id"].tolist()
    assert found["score"].between(0.33, 1).all()
    assert set(found["class"]) == {"grey", "bright"}


def test_another_resolution(tmp_path: Path) -> None:
    """A model of 4 m pixels on a raster of 2 m: the map has 4 m pixels."""
    coarse = noise((1, 24, 24))
    path = write_raster(tmp_path / "m.tif", coarse.repeat(2, axis=1).repeat(2, axis=2))
    summary = classify_pixels(path, ByBrightness(gsd=4.0), Outputs(class_map=tmp_path / "a.tif"), resources=ONE)
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.res == (4, 4)
        np.testing.assert_array_equal(found.read(1), expected(coarse))
    assert any("4 m" in note for note in summary.notes)


def test_tiles_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", noise((1, 8, 8)))
    with pytest.raises(ConfigError, match="regions"):
        classify_pixels(path, ByBrightness(), Outputs(tmp_path / "a.gpkg"), resources=ONE)
