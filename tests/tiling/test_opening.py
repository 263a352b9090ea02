from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin

from tests.tiling.rasters import noise, write_raster
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.tiling.mosaic import MosaicSource
from torchgeo_debias.tiling.opening import open_source
from torchgeo_debias.tiling.source import RasterSource


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = noise((2, 30, 40))
    pixels[:, :10, :10] = 0
    return write_raster(tmp_path_factory.mktemp("plain") / "plain.tif", pixels, nodata=0)


def test_one_file_a_list_and_a_ready_source(plain: Path) -> None:
    with open_source(plain, bands=["band_2"], nodata=9) as source:
        assert isinstance(source, RasterSource)
        assert source.bands == (2,)
        assert open_source(source) is source
        with pytest.raises(ConfigError, match="set where it is opened"):
            open_source(source, nodata=0)
    with open_source([plain]) as source:
        assert isinstance(source, RasterSource)
    with open_source([plain, plain]) as source:
        assert isinstance(source, MosaicSource)
        assert source.name == f"the mosaic of {plain} and 1 more"
    with pytest.raises(ConfigError, match="at least one raster"):
        open_source([])
    with pytest.raises(RasterError, match="no raster at"):
        open_source(plain.with_name("absent.tif"))


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 4, 4)), [np.zeros((1, 4, 4))], xarray.DataArray(np.zeros((4, 4))), None, 7, [None]]
)
def test_what_is_no_raster_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"wrap an array in ArraySource"):
        open_source(wrong)


def test_an_open_file_of_rasterio_is_no_source(plain: Path) -> None:
    with rasterio.open(plain) as dataset, pytest.raises(ConfigError, match="not DatasetReader"):
        open_source(dataset)


@pytest.mark.parametrize("wrong", ["EPSG:99", "+proj=nowhere", "nonsense"])
def test_a_wrong_crs_gives_our_sentence_alone(plain: Path, capfd: pytest.CaptureFixture[str], wrong: str) -> None:
    with pytest.raises(ConfigError, match="is not a coordinate reference system"):
        open_source(plain, crs=wrong)
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_all_rasters_in_it(tmp_path: Path) -> None:
    for i, name in enumerate(("b.TIF", "a.tif", "c.img")):
        options = {"driver": "HFA"} if name.endswith("img") else {}
        write_raster(
            tmp_path / name,
            noise((3, 4, 4), seed=i),
            transform=from_origin(500_000 + 8 * i, 5_400_000, 2, 2),
            **options,
        )
    Image.fromarray(noise((4, 4, 3))).save(tmp_path / "preview.png")
    Image.fromarray(noise((4, 4, 3))).save(tmp_path / "z.png")
    (tmp_path / "z.pgw").write_text("2\n0\n0\n-2\n500025\n5399999\n")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "broken.jpg").write_text("nothing")
    (tmp_path / "below").mkdir()
    write_raster(tmp_path / "below" / "far.tif", noise((3, 4, 4)), transform=from_origin(500_100, 5_400_000, 2, 2))
    with open_source(tmp_path, crs="EPSG:32632") as source:
        assert (source.width, source.height) == (16, 4)
        assert [files[0][0] for files in (each["files"] for each in source.identity()["rasters"])] == [
            "a.tif",
            "b.TIF",
            "c.img",
            "z.pgw",
        ]
    with open_source([tmp_path / "below", tmp_path / "a.tif"]) as source:
        assert source.bounds[2] == 500_108
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RasterError, match=r"no raster in the folder .*empty"):
        open_source(empty)


@pytest.mark.parametrize("gsd", [0.5, 1.3, 2, 5, 7.7, 500])
def test_another_resolution(plain: Path, gsd: float) -> None:
    with open_source(plain) as own, open_source(plain, gsd=gsd) as source:
        assert source.gsd == pytest.approx(gsd)
        assert (source.transform.c, source.transform.f) == (500_000, 5_400_000)
        assert source.crs == own.crs
        assert (source.width, source.height) == (np.ceil(80 / gsd), np.ceil(60 / gsd))
        assert source.band_names == own.band_names
        assert source.footprints is None
        image, valid = source.read(0, 0, source.width, source.height)
    assert valid[-1, 0] or gsd < 2
    assert (image[:, valid] > 0).all()
    if gsd < 20:
        assert not valid[0, 0]
        side = round(20 / gsd)
        assert (~valid).sum() == pytest.approx(side**2, abs=2 * side + 60)


