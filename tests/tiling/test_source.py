from __future__ import annotations

import copy
import json
import math
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.tiling.source import RasterSource


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("plain") / "plain.tif", noise((3, 17, 23)))


@settings(deadline=None, max_examples=60)
@given(x=st.integers(-30, 40), y=st.integers(-30, 40), w=st.integers(1, 60), h=st.integers(1, 60))
def test_any_window_equals_the_padded_raster(plain: Path, x: int, y: int, w: int, h: int) -> None:
    pad = 100
    canvas = np.pad(noise((3, 17, 23)), ((0, 0), (pad, pad), (pad, pad)))
    inside = np.pad(np.ones((17, 23), dtype=bool), pad)
    with RasterSource(plain) as source:
        image, valid = source.read(x, y, w, h)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, canvas[:, pad + y : pad + y + h, pad + x : pad + x + w])
    np.testing.assert_array_equal(valid, inside[pad + y : pad + y + h, pad + x : pad + x + w])


def test_attributes(plain: Path) -> None:
    with RasterSource(plain, bands=[3, 1]) as source:
        assert (source.width, source.height, source.count) == (23, 17, 2)
        assert source.gsd == 2.0
        assert source.bounds == (500_000, 5_399_966, 500_046, 5_400_000)
        assert source.crs.to_epsg() == 32632
        np.testing.assert_array_equal(source.read(0, 0, 23, 17)[0], noise((3, 17, 23))[[2, 0]])


def test_band_names(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((4, 4, 4)), photometric="rgb")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]
        dataset.set_band_description(2, "B03")
    with RasterSource(path) as source:
        assert source.band_names == ("red", "B03", "blue", "band_4")


@pytest.mark.parametrize(
    ("stored", "read"),
    [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "int16"), ("int32", "float32"), ("float64", "float32")],
)
def test_dtypes(tmp_path: Path, stored: str, read: str) -> None:
    with RasterSource(write_raster(tmp_path / "a.tif", noise((1, 4, 4), stored))) as source:
        image, _ = source.read(0, 0, 4, 4)
    assert source.dtype == image.dtype == np.dtype(read)


def test_alpha_is_a_mask_and_not_a_band(tmp_path: Path) -> None:
    pixels = noise((4, 6, 6))
    pixels[3] = 255
    pixels[3, 2:4, 1] = 0
    path = write_raster(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    with RasterSource(path) as source:
        image, valid = source.read(0, 0, 6, 6)
    assert source.band_names == ("red", "green", "blue")
    np.testing.assert_array_equal(valid, pixels[3] > 0)
    assert (image[:, ~valid] == 0).all()


def test_alpha_that_is_asked_for_is_data(tmp_path: Path) -> None:
    pixels = noise((4, 6, 6))
    pixels[3, 0] = 0
    path = write_raster(tmp_path / "a.tif", pixels, photometric="rgb", alpha="yes")
    with RasterSource(path, bands=[1, 2, 3, 4]) as source:
        image, valid = source.read(0, 0, 6, 6)
    assert valid.all()
    np.testing.assert_array_equal(image, pixels)


def test_mask_band(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((3, 6, 6)))
    mask = np.full((6, 6), 255, dtype=np.uint8)
    mask[0] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    with RasterSource(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, 6, 6)[1], mask > 0)


def test_nodata_of_unsigned_rasters_needs_every_band(tmp_path: Path) -> None:
    pixels = noise((2, 3, 3))
    pixels[:, 0, 0] = 0
    pixels[0, 1, 1] = 0  # dark in one band only: ordinary data
    with RasterSource(write_raster(tmp_path / "a.tif", pixels, nodata=0)) as source:
        valid = source.read(0, 0, 3, 3)[1]
    assert np.argwhere(~valid).tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_nodata_of_signed_rasters_needs_one_band(tmp_path: Path, dtype: str) -> None:
    pixels = noise((2, 3, 3), dtype)
    pixels[0, 1, 1] = -9999
    with RasterSource(write_raster(tmp_path / "a.tif", pixels, nodata=-9999)) as source:
        image, valid = source.read(0, 0, 3, 3)
    assert np.argwhere(~valid).tolist() == [[1, 1]]
    assert (image[:, 1, 1] == 0).all()


