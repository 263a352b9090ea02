from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import from_origin

from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.tiling.arrays import ArraySource
from torchgeo_debias.tiling.opening import open_source
from torchgeo_debias.tiling.source import RasterSource

PLACE = from_origin(500_000, 5_400_000, 2, 2)


def coordinates(height: int, width: int, up: bool = False) -> dict[str, Any]:
    y = 5_400_000 - 2 * (np.arange(height) + 0.5)
    return {"y": y[::-1] if up else y, "x": 500_000 + 2 * (np.arange(width) + 0.5)}


@given(x=st.integers(-30, 40), y=st.integers(-30, 40), w=st.integers(1, 60), h=st.integers(1, 60))
def test_any_window_equals_the_padded_array(x: int, y: int, w: int, h: int) -> None:
    pixels, pad = noise((3, 17, 23)), 100
    canvas = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad)))
    image, valid = ArraySource(pixels, PLACE, UTM).read(x, y, w, h)
    np.testing.assert_array_equal(image, canvas[:, pad + y : pad + y + h, pad + x : pad + x + w])
    np.testing.assert_array_equal(valid, image.all(axis=0))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "int64", ">u2"])
def test_an_array_reads_like_its_file(tmp_path: Path, dtype: str) -> None:
    pixels = noise((2, 9, 11), dtype)
    pixels[:, 2, 3] = 7
    pixels[0, 5, 5] = 7
    path = write_raster(tmp_path / "a.tif", pixels.astype(np.dtype(dtype).name))
    before = pixels.copy()
    with RasterSource(path, nodata=7) as file, ArraySource(pixels, PLACE, UTM, nodata=7) as source:
        assert (source.grid, source.gsd, source.bounds) == (file.grid, file.gsd, file.bounds)
        assert (source.dtype, source.band_names, source.bands) == (file.dtype, file.band_names, file.bands)
        for got, wanted in zip(source.read(-1, 2, 9, 9), file.read(-1, 2, 9, 9), strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(pixels, before)


def test_one_band_mask_and_nan() -> None:
    pixels = noise((6, 8), "float32")
    pixels[1, 1] = math.nan
    valid = np.ones((6, 8), dtype=bool)
    valid[2] = False
    with pytest.raises(RasterError, match="the field holds NaN"):
        ArraySource(pixels, PLACE, UTM, valid=valid, name="the field").read(0, 0, 8, 6)
    source = ArraySource(pixels, PLACE, UTM, ["height"], math.nan, valid)
    image, mask = source.read(0, 0, 8, 6)
    assert image.shape == (1, 6, 8)
    assert source.band_names == ("height",)
    assert not mask[1, 1]
    assert (~mask).sum() == 9
    assert not image[0][~mask].any()
    assert valid.sum() == 40


def test_rows_that_point_the_other_way() -> None:
    pixels = noise((2, 5, 7))
    turned = ArraySource(pixels[:, ::-1, ::-1], Affine(-2, 0, 500_014, 0, 2, 5_399_990), UTM)
    upright = ArraySource(pixels, PLACE, UTM)
    assert turned.grid == upright.grid
    np.testing.assert_array_equal(turned.read(-2, 1, 8, 3)[0], upright.read(-2, 1, 8, 3)[0])


def test_identity_hangs_on_content() -> None:
    pixels = noise((2, 600, 7))
    sources = [
        ArraySource(pixels, PLACE, UTM),
        ArraySource(pixels, PLACE, UTM, nodata=3),
        ArraySource(pixels, PLACE, "EPSG:32633"),
        ArraySource(pixels[:, ::-1], PLACE, UTM),
        ArraySource(pixels, PLACE, UTM, valid=np.ones((600, 7), dtype=bool)),
        ArraySource(pixels.astype("int16"), PLACE, UTM),
    ]
    assert len({str(source.identity()) for source in sources}) == len(sources)
    for twin in (copy.copy(sources[0]), pickle.loads(pickle.dumps(sources[0])), ArraySource(pixels.copy(), PLACE, UTM)):
        assert twin.identity() == sources[0].identity()


def test_refuses_arrays_without_a_place() -> None:
    pixels = noise((2, 4, 4))
    with pytest.raises(RasterError, match="no coordinate reference system on the earth; give it with crs, for"):
        ArraySource(pixels, PLACE, None)
    with pytest.raises(ConfigError, match="'EPSG:0' is not"):
        ArraySource(pixels, PLACE, "EPSG:0")
    with pytest.raises(RasterError, match="rotated"):
        ArraySource(pixels, Affine.rotation(3) @ PLACE, UTM)
    with pytest.raises(RasterError, match=r"shape \(bands, rows, columns\)"):
        ArraySource(pixels[None], PLACE, UTM)
    with pytest.raises(RasterError, match=r"shape \(bands, rows, columns\)"):
        ArraySource(pixels[:, :0], PLACE, UTM)
    with pytest.raises(RasterError, match="2 bands but 1 band names"):
        ArraySource(pixels, PLACE, UTM, ["red"])
    with pytest.raises(RasterError, match="mask of the array"):
        ArraySource(pixels, PLACE, UTM, valid=np.ones((3, 4), dtype=bool))
    with pytest.raises(RasterError, match="complex128"):
        ArraySource(pixels.astype(complex), PLACE, UTM)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band"), ("y", "x")])
def test_xarray(up: bool, dims: tuple[str, ...]) -> None:
    pixels = noise((3, 5, 7), "int16")[: 3 if "band" in dims else 1]
    pixels[:, 1, 2] = -1
    array = xr.DataArray(
        pixels[:, ::-1] if up else pixels,
        dims=("band", "y", "x"),
        coords={
            **coordinates(5, 7, up),
            "spatial_ref": xr.DataArray(0, attrs={"crs_wkt": CRS.from_epsg(32632).to_wkt()}),
        },
        attrs={"_FillValue": -1, "long_name": ("a", "b", "c")},
    )
    array = array.transpose(*dims) if "band" in dims else array[0]
    source = ArraySource.from_xarray(array)
    expected = ArraySource(pixels, PLACE, UTM, nodata=-1)
    assert source.grid == expected.grid
    assert source.band_names == (("a", "b", "c") if "band" in dims else ("band_1",))
    for got, wanted in zip(source.read(-1, -1, 9, 9), expected.read(-1, -1, 9, 9), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert open_source(source, gsd=4).gsd == 4


def test_xarray_of_degrees_nan_and_named_bands() -> None:
    pixels = noise((2, 4, 6), "float32")
    pixels[0, 0, 0] = math.nan
    lat, lon = 50 - 0.001 * np.arange(4, dtype="float32"), 10 + 0.001 * np.arange(6, dtype="float32")
    array = xr.DataArray(pixels, dims=("time", "lat", "lon"), coords={"lat": lat, "lon": lon, "time": ["one", "two"]})
    with pytest.raises(RasterError, match=r"the array.*give it with crs, for instance crs=EPSG"):
        ArraySource.from_xarray(array)
    source = ArraySource.from_xarray(array, crs="EPSG:4326")
    assert source.band_names == ("one", "two")
    assert source.transform.c == pytest.approx(9.9995, abs=1e-5)
    assert source.read(0, 0, 6, 4)[1].sum() == 23
    with pytest.raises(RasterError, match="already, so EPSG:32632 cannot stand in"):
        ArraySource.from_xarray(array.assign_attrs(crs="EPSG:4326"), crs=UTM)


def test_refuses_xarrays_off_a_grid() -> None:
    array = xr.DataArray(noise((4, 4)), dims=("y", "x"), coords=coordinates(4, 4), name="heights")
    bent = array.assign_coords(x=[0.0, 1.0, 2.0, 5.0])
    for wrong, words in [
        (bent, "heights along x are not evenly spaced"),
        (array.drop_vars("y"), "heights has no coordinates along y"),
        (array.rename(x="columns"), "dimensions y, columns"),
        (array[:1, :1], "single pixel"),
    ]:
        with pytest.raises(RasterError, match=words):
            ArraySource.from_xarray(wrong, crs=UTM)
    assert ArraySource.from_xarray(array[:1], crs=UTM).bounds == (500_000, 5_399_998, 500_008, 5_400_000)


class OnDemand:
    """An array that notes what is loaded of it."""

    shape, dtype, ndim = (2, 1000, 1000), np.dtype("uint8"), 3
    chunks = ((2,), (250,) * 4, (500, 500))

    def __init__(self) -> None:
        self.loaded = 0

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        part: npt.NDArray[Any] = np.broadcast_to(np.uint8(5), self.shape)[key]
        self.loaded += part.size
        return part


def test_windows_alone_are_loaded() -> None:
    pixels = OnDemand()
    source = ArraySource(pixels, PLACE, UTM)
    assert source.block_shape == (250, 500)
    assert source.read(990, 10, 20, 20)[1].sum() == 200
    assert pixels.loaded == 2 * 10 * 20


def test_xarray_is_not_imported() -> None:
    code = "import sys, torchgeo_debias.tiling.opening, torchgeo_debias.tiling.arrays; print('xarray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
