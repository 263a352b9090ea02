from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from shapely import box

from tests.inference.fakes import COLOURS, TABLE, ByColour, classify, mosaic
from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import Cancelled, ConfigError, OutputError, RasterError
from torchgeo_debias.progress import Progress, ProgressCallback, silent
from torchgeo_debias.tiling.source import RasterSource


def random_ids(rows: int, columns: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 4, (rows, columns))


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def layer(path: Path) -> gpd.GeoDataFrame:
    return gpd.read_file(path, layer=path.stem)


@pytest.mark.parametrize(("cell", "size"), [(8, 8), (16, 8), (11, 8)])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_mosaic_comes_back_exactly(tmp_path: Path, cell: int, size: int, batch_size: int) -> None:
    ids = random_ids(5, 6)
    path = write_raster(tmp_path / "m.tif", mosaic(ids, cell, np.random.default_rng(1)))
    folder = folder_of(tmp_path)
    model = ByColour(ChipSpec(size=size, window=cell * 2.0, unit="m"), twin=True)
    summary = classify(
        [path], model, folder / "a.gpkg", map_path=folder / "a.tif", keep_background=True, batch_size=batch_size
    )
    with rasterio.open(folder / "a.tif") as found, rasterio.open(path) as given:
        assert (found.crs, found.transform, found.shape) == (given.crs, given.transform, given.shape)
        np.testing.assert_array_equal(found.read(1), ids.repeat(cell, axis=0).repeat(cell, axis=1))
    cells = layer(folder / "a.gpkg")
    assert cells.crs.to_epsg() == 32632
    assert cells["class_id"].tolist() == ids.ravel().tolist()
    assert cells["class"].tolist() == [TABLE.names[i] for i in ids.ravel()]
    assert cells["group"].tolist() == [TABLE.groups[i] for i in ids.ravel()]
    assert cells["score"].tolist() == pytest.approx([0.7] * 30)
    assert set(cells["class_raw"]) == {"red"}
    assert cells["score_raw"].tolist() == pytest.approx([0.4] * 30)
    side = cell * 2
    for i, geometry in enumerate(cells.geometry):
        row, column = divmod(i, 6)
        left, top = 500_000 + column * side, 5_400_000 - row * side
        assert geometry.equals(box(left, top - side, left + side, top))
    assert summary.counts == {name: int((ids == i).sum()) for i, name in enumerate(TABLE.names)}
    assert (summary.tiles, summary.skipped) == (30, 0)
    assert summary.files == (folder / "a.gpkg", folder / "a.tif")
    assert sorted(os.listdir(folder)) == ["a.gpkg", "a.tif", "a.tif.aux.xml"]


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 30), height=st.integers(1, 30), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_any_size_is_covered_to_the_edge(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, overlap: float
) -> None:
    folder = tmp_path_factory.mktemp("edge")
    pixels = np.broadcast_to(COLOURS[2][:, None, None], (3, height, width))
    path = write_raster(folder / "m.tif", np.ascontiguousarray(pixels))
    classify([path], ByColour(), folder / "a.parquet", map_path=folder / "a.tif", overlap=overlap, batch_size=5)
    with rasterio.open(folder / "a.tif") as found:
        assert (found.read(1) == 2).all()
        bounds = found.bounds
    cells = gpd.read_parquet(folder / "a.parquet")
    assert tuple(cells.total_bounds) == tuple(bounds)
    assert cells.area.sum() == pytest.approx(width * height * 4)
    assert cells.union_all().area == pytest.approx(width * height * 4)
    # Constant in, constant out: the rim is not weaker than the middle.
    assert cells["score"].tolist() == pytest.approx([0.7] * len(cells))


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.8])
def test_overlapping_tiles_are_averaged_on_cells(tmp_path: Path, overlap: float) -> None:
    """Against a plain implementation on full-size arrays."""
    window = 8
    path = write_raster(tmp_path / "m.tif", mosaic(random_ids(5, 7), 5))
    model = ByColour()
    classify([path], model, tmp_path / "a.parquet", overlap=overlap, keep_background=True, batch_size=4)
    step = round(window * (1 - overlap))
    with rasterio.open(path) as dataset:
        pixels, height, width = dataset.read(), dataset.height, dataset.width
    padded = np.pad(pixels, ((0, 0), (0, window), (0, window)))
    inside = np.pad(np.ones((height, width), bool), ((0, window), (0, window)))
    tops = range(0, max(-(-(height - window) // step), 0) * step + 1, step)
    lefts = range(0, max(-(-(width - window) // step), 0) * step + 1, step)
    expected = []
    tiles = {
        (y, x): model.predict(
            padded[None, :, y : y + window, x : x + window], inside[None, y : y + window, x : x + window]
        ).probabilities[0]
        for y in tops
        for x in lefts
    }
    for y in range(0, height, step):
        for x in range(0, width, step):
            y1, x1 = min(y + step, height), min(x + step, width)
            total = np.zeros(4)
            for (ty, tx), p in tiles.items():
                covered = max(min(y1, ty + window) - max(y, ty), 0) * max(min(x1, tx + window) - max(x, tx), 0)
                total += covered * p
            expected.append(total / total.sum())
    found = gpd.read_parquet(tmp_path / "a.parquet")
    chosen = np.array(expected)[np.arange(len(expected)), found["class_id"]]
    assert chosen.tolist() == pytest.approx(np.max(expected, axis=1), rel=1e-5)
    assert found["score"].tolist() == pytest.approx(np.max(expected, axis=1), rel=1e-5)


@pytest.mark.parametrize("mask", ["nodata", "alpha"])
def test_what_holds_no_data_is_never_sent(tmp_path: Path, mask: str) -> None:
    ids = random_ids(4, 4)
    pixels = mosaic(ids, 8)
    valid = np.ones((32, 32), bool)
    valid[:, 8:16] = False  # a column of tiles
    valid[16:24] = False  # a row of tiles
    valid[2, 2] = False  # one pixel
    pixels[:, ~valid] = 0
    options: dict[str, Any] = {"nodata": 0}
    if mask == "alpha":
        pixels = np.concatenate([pixels, valid[None].astype(np.uint8) * 255])
        options = {"photometric": "rgb", "alpha": "yes"}
    path = write_raster(tmp_path / "m.tif", pixels, **options)
    model = ByColour()
    summary = classify(
        [path], model, tmp_path / "a.gpkg", map_path=tmp_path / "a.tif", keep_background=True, batch_size=3
    )
    assert (summary.tiles, summary.skipped) == (16, 7)
    assert len(model.seen) == 9
    assert all(m.any() for m in model.seen)
    with rasterio.open(tmp_path / "a.tif") as found:
        wanted = ids.repeat(8, axis=0).repeat(8, axis=1)
        np.testing.assert_array_equal(found.read(1), np.where(valid, wanted, 255))
    assert len(layer(tmp_path / "a.gpkg")) == 9


@pytest.mark.parametrize("overlap", [0.5, 0.75])
def test_cells_without_data_are_left_out_under_overlap_too(tmp_path: Path, overlap: float) -> None:
    pixels = mosaic(np.zeros((3, 4), dtype=int), 8)
    valid = np.ones((24, 32), bool)
    valid[:, 8:16] = False
    valid[20:] = False  # below the middle of the last row of tiles
    pixels[:, ~valid] = 0
    path = write_raster(tmp_path / "m.tif", pixels, nodata=0)
    classify([path], ByColour(), tmp_path / "a.parquet", map_path=tmp_path / "a.tif", overlap=overlap)
    bounds = gpd.read_parquet(tmp_path / "a.parquet").bounds
    step = round(8 * (1 - overlap))
    found = np.zeros((24, 32), bool)
    for left, top in zip((bounds["minx"] - 500_000) / 2, (5_400_000 - bounds["maxy"]) / 2, strict=True):
        found[int(top) : int(top) + step, int(left) : int(left) + step] = True
    np.testing.assert_array_equal(found, valid)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1) == 0, valid)


def test_background_and_low_scores_stay_out_of_the_polygons(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 3]])
    path = write_raster(tmp_path / "m.tif", mosaic(ids, 8))
    summary = classify([path], ByColour(), tmp_path / "a.gpkg", map_path=tmp_path / "a.tif")
    assert layer(tmp_path / "a.gpkg")["class"].tolist() == ["red", "green", "blue"]
    assert summary.counts["none"] == 1
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.read(1)[0, ::8].tolist() == [0, 1, 2, 3]
    summary = classify([path], ByColour(), tmp_path / "b.gpkg", map_path=tmp_path / "b.tif", min_score=0.8)
    assert len(layer(tmp_path / "b.gpkg")) == 0
    assert sum(summary.counts.values()) == 0
    with rasterio.open(tmp_path / "b.tif") as found:
        assert (found.read(1) == 255).all()


def test_windows_keep_their_ground(tmp_path: Path) -> None:
    """A model of 1 m pixels looks at 4 m of a raster of 2 m pixels when its window has 4 pixels; fitted ones alike."""
    path = write_raster(tmp_path / "m.tif", mosaic(random_ids(2, 2), 8))
    for spec, side in [
        (ChipSpec(size=8, window=32, gsd=1.0), 16),
        (ChipSpec(size=8, window=32, unit="m"), 16),
        (ChipSpec(size=8, gsd=4.0), 16),
        (ChipSpec(size=8), 8),
    ]:
        summary = classify([path], ByColour(spec), tmp_path / "a.gpkg")
        assert summary.tiles == (16 // side) ** 2


def test_geographic_raster(tmp_path: Path) -> None:
    ids = random_ids(3, 3)
    degrees = 10 / 111_320
    path = write_raster(
        tmp_path / "m.tif", mosaic(ids, 8), crs="EPSG:4326", transform=from_origin(7, 0.002, degrees, degrees)
    )
    classify([path], ByColour(ChipSpec(size=8, window=80, unit="m")), tmp_path / "a.gpkg", keep_background=True)
    cells = layer(tmp_path / "a.gpkg")
    assert cells.crs.to_epsg() == 4326
    assert cells["class_id"].tolist() == ids.ravel().tolist()
    with rasterio.open(path) as given:
        assert tuple(cells.total_bounds) == pytest.approx(tuple(given.bounds))


def test_several_rasters_are_one_mosaic(tmp_path: Path) -> None:
    ids = random_ids(2, 4)
    pixels = mosaic(ids, 8)
    whole = write_raster(tmp_path / "whole.tif", pixels)
    left = write_raster(tmp_path / "left.tif", pixels[:, :, :12])
    right = write_raster(
        tmp_path / "right.tif", pixels[:, :, 12:], transform=from_origin(500_000 + 24, 5_400_000, 2, 2)
    )
    options: dict[str, Any] = {"keep_background": True, "overlap": 0.5}
    one = classify(whole, ByColour(), tmp_path / "one.gpkg", map_path=tmp_path / "one.tif", **options)
    two = classify([left, right], ByColour(), tmp_path / "two.gpkg", map_path=tmp_path / "two.tif", **options)
    assert (one.counts, one.tiles) == (two.counts, two.tiles)
    assert layer(tmp_path / "one.gpkg").equals(layer(tmp_path / "two.gpkg"))
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


def test_bands_and_nodata_options(tmp_path: Path) -> None:
    ids = random_ids(2, 2)
    pixels = np.concatenate([np.zeros((1, 16, 16), np.uint8), mosaic(ids, 8)])
    path = write_raster(tmp_path / "m.tif", pixels, photometric="minisblack")
    with pytest.raises(RasterError, match=r"m\.tif gives 4 bands .* takes 3 \(red, green, blue\).*--bands"):
        classify([path], ByColour(), tmp_path / "a.gpkg")
    classify([path], ByColour(), tmp_path / "a.gpkg", bands=[2, 3, 4], keep_background=True)
    assert layer(tmp_path / "a.gpkg")["class_id"].tolist() == ids.ravel().tolist()
    with pytest.raises(RasterError, match="no data in the bands"):
        classify([path], ByColour(bands=("a",)), tmp_path / "b.gpkg", bands=[1], nodata=0)


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", noise((3, 16, 16)))
    nan = np.full((3, 16, 16), np.nan, dtype="float32")
    nan[:, :8] = 1
    floats = write_raster(tmp_path / "nan.tif", nan)
    folder = folder_of(tmp_path)
    out = folder / "a.gpkg"
    cases: list[tuple[type[Exception], str, list[Path], ByColour, dict[str, Any]]] = [
        (ConfigError, "at least one raster", [], ByColour(), {}),
        (ConfigError, "overlap", [path], ByColour(), {"overlap": 1.0}),
        (ConfigError, "between 0 and 1", [path], ByColour(), {"min_score": 2.0}),
        (ConfigError, "batch size", [path], ByColour(), {"batch_size": 0}),
        (RasterError, "uint8 .* trained on uint16", [path], ByColour(dtype="uint16"), {}),
        (RasterError, "larger than the squares", [path], ByColour(ChipSpec(size=8, window=0.5, unit="m")), {}),
        (RasterError, "at most 32768 can be read", [path], ByColour(ChipSpec(size=8, window=1e9, unit="m")), {}),
        (RasterError, "at most 32768 can be read", [path], ByColour(ChipSpec(size=8, gsd=1e9)), {}),
        (RasterError, "no raster at", [folder / "missing.tif"], ByColour(), {}),
        (RasterError, "--nodata nan", [floats], ByColour(dtype="float32"), {"map_path": folder / "a.tif"}),
        (OutputError, "must end in", [path], ByColour(), {"map_path": folder / "a.png"}),
        (OutputError, "existing folder", [path], ByColour(), {"map_path": folder / "no" / "a.tif"}),
        (OutputError, "destroy the input", [path], ByColour(), {"map_path": path}),
    ]
    for kind, words, rasters, model, options in cases:
        with pytest.raises(kind, match=words):
            classify(rasters, model, out, **options)
        assert os.listdir(folder) == []


def test_outputs_are_checked_before_the_model_works(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", noise((3, 16, 16)))
    model = ByColour()
    with pytest.raises(OutputError):
        classify([path], model, tmp_path / "a.shp")
    with pytest.raises(OutputError):
        classify([path], model, tmp_path / "a.gpkg", map_path=tmp_path / "a.jpg")
    assert model.calls == []


def test_a_failing_model_or_a_cancel_leaves_nothing_under_the_final_names(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", noise((3, 64, 64)))
    folder = folder_of(tmp_path)

    def cancel(progress: Progress) -> None:
        if progress.done >= 30:
            raise Cancelled("stopped")

    cases: list[tuple[type[Exception], ByColour, ProgressCallback]] = [
        (ZeroDivisionError, ByColour(fail_at=3), silent),
        (Cancelled, ByColour(), cancel),
    ]
    for kind, model, progress in cases:
        with pytest.raises(kind):
            classify([path], model, folder / "a.gpkg", map_path=folder / "a.tif", batch_size=8, progress=progress)
        # No band was finished, so there is nothing to go on with.
        assert os.listdir(folder) == []


def test_progress_counts_every_tile(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", noise((3, 20, 20)))
    steps: list[Progress] = []
    classify(path, ByColour(), tmp_path / "a.gpkg", batch_size=1, progress=steps.append)
    seen = [s for s in steps if s.stage == "classify"]
    assert [s.done for s in seen] == list(range(1, 10))
    assert {s.total for s in seen} == {9}


def test_memory_does_not_grow_with_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = RasterSource.read

    def counted(self: RasterSource, col_off: int, row_off: int, width: int, height: int) -> Any:
        reads.append(width * height)
        return read(self, col_off, row_off, width, height)

    monkeypatch.setattr(RasterSource, "read", counted)
    peaks = []
    for rows in (64, 1024, 4096):  # the first one warms up
        # Nodata but for a strip at the end: skipped tiles must not pile up either.
        pixels = np.zeros((3, rows, 128), np.uint8)
        pixels[:, -64:] = noise((3, 64, 128))
        path = write_raster(tmp_path / f"{rows}.tif", pixels, nodata=0, compress="deflate", tiled=True)
        del pixels
        model = ByColour(ChipSpec(size=8, window=32))
        tracemalloc.start()
        classify([path], model, tmp_path / "a.gpkg", map_path=tmp_path / "a.tif", overlap=0.5, batch_size=16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(reads) == 32 * 32
    # Far less than one byte for each further pixel, which even the smallest array over the raster would take.
    assert peaks[2] - peaks[1] < 0.5 * (4096 - 1024) * 128


@pytest.mark.real_data
@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".geojson"])
def test_naip_end_to_end(real_data: Path, tmp_path: Path, ending: str) -> None:
    naip = next((real_data / "rasters").glob("naip*.tif"))
    out, map_path = tmp_path / f"naip{ending}", tmp_path / "naip.tif"
    model = ByColour(ChipSpec(size=16, window=160, unit="m"), bands=("r", "g", "b", "nir"))
    summary = classify([naip], model, out, map_path=map_path, overlap=0.5, keep_background=True)
    cells = gpd.read_parquet(out) if ending == ".parquet" else layer(out)
    with rasterio.open(naip) as given, rasterio.open(map_path) as found:
        assert (found.crs, found.transform, found.shape) == (given.crs, given.transform, given.shape)
        classes = found.read(1)
        valid = given.dataset_mask() > 0
        bounds, crs = given.bounds, given.crs
    np.testing.assert_array_equal(classes < 4, valid)
    assert len(cells) == sum(summary.counts.values()) > 2000
    assert cells.crs == ("EPSG:4326" if ending == ".geojson" else crs)
    assert cells.to_crs(crs).total_bounds.tolist() == pytest.approx(tuple(bounds), abs=0.05)
    cells = cells.to_crs(UTM if ending == ".geojson" else crs)
    middle = cells.to_crs(crs).representative_point()
    columns, rows = ((middle.x - bounds.left) // 5).astype(int), ((bounds.top - middle.y) // 5).astype(int)
    seen = classes[rows, columns]
    assert (cells["class_id"][seen != 255] == seen[seen != 255]).all()
