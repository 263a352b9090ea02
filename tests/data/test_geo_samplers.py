from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from rasterio.transform import Affine
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import Units

from torchgeo_debias.data.geo_samplers import ClassBalancedGeoSampler
from torchgeo_debias.errors import LabelError

from .test_layers import ORIGIN, at, coordinates, make_raster


class Scenes(RasterDataset):  # type: ignore[misc]
    filename_glob = "scene_*.tif"
    filename_regex = r"scene_(?P<date>\d{8})"


@pytest.fixture
def scenes(tmp_path: Path) -> RasterDataset:
    make_raster(tmp_path / "scene_20200101.tif", coordinates())
    east = Affine(2, 0, ORIGIN[0] + 1000, 0, -2, ORIGIN[1])
    make_raster(tmp_path / "scene_20210101.tif", coordinates() + 1000, transform=east)
    return Scenes(tmp_path)


def objects() -> gpd.GeoDataFrame:
    places = [at(50.3 + i, 50.2) for i in range(20)] + [at(600.3, 100)] + [at(5000, 50)]
    frame = gpd.GeoDataFrame({"kind": ["common"] * 20 + ["rare", "lost"]}, geometry=places, crs="EPSG:32632")
    return frame.to_crs("EPSG:4326")


def test_classes_alternate_and_windows_read_what_they_name(scenes: RasterDataset) -> None:
    sampler = ClassBalancedGeoSampler(scenes, objects(), "kind", size=16, length=40, seed=1)
    assert len(sampler) == 40
    loader = DataLoader(scenes, sampler=sampler, batch_size=1, collate_fn=stack_samples)
    rare = 0
    for batch in loader:
        image = batch["image"][0]
        assert image.shape == (2, 16, 16)
        assert image.min() > 0
        if image.min() > 1000:
            rare += 1
            # the point in column 101 of the eastern raster, read without resampling
            assert image[0, 0].tolist() == list(range(1093, 1109))
    assert 10 <= rare <= 30


def test_epochs_units_and_default_length(scenes: RasterDataset) -> None:
    sampler = ClassBalancedGeoSampler(scenes, objects(), "kind", size=64, units=Units.CRS)
    assert len(sampler) == 21
    first = list(sampler)
    assert first == list(sampler)
    x, y, t = first[0]
    assert (x.stop - x.start, y.stop - y.start) == pytest.approx((64, 64))
    assert t.start.year in (2020, 2021)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_objects_elsewhere_are_refused(scenes: RasterDataset) -> None:
    far = objects().set_geometry([shapely.Point(0, 0)] * 22)
    with pytest.raises(LabelError, match="None of the 22 labelled objects lies on Scenes"):
        ClassBalancedGeoSampler(scenes, far, "kind", size=16)


def test_draws_are_balanced(scenes: RasterDataset) -> None:
    sampler = ClassBalancedGeoSampler(scenes, objects(), "kind", size=16, length=1000)
    rare = np.mean([x.start > ORIGIN[0] + 900 for x, _, _ in sampler])
    assert 0.44 < rare < 0.56
