from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform_geom

import torchgeo_debias.tiling._warped as warped_module
import torchgeo_debias.tiling.mosaic as mosaic_module
from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.errors import ConfigError, RasterError
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.mosaic import MosaicSource
from torchgeo_debias.tiling.source import RasterSource

LEFT, TOP = 500_000, 5_400_000


def at(column: float, row: float, side: float = 2) -> Affine:
    return from_origin(LEFT + 2 * column, TOP - 2 * row, side, side)


def whole(source: MosaicSource | RasterSource) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    return source.read(0, 0, source.width, source.height)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """On the grid, on it with nodata and overlap, off it by half a pixel, coarser, in another CRS, rotated."""
    folder = tmp_path_factory.mktemp("mixed")
    holed = noise((2, 30, 40), seed=1)
    holed[:, 5:20, 3:17] = 0
    masked = write_raster(folder / "c.tif", noise((2, 30, 30), seed=2), transform=at(20.5, 25.5))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked, "r+") as dataset:
        mask = np.full((30, 30), 255, dtype=np.uint8)
        mask[10:14, 10:14] = 0
        dataset.write_mask(mask)
    turned = Affine.translation(LEFT + 30, TOP - 130) @ Affine.rotation(30) @ Affine.scale(2, -2)
    return [
        write_raster(folder / "a.tif", noise((2, 20, 30))),
        write_raster(folder / "b.tif", holed, transform=at(25, -5), nodata=0),
        masked,
        write_raster(folder / "d.tif", noise((2, 12, 12), seed=3), transform=at(-10, 30, side=5)),
        write_raster(
            folder / "e.tif",
            noise((2, 40, 40), seed=4),
            crs="EPSG:4326",
            transform=from_origin(9.0006, 48.7538, 2.7e-5, 1.8e-5),
        ),
        write_raster(folder / "f.tif", noise((2, 20, 20), seed=5), transform=turned),
    ]


@pytest.fixture(scope="module")
def survey(mixed: list[Path]) -> MosaicSource:
    return MosaicSource(mixed)


def test_rasters_on_the_grid_are_read_as_they_are(tmp_path: Path) -> None:
    tiles = noise((3, 40, 60), "uint16")
    paths = [
        write_raster(
            tmp_path / f"{row}{column}.tif", tiles[:, row : row + 20, column : column + 20], transform=at(column, row)
        )
        for row in (20, 0)
        for column in (40, 0, 20)
    ]
    with MosaicSource(paths) as source:
        assert source.grid == Grid(60, 40, source.crs, at(0, 0))
        assert (source.gsd, source.dtype, source.count) == (2.0, np.dtype(np.uint16), 3)
        image, valid = whole(source)
        assert source.footprints is not None
        assert shapely.union_all(source.footprints).equals(shapely.box(*source.bounds))
    assert valid.all()
    np.testing.assert_array_equal(image, tiles)


def test_the_first_raster_with_data_wins_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = [noise((2, 30, 30), seed=seed) for seed in range(3)]
    pixels[0][:, 5:25, 5:25] = 0
    pixels[1][:, 10:20, 10:20] = 0
    paths = [write_raster(tmp_path / f"{i}.tif", values, nodata=0) for i, values in enumerate(pixels)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        wanted = pixels[order[2]]
        for i in order[1::-1]:
            wanted = np.where((pixels[i] == 0).all(axis=0), wanted, pixels[i])
        with MosaicSource([paths[i] for i in order]) as source:
            np.testing.assert_array_equal(whole(source)[0], wanted)


def test_nodata_outside_and_between(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / "a.tif", noise((1, 10, 10))),
        write_raster(tmp_path / "b.tif", noise((1, 10, 10)), transform=at(30, 20)),
    ]
    with MosaicSource(paths) as source:
        image, valid = source.read(-5, -5, 60, 60)
    wanted = np.zeros((60, 60), dtype=bool)
    wanted[5:15, 5:15] = wanted[25:35, 35:45] = True
    np.testing.assert_array_equal(valid, wanted)
    assert not image[0][~valid].any()


@settings(max_examples=25)
@given(data=st.data())
def test_any_window_is_a_crop_of_the_whole(survey: MosaicSource, data: st.DataObject) -> None:
    with copy.copy(survey) as source:
        image, valid = whole(source)
        x, y = data.draw(st.integers(0, source.width - 1)), data.draw(st.integers(0, source.height - 1))
        w, h = data.draw(st.integers(1, source.width - x)), data.draw(st.integers(1, source.height - y))
    with copy.copy(survey) as source:  # nothing kept from the first reading
        part, mask = source.read(x, y, w, h)
    np.testing.assert_array_equal(part, image[:, y : y + h, x : x + w])
    np.testing.assert_array_equal(mask, valid[y : y + h, x : x + w])


