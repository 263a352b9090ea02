from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine
from torchgeo.datasets import RasterDataset

from tests.tiling.rasters import noise, write_raster
from torchgeo_debias.data.geo_sources import source_of
from torchgeo_debias.errors import RasterError
from torchgeo_debias.tiling.source import RasterSource


class Scenes(RasterDataset):  # type: ignore[misc]
    filename_glob = "*.tif"
    all_bands = ("B02", "B03", "B04")


def east(columns: float, side: float = 2) -> Affine:
    return Affine(side, 0, 500_000 + 2 * columns, 0, -side, 5_400_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(2):
        write_raster(tmp_path / f"{i}.tif", noise((3, 20, 30), seed=i), transform=east(30 * i))
    return tmp_path


def test_the_files_become_one_raster(folder: Path) -> None:
    with source_of(Scenes(folder, bands=["B04", "B02"])) as source:
        assert source.bands == (3, 1)
        image, valid = source.read(0, 0, 60, 20)
    assert valid.all()
    wanted = np.concatenate([noise((3, 20, 30), seed=i) for i in range(2)], axis=2)
    np.testing.assert_array_equal(image, wanted[[2, 0]])


def test_one_file(folder: Path) -> None:
    with source_of(Scenes(folder / "1.tif"), nodata=7) as source:
        assert isinstance(source, RasterSource)
        valid = source.read(0, 0, 30, 20)[1]
    np.testing.assert_array_equal(valid, (noise((3, 20, 30), seed=1) != 7).any(axis=0))


def test_resolution_and_crs_are_those_of_the_data_set(folder: Path) -> None:
    coarse = Scenes(folder, res=4)
    with source_of(coarse) as source:
        assert (source.gsd, source.width, source.height) == (4, 30, 10)
        x, y, _ = coarse.bounds
        assert source.bounds == (x.start, y.start, x.stop, y.stop)
        assert source.read(0, 0, 30, 10)[1].all()
    with source_of(Scenes(folder, crs="EPSG:3857")) as source:
        assert source.crs.to_epsg() == 3857
        assert source.read(0, 0, source.width, source.height)[1].mean() > 0.8


def test_refuses_sets_that_are_no_raster(folder: Path) -> None:
    class Apart(Scenes):
        separate_files = True

    series = Scenes(folder)
    series.time_series = True
    for wrong, words in ((Apart(folder), "Apart keeps each band in a file"), (series, "Scenes is a time series")):
        with pytest.raises(RasterError, match=words):
            source_of(wrong)