def test_float_nodata_that_no_float_equals_exactly(tmp_path: Path) -> None:
    pixels = noise((1, 3, 3), "float32")
    pixels[0, 0, 0] = np.finfo(np.float32).min
    with RasterSource(write_raster(tmp_path / "a.tif", pixels, nodata=-3.4028234663852886e38)) as source:
        assert not source.read(0, 0, 3, 3)[1][0, 0]


def test_nodata_of_each_band(tmp_path: Path) -> None:
    pixels = noise((2, 3, 3), "int16")
    pixels[0, 0, 0], pixels[1, 0, 0], pixels[1, 2, 2] = 300, 300, 301
    path = write_raster(tmp_path / "a.tif", pixels)
    vrt = tmp_path / "a.vrt"
    rasterio.shutil.copy(path, vrt, driver="VRT")
    text = vrt.read_text()
    for band, value in ((1, 300), (2, 301)):
        text, changed = re.subn(
            f'(<VRTRasterBand [^>]*band="{band}"[^>]*>)', rf"\1<NoDataValue>{value}</NoDataValue>", text
        )
        assert changed == 1
    vrt.write_text(text)
    with RasterSource(vrt) as source:
        assert np.argwhere(~source.read(0, 0, 3, 3)[1]).tolist() == [[0, 0], [2, 2]]


def test_nodata_option_takes_the_place_of_the_declared_one(tmp_path: Path) -> None:
    pixels = noise((1, 2, 2))
    pixels[0] = [[0, 7], [8, 9]]
    with RasterSource(write_raster(tmp_path / "a.tif", pixels, nodata=0), nodata=7) as source:
        assert source.read(0, 0, 2, 2)[1].tolist() == [[True, False], [True, True]]


def test_nan_must_be_declared(tmp_path: Path) -> None:
    pixels = noise((2, 4, 4), "float32")
    pixels[0, 1, 2] = np.nan
    pixels[:, 3, 3] = -9999
    path = write_raster(tmp_path / "nan.tif", pixels, nodata=-9999)
    with RasterSource(path) as source, pytest.raises(RasterError, match=r"nan\.tif.*--nodata nan"):
        source.read(0, 0, 4, 4)
    with RasterSource(path, nodata=math.nan) as source:
        image, valid = source.read(0, 0, 4, 4)
    assert np.argwhere(~valid).tolist() == [[1, 2], [3, 3]]
    assert np.isfinite(image).all()


@pytest.mark.parametrize(
    ("crs", "transform", "gsd"),
    [
        ("EPSG:4326", from_origin(10, 60.0001, 1e-4, 1e-4), (11.132 / 2 * (math.cos(math.pi / 3) + 1))),
        ("EPSG:3857", from_origin(0, 8_400_000, 10, 10), 10 * math.cos(math.radians(60.02))),
        ("EPSG:2263", from_origin(980_000, 200_000, 1, 1), 0.3048),
        ("EPSG:32632", from_origin(500_000, 5_400_000, 0.3, 0.5), 0.4),
    ],
)
def test_gsd_is_in_metres_on_the_ground(tmp_path: Path, crs: str, transform: Any, gsd: float) -> None:
    path = write_raster(tmp_path / "a.tif", noise((1, 3, 3)), crs=crs, transform=transform)
    with RasterSource(path) as source:
        assert source.gsd == pytest.approx(gsd, rel=5e-3)