def test_all_kinds_of_rasters_hold_data_where_they_lie(mixed: list[Path]) -> None:
    with MosaicSource(mixed) as source:
        _, valid = whole(source)
        rows, columns = np.mgrid[: source.height, : source.width] + 0.5
        x, y = source.transform @ (columns, rows)
        assert source.footprints is not None
        covered = shapely.union_all(source.footprints)
        t = source.transform
    assert not valid[~shapely.intersects_xy(covered, x, y)].any()
    # Away from the rim there are two holes only, both partly covered by others.
    assert 0 < (shapely.intersects_xy(covered.buffer(-9), x, y) & ~valid).sum() < 15 * 14 + 4 * 4
    column, row = ~t @ (LEFT + 2 * 32.5, TOP - 2 * 37.5)  # in the middle of the hole in the mask
    assert not valid[int(row), int(column)]


def test_resampled_values_lie_where_they_should(tmp_path: Path) -> None:
    # A plane in map coordinates looks the same on every grid.
    def plane(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray((x - LEFT) + 2 * (y - TOP), dtype=np.float32)

    rows, columns = np.mgrid[:40, :40] + 0.5
    here = write_raster(
        tmp_path / "a.tif", plane(*(at(0, 0) @ (columns[:1, :1], rows[:1, :1])))[None], transform=at(0, 0)
    )
    paths = [here]
    for name, transform, crs in (
        ("half", at(10.5, 10.25), UTM),
        ("coarse", at(100, 0, side=6), UTM),
        ("degrees", from_origin(9.003, 48.752, 2e-5, 2e-5), "EPSG:4326"),
    ):
        x, y = transform @ (columns, rows)
        if crs != UTM:
            x, y = (
                np.reshape(part, x.shape)
                for part in zip(
                    *transform_geom(
                        crs, UTM, {"type": "LineString", "coordinates": list(zip(x.flat, y.flat, strict=True))}
                    )["coordinates"],
                    strict=True,
                )
            )
        paths.append(write_raster(tmp_path / f"{name}.tif", plane(x, y)[None], transform=transform, crs=crs))
    with MosaicSource(paths) as source:
        image, valid = whole(source)
        rows, columns = np.nonzero(valid)
        wanted = plane(*(source.transform @ (columns + 0.5, rows + 0.5)))
    assert len(wanted) > 15_000
    off = np.abs(image[0][valid] - wanted)
    assert np.median(off) < 0.2
    assert off.max() < 9  # at the rims of the coarse raster, whose pixels are 6 m


@pytest.mark.parametrize("nodata", [None, -9999.0])
def test_nodata_does_not_bleed_through_resampling(tmp_path: Path, nodata: float | None) -> None:
    pixels = np.full((1, 40, 40), 100, dtype=np.int16)
    pixels[:, ::7, ::5] = -9999
    paths = [
        write_raster(tmp_path / "a.tif", np.full((1, 2, 2), 100, dtype=np.int16)),
        write_raster(tmp_path / "b.tif", pixels, transform=at(3.3, 4.4, side=1.9), nodata=-9999),
    ]
    with MosaicSource(paths, nodata=nodata) as source:
        image, valid = whole(source)
    assert set(image[0][valid].tolist()) == {100}
    assert set(image[0][~valid].tolist()) == {0}
    assert 0.8 < valid[10:, 10:].mean() < 1


def test_both_sides_of_the_antimeridian(tmp_path: Path) -> None:
    east = write_raster(
        tmp_path / "e.tif", noise((1, 10, 10)), crs="EPSG:4326", transform=from_origin(179, 1, 0.1, 0.1)
    )
    west = write_raster(
        tmp_path / "w.tif", noise((1, 10, 10), seed=1), crs="EPSG:4326", transform=from_origin(-180, 1, 0.1, 0.1)
    )
    utm = write_raster(
        tmp_path / "u.tif",
        noise((1, 10, 10), seed=2),
        crs="EPSG:32701",
        transform=from_origin(210_000, 9_990_000, 5e3, 5e3),
    )
    with MosaicSource([east, west]) as source:
        assert source.bounds == pytest.approx((179, 0, 181, 1))
        image, valid = whole(source)
        assert source.gsd == pytest.approx(11_100, rel=0.01)
    assert valid.all()
    np.testing.assert_array_equal(image, np.concatenate([noise((1, 10, 10)), noise((1, 10, 10), seed=1)], axis=2))
    with MosaicSource([west, east]) as source:
        assert source.bounds == pytest.approx((-181, 0, -179, 1))
        np.testing.assert_array_equal(whole(source)[0], image)
    with MosaicSource([east, utm]) as source:
        assert source.width < 30
        assert whole(source)[1].sum() > 100 + 15


def test_refuses_rasters_that_lie_too_far_apart(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / f"{i}.tif", noise((1, 4, 4)), transform=at(offset, offset))
        for i, offset in enumerate((0, 4, 100_000, 3))
    ]
    with pytest.raises(RasterError, match=r"0\.tif \(.*2\.tif \(.*too far apart for a mosaic.*one at a time"):
        MosaicSource(paths)