def test_coarser_is_the_mean_of_what_is_there(tmp_path: Path) -> None:
    pixels = noise((2, 12, 18), "uint16").astype("uint16") * 100
    pixels[:, 0:3, 0:2] = 0
    path = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    blocks = pixels.reshape(2, 4, 3, 6, 3).transpose(0, 1, 3, 2, 4).reshape(2, 4, 6, 9).astype(float)
    blocks[blocks == 0] = np.nan
    with open_source(path, gsd=6) as source:
        image, valid = source.read(0, 0, 6, 4)
    assert valid.all()
    np.testing.assert_allclose(image, np.nanmean(blocks, axis=-1), atol=1)


def test_finer_is_linear_and_stays_where_it_was(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(20, dtype=np.float32) * 10, (1, 8, 1))
    with open_source(write_raster(tmp_path / "a.tif", ramp), gsd=0.5) as source:
        image, valid = source.read(0, 0, 80, 32)
    assert valid.all()
    np.testing.assert_allclose(image[0, 5, 2:-2], (np.arange(80)[2:-2] + 0.5) / 4 * 10 - 5, atol=1e-3)


def test_resolution_in_degrees(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", noise((1, 60, 40)), crs="EPSG:4326", transform=from_origin(10, 60, 1e-4, 1e-4)
    )
    with open_source(path, gsd=20) as source:
        assert source.gsd == pytest.approx(20, rel=1e-3)
        assert source.transform.a == pytest.approx(-2 * source.transform.e, rel=0.01)
        assert source.read(0, 0, source.width, source.height)[1].all()


@settings(max_examples=30)
@given(
    gsd=st.sampled_from([0.05, 0.7, 3.0, 30.0]),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    w=st.integers(1, 700),
    h=st.integers(1, 700),
)
def test_windows_do_not_depend_on_how_they_are_read(
    plain: Path, gsd: float, x: float, y: float, w: int, h: int
) -> None:
    with open_source(plain, gsd=gsd) as source, copy.copy(source) as other:
        left, top = int(x * source.width), int(y * source.height)
        image, valid = source.read(left, top, w, h)
        middle, centre = h // 2, w // 2
        if middle:
            part, mask = other.read(left + centre, top + middle, w - centre, h - middle)
            np.testing.assert_array_equal(part, image[:, middle:, centre:])
            np.testing.assert_array_equal(mask, valid[middle:, centre:])


def test_resampled_copies_and_identity(plain: Path) -> None:
    with open_source([plain, plain], gsd=3) as source:
        wanted, identity = source.read(2, 2, 9, 9), source.identity()
        twins = [copy.copy(source), pickle.loads(pickle.dumps(source))]
        assert source.order_of(["band_2", "band_1"]) == (2, 1)
    for twin in twins:
        with twin:
            assert twin.identity() == identity
            np.testing.assert_array_equal(twin.read(2, 2, 9, 9)[0], wanted[0])
    with open_source([plain, plain], gsd=4) as source:
        assert source.identity() != identity


@pytest.mark.parametrize("gsd", [0, -1, float("nan"), float("inf")])
def test_refuses_a_resolution_that_is_none(plain: Path, gsd: float) -> None:
    with pytest.raises(ConfigError, match="positive number of metres"):
        open_source(plain, gsd=gsd)


@pytest.mark.parametrize("gsd", [0.0019, 2001, 1e300, 1e-300])
def test_refuses_a_resolution_that_must_be_a_mistake(plain: Path, gsd: float) -> None:
    with pytest.raises(ConfigError, match="1000 times that of the raster, 2 m"):
        open_source(plain, gsd=gsd)