def _truncated(path: Path) -> Path:
    write_raster(path, noise((3, 400, 400)), compress="deflate")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def _bare(path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_raster(path, noise((2, 4, 4)), **options)


def test_refuses_what_cannot_be_placed_or_read(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("not an image")
    for path, words in [
        (tmp_path / "missing.tif", "no raster at"),
        (text, "cannot be opened"),
        (_bare(tmp_path / "nocrs.tif", crs=None), "coordinate reference system.*--crs EPSG:32632"),
        (_bare(tmp_path / "nowhere.tif", transform=Affine.identity()), "no position"),
        (
            _bare(tmp_path / "site.tif", crs='LOCAL_CS["site",UNIT["foot",0.3048]]'),
            "no coordinate reference system on the earth",
        ),
        (_bare(tmp_path / "mars.tif", crs="ESRI:104905"), "no coordinate reference system on the earth"),
        (write_raster(tmp_path / "complex.tif", np.ones((1, 3, 3), dtype="complex64")), "complex64"),
    ]:
        with pytest.raises(RasterError, match=words) as caught:
            RasterSource(path)
        assert path.name in str(caught.value)


def test_a_file_of_several_rasters_says_how_to_take_one_out(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    for table, more in (("a", "NO"), ("b", "YES")):
        write_raster(path, noise((1, 8, 8)), driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET=more)
    with pytest.raises(RasterError, match=r"two\.gpkg holds no bands.*: gdal_translate GPKG:\S*two\.gpkg:a one\.tif$"):
        RasterSource(path)


def test_order_of_bands_with_the_same_names(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((4, 4, 4)), photometric="minisblack")
    with RasterSource(path) as source:
        assert source.order_of(["band_1", "band_2", "band_3", "band_4"]) is None
        assert source.order_of(["band_4", "band_3", "band_1", "band_2"]) == (4, 3, 1, 2)
        assert source.order_of(["red", "green", "blue", "nir"]) is None
    with RasterSource(path, [3, 1]) as source:  # numbers say nothing against an order that was asked for
        assert source.order_of(["band_1", "band_3"]) is None
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red", "red")
    with RasterSource(path, [3, 1, 2]) as source:
        assert source.order_of(["red", "green", "blue"]) == (3, 2, 1)
    with RasterSource(path) as source:
        assert source.order_of(["red", "red", "green", "blue"]) is None


@pytest.mark.parametrize("bands", [[0], [3], []])
def test_refuses_bands_that_are_not_there(tmp_path: Path, bands: list[int]) -> None:
    with pytest.raises(RasterError, match="2 bands; --bands"):
        RasterSource(_bare(tmp_path / "a.tif"), bands)


def test_refuses_a_file_that_breaks_off(tmp_path: Path) -> None:
    path = _truncated(tmp_path / "half.tif")
    with pytest.raises(RasterError, match=r"half\.tif"), RasterSource(path) as source:
        source.read(0, 390, 400, 10)


@pytest.mark.real_data
def test_reads_every_real_raster(real_data: Path) -> None:
    paths = sorted((real_data / "rasters").glob("*.tif"))
    assert len(paths) == 8
    for path in paths:
        with RasterSource(path) as source:
            image, valid = source.read(-3, -3, 40, 40)
            assert image.shape == (source.count, 40, 40)
            assert not valid[:3].any()
            assert np.isfinite(image).all()
            assert source.gsd > 0


def test_bands_by_name(tmp_path: Path) -> None:
    pixels = noise((4, 4, 4))
    path = write_raster(tmp_path / "a.tif", pixels, photometric="rgb")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]
        dataset.set_band_description(1, "B04")
    with RasterSource(path, ["band_4", "b04", "Green", "RED"]) as source:
        assert source.bands == (4, 1, 2, 1)
        assert source.band_names == ("band_4", "B04", "green", "B04")
        np.testing.assert_array_equal(source.read(0, 0, 4, 4)[0], pixels[[3, 0, 1, 0]])
    with pytest.raises(RasterError, match=r"no band named nir; it has B04, green, blue, band_4\.$"):
        RasterSource(path, ["nir"])
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(2, "B04")
    with pytest.raises(RasterError, match=r"several bands named b04 \(1, 2\); give the number"):
        RasterSource(path, ["b04"])


def test_crs_that_stands_in(tmp_path: Path) -> None:
    bare, own = _bare(tmp_path / "bare.tif", crs=None), _bare(tmp_path / "own.tif")
    local = _bare(tmp_path / "local.tif", crs='LOCAL_CS["site",UNIT["foot",0.3048]]')
    for path in (bare, own, local):
        with RasterSource(path, crs=UTM) as source:
            assert source.crs.to_epsg() == 32632
            assert copy.copy(source).crs == source.crs
    with pytest.raises(RasterError, match=r"own\.tif is in EPSG:32632 already, so EPSG:4326 .*leave out --crs"):
        RasterSource(own, crs="EPSG:4326")
    for wrong in ("EPSG:none", "ESRI:104905"):
        with pytest.raises(ConfigError, match=f"'{wrong}' is not a coordinate reference system"):
            RasterSource(bare, crs=wrong)


@pytest.mark.parametrize(("across", "down"), [(2, 2), (-2, -2), (-2, 2)])
def test_rasters_stored_the_other_way_round_are_turned(plain: Path, tmp_path: Path, across: int, down: int) -> None:
    upright = noise((3, 17, 23))
    stored = upright[:, :: 1 if down < 0 else -1, :: 1 if across > 0 else -1]
    left, top = (500_000 if across > 0 else 500_046), (5_400_000 if down < 0 else 5_399_966)
    path = write_raster(tmp_path / "a.tif", stored, transform=Affine(across, 0, left, 0, down, top))
    with RasterSource(path) as source, RasterSource(plain) as expected:
        assert source.grid == expected.grid
        assert source.bounds == expected.bounds
        for window in ((0, 0, 23, 17), (-3, 2, 12, 40), (20, 15, 3, 2)):
            for got, wanted in zip(source.read(*window), expected.read(*window), strict=True):
                np.testing.assert_array_equal(got, wanted)
                assert got.flags.c_contiguous


def _rotated(path: Path, degrees: float, size: int = 40) -> tuple[Path, tuple[float, float]]:
    """A black raster with a bright patch of 5 x 5 pixels, and the map coordinates of its centre."""
    pixels = np.full((1, size, size), 20, dtype=np.uint8)
    pixels[:, 10:15, 25:30] = 220
    transform = (
        Affine.translation(500_000, 5_400_000) @ Affine.rotation(degrees) @ Affine.shear(5) @ Affine.scale(2, -2)
    )
    return write_raster(path, pixels, transform=transform), transform @ (27.5, 12.5)


@pytest.mark.parametrize("degrees", [20, 135, 250])
def test_rotated_rasters_are_straightened(tmp_path: Path, degrees: float) -> None:
    path, centre = _rotated(tmp_path / "a.tif", degrees)
    with RasterSource(path) as source:
        t = source.transform
        assert (t.b, t.d) == (0, 0)
        assert source.gsd == pytest.approx(2, rel=1e-3)
        image, valid = source.read(0, 0, source.width, source.height)
        assert source.footprints is not None
        covered = source.footprints[0]
    assert valid.sum() == pytest.approx(40 * 40, rel=0.05)
    assert set(np.unique(image[0][~valid]).tolist()) <= {0}
    assert image[0][valid].min() >= 20  # black outside does not bleed in
    row, column = np.argwhere(image[0] > 120).mean(axis=0) + 0.5
    assert t @ (column, row) == pytest.approx(centre, abs=1)
    rows, columns = np.nonzero(valid)
    x, y = t @ np.array([columns + 0.5, rows + 0.5])
    assert shapely.intersects_xy(covered, x, y).all()


def test_a_quarter_turn_moves_pixels_and_changes_none(tmp_path: Path) -> None:
    pixels = noise((2, 6, 9), "uint16")
    transform = Affine(0, 2, 500_000, 2, 0, 5_400_000)  # rows point north, columns east
    with RasterSource(write_raster(tmp_path / "a.tif", pixels, transform=transform)) as source:
        assert (source.width, source.height) == (6, 9)
        image, valid = source.read(0, 0, 6, 9)
    assert valid.all()
    np.testing.assert_array_equal(image, pixels.transpose(0, 2, 1)[:, ::-1])


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _rotated(tmp_path_factory.mktemp("turned") / "a.tif", 30)[0]


@settings(max_examples=25)
@given(x=st.integers(-9, 60), y=st.integers(-9, 60), w=st.integers(1, 60), h=st.integers(1, 60))
def test_windows_of_a_straightened_raster_are_crops_of_the_whole(turned: Path, x: int, y: int, w: int, h: int) -> None:
    with RasterSource(turned) as source:
        whole, valid = (np.pad(part, [(0, 0)] * (part.ndim - 2) + [(70, 70)] * 2) for part in source.read(0, 0, 60, 60))
        image, mask = source.read(x, y, w, h)
    np.testing.assert_array_equal(image, whole[:, 70 + y : 70 + y + h, 70 + x : 70 + x + w])
    np.testing.assert_array_equal(mask, valid[70 + y : 70 + y + h, 70 + x : 70 + x + w])


@pytest.mark.parametrize("kind", ["plain", "turned"])
def test_copies_have_handles_of_their_own(kind: str, request: pytest.FixtureRequest) -> None:
    with RasterSource(request.getfixturevalue(kind), bands=[1], nodata=7) as source:
        wanted = source.read(2, 3, 9, 9)
        others = [copy.copy(source), pickle.loads(pickle.dumps(source))]
        identity = source.identity()
    for other in others:
        with other:
            assert other.identity() == identity
            for got, expected in zip(other.read(2, 3, 9, 9), wanted, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_identity_changes_with_the_pixels_and_not_with_their_statistics(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((2, 40, 40)))

    def identity(**options: Any) -> str:
        with RasterSource(path, **options) as source:
            return json.dumps(source.identity())

    first = identity()
    with rasterio.open(path) as dataset:
        dataset.statistics(1)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
    assert {entry.name for entry in tmp_path.iterdir()} > {"a.tif"}
    os.utime(path, ns=(0, json.loads(first)["files"][0][2]))
    assert identity() == first
    assert len({first, identity(bands=[2, 1]), identity(nodata=3), identity(nodata=math.nan)}) == 4
    os.utime(path)
    assert identity() != first


def test_identity_of_a_vrt_names_the_files_behind_it(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((1, 8, 8)))
    inner, outer = tmp_path / "inner.vrt", tmp_path / "outer.vrt"
    rasterio.shutil.copy(path, inner, driver="VRT")
    outer.write_text(inner.read_text().replace("a.tif", "inner.vrt"))
    with RasterSource(outer) as source:
        assert [name for name, _, _ in source.identity()["files"]] == ["a.tif", "inner.vrt", "outer.vrt"]
        wanted = source.read(0, 0, 8, 8)[0]
    np.testing.assert_array_equal(wanted, noise((1, 8, 8)))
    path.unlink()
    with RasterSource(inner) as source, pytest.raises(RasterError, match=r"inner\.vrt .*refers to is missing"):
        source.read(0, 0, 8, 8)


def test_bands_of_a_vrt_may_differ_in_type(tmp_path: Path) -> None:
    pixels = noise((2, 5, 5))
    rasterio.shutil.copy(write_raster(tmp_path / "a.tif", pixels), tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    (tmp_path / "a.vrt").write_text(text.replace('dataType="Byte" band="2"', 'dataType="UInt16" band="2"'))
    with RasterSource(tmp_path / "a.vrt") as source:
        image, _ = source.read(0, 0, 5, 5)
    assert source.dtype == image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels)


def test_a_broken_tile_spoils_no_other(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", noise((1, 64, 64)), tiled=True, blockxsize=16, blockysize=16, compress="deflate"
    )
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 60] = b"\xff" * 60
    path.write_bytes(data)
    with RasterSource(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, 64, 32)[0], noise((1, 64, 64))[:, :32])
        with pytest.raises(RasterError, match=r"a\.tif cannot be read at columns 16 to 32, rows 32 to 48"):
            source.read(16, 32, 16, 16)
        np.testing.assert_array_equal(source.read(32, 32, 32, 32)[0], noise((1, 64, 64))[:, 32:, 32:])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 100_000), (100_000, 1)])
def test_rasters_as_thin_as_can_be(tmp_path: Path, height: int, width: int) -> None:
    pixels = noise((1, height, width))
    with RasterSource(write_raster(tmp_path / "a.tif", pixels, compress="deflate")) as source:
        assert source.gsd == 2.0
        np.testing.assert_array_equal(source.read(0, 0, width, height)[0], pixels)
        assert source.read(width - 1, height - 1, 5, 5)[1].sum() == 1


def test_longitudes_beyond_180(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", noise((1, 20, 40)), crs="EPSG:4326", transform=from_origin(179, 0.5, 0.05, 0.05)
    )
    with RasterSource(path) as source:
        assert source.bounds == pytest.approx((179, -0.5, 181, 0.5))
        assert source.gsd == pytest.approx(5550, rel=0.01)


@pytest.mark.parametrize("value", [-5.0, 300.0, 6.5, math.nan])
def test_nodata_that_the_type_cannot_hold_masks_nothing(tmp_path: Path, value: float) -> None:
    with RasterSource(write_raster(tmp_path / "a.tif", noise((2, 9, 9))), nodata=value) as source:
        assert source.read(0, 0, 9, 9)[1].all()