def test_refuses_rasters_that_do_not_go_together(tmp_path: Path) -> None:
    first = write_raster(tmp_path / "first.tif", noise((3, 4, 4)), photometric="rgb")
    two = write_raster(tmp_path / "two.tif", noise((2, 4, 4)))
    deep = write_raster(tmp_path / "deep.tif", noise((3, 4, 4), "uint16"))
    swapped = write_raster(tmp_path / "bgr.tif", noise((3, 4, 4)), photometric="minisblack")
    with rasterio.open(swapped, "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red")
    with pytest.raises(RasterError, match=r"two\.tif has 2 bands of uint8 and \S*first\.tif has 3 of uint8"):
        MosaicSource([first, two])
    with pytest.raises(RasterError, match=r"deep\.tif has 3 bands of uint16 and"):
        MosaicSource([first, deep])
    with pytest.raises(RasterError, match=r"bgr\.tif has the bands of \S*first\.tif in another order"):
        MosaicSource([first, swapped])
    with MosaicSource([first, swapped], ["red", "green"]) as source:
        assert source.band_names == ("red", "green")
    far = write_raster(tmp_path / "pole.tif", noise((3, 4, 4)), crs="EPSG:4326", transform=from_origin(99, 91, 1, 1))
    with pytest.raises(RasterError, match=r"pole\.tif"):
        MosaicSource([first, far])
    with pytest.raises(ConfigError, match="at least one raster"):
        MosaicSource([])


def test_a_crs_stands_in_for_those_that_have_none(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / "a.tif", noise((1, 4, 4))),
        write_raster(tmp_path / "b.tif", noise((1, 4, 4)), crs=None),
    ]
    with pytest.raises(RasterError, match=r"b\.tif has no coordinate reference system"):
        MosaicSource(paths)
    with MosaicSource(paths, crs=UTM) as source:
        assert source.width == 4


def test_copies_and_identity(mixed: list[Path]) -> None:
    with MosaicSource(mixed, bands=[2], nodata=0) as source:
        wanted = source.read(5, 6, 40, 40)
        twins = [copy.copy(source), pickle.loads(pickle.dumps(source))]
        identity = source.identity()
    for twin in twins:
        with twin:
            assert twin.identity() == identity
            assert twin.order_of(["band_2"]) is None
            for got, expected in zip(twin.read(5, 6, 40, 40), wanted, strict=True):
                np.testing.assert_array_equal(got, expected)
    with MosaicSource(mixed[::-1], bands=[2], nodata=0) as source:
        assert source.identity() != identity


def test_threads_with_copies_of_their_own_read_the_same(survey: MosaicSource) -> None:
    def read(top: int) -> npt.NDArray[Any]:
        with copy.copy(survey) as source:
            return source.read(0, top, source.width, 20)[0]

    with copy.copy(survey) as source:
        image, _ = source.read(0, 0, source.width, 120)
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(np.concatenate(list(pool.map(read, range(0, 120, 20))), axis=1), image)


def test_kept_blocks_are_bounded(mixed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with MosaicSource(mixed) as source:
        image, _ = whole(source)
    monkeypatch.setattr(warped_module, "_CACHE_BYTES", 20_000)
    monkeypatch.setattr(warped_module, "_BLOCK", 16)
    with MosaicSource(mixed) as source:
        small, _ = whole(source)
        assert source._cache._bytes <= 20_000
        assert source._cache._bytes == sum(map(warped_module._size, source._cache._blocks.values()))
        assert 1 < len(source._cache._blocks) < 40
    assert (small != image).mean() < 0.2  # other blocks, other approximations, but the same picture


def test_opens_what_a_window_touches_and_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        write_raster(tmp_path / f"{i:02}.tif", np.full((1, 4, 4), i, np.uint8), transform=at(4 * i, 0))
        for i in range(20)
    ]
    opened: list[str] = []
    source = MosaicSource(paths)

    class Noted(RasterSource):
        def __init__(self, path: Path, *options: Any) -> None:
            opened.append(Path(path).stem)
            super().__init__(path, *options)

    monkeypatch.setattr(mosaic_module, "RasterSource", Noted)
    monkeypatch.setattr(mosaic_module, "_OPEN_AT_MOST", 3)
    assert source.read(10, 0, 4, 4)[0][0, 0].tolist() == [2, 2, 3, 3]
    assert opened == ["02", "03"]
    assert source.read(0, 0, 80, 1)[0][0, 0].tolist() == [i for i in range(20) for _ in range(4)]
    assert len(source._handles) == 3
    source.close()
    assert not source._handles


def test_a_broken_raster_is_named(tmp_path: Path) -> None:
    paths = [
        write_raster(tmp_path / f"{i}.tif", noise((1, 64, 64)), transform=at(64 * i, 0), compress="deflate")
        for i in (0, 1)
    ]
    with MosaicSource(paths) as source:
        paths[1].write_bytes(paths[1].read_bytes()[:600])
        assert source.read(0, 0, 64, 64)[1].all()
        with pytest.raises(RasterError, match=r"1\.tif"):
            source.read(0, 0, 128, 64)
