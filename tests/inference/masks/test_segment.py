from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from scipy import ndimage

from tests.inference.fakes import COLOURS
from tests.inference.masks.fakes import GREY, SPEC, ByPaint, Patches, read, segment
from tests.tiling.rasters import write_raster
from torchgeo_debias.errors import Cancelled, ConfigError, OutputError, RasterError
from torchgeo_debias.inference.mapping import Resources
from torchgeo_debias.inference.masks.predictor import Segmenter
from torchgeo_debias.inference.masks.segment import FindMasks, SegmentOptions, segment_rasters
from torchgeo_debias.progress import Progress


def canvas(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.full((3, height, width), GREY, np.uint8)


def painted(seed: int, height: int, width: int, count: int, side: int) -> npt.NDArray[np.uint8]:
    """Patches of odd forms, each within a square of ``side``, in the colours of three classes; they may touch."""
    rng = np.random.default_rng(seed)
    pixels = canvas(height, width)
    taken = np.zeros((height, width), bool)
    for _ in range(count):
        h, w = rng.integers(1, side + 1, 2)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        form = rng.random((h, w)) < rng.choice([0.6, 1.0])
        spot = taken[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1]
        if not spot.any():  # patches that touch would make larger ones
            pixels[:, y : y + h, x : x + w] = np.where(form, COLOURS[rng.integers(0, 3)][:, None, None], GREY)
            taken[y : y + h, x : x + w] |= form
    return pixels


def outlines(frame: gpd.GeoDataFrame) -> list[tuple[str, int, float]]:
    """Polygons in a normal form, with their classes."""
    forms = shapely.to_wkt(shapely.normalize(frame.geometry.to_numpy()), rounding_precision=6)
    return sorted(zip(forms, frame["class_id"].tolist(), frame["score"].tolist(), strict=True))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    overlap=st.sampled_from([0.4, 0.6]),
)
def test_objects_smaller_than_the_overlap_are_those_of_one_tile(
    tmp_path: Path, seed: int, height: int, width: int, overlap: float
) -> None:
    pixels = painted(seed, height, width, 30, side=round(32 * overlap) - 2)
    raster = write_raster(tmp_path / "r.tif", pixels)
    summary = segment(raster, tmp_path / "tiles.parquet", overlap=overlap)
    segment(raster, tmp_path / "one.parquet", Patches(size=96))
    tiles, one = read(tmp_path / "tiles.parquet"), read(tmp_path / "one.parquet")
    assert outlines(tiles) == outlines(one)
    assert not tiles["cut"].any()
    count = ndimage.label((pixels != GREY).any(axis=0))[1]
    assert len(tiles) == count == sum(summary.counts.values())


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
def test_an_object_across_seams_becomes_one_polygon(tmp_path: Path, overlap: float) -> None:
    pixels = canvas(150, 150)
    red, green, blue = COLOURS[:3, :, None, None]
    pixels[:, 10:14, 5:140] = red  # a road along the rows
    pixels[:, 20:140, 30:36] = green  # one along the columns, and a bar with which it makes a cross
    pixels[:, 70:76, 5:80] = green
    pixels[:, 90:145, 90:145] = blue  # a square larger than a tile, with a hole
    pixels[:, 110:120, 110:120] = GREY
    raster = write_raster(tmp_path / "r.tif", pixels)
    segment(raster, tmp_path / "out.gpkg", overlap=overlap)
    found = read(tmp_path / "out.gpkg")
    assert found["cut"].all()
    assert set(found.geom_type) == {"Polygon"}
    expected = [traced(pixels, colour) for colour in COLOURS[:3]]
    by_area = sorted(found.geometry, key=lambda polygon: polygon.area)
    for polygon, drawn in zip(by_area, sorted(expected, key=lambda polygon: polygon.area), strict=True):
        assert polygon.equals(drawn)
        assert len(shapely.get_coordinates(polygon)) == len(shapely.get_coordinates(drawn))


def traced(pixels: npt.NDArray[np.uint8], colour: npt.NDArray[np.uint8]) -> Any:
    """The area of a colour, square by square, in map coordinates of the test rasters."""
    rows, columns = np.nonzero((pixels == colour[:, None, None]).all(axis=0))
    x, y = 500_000 + 2.0 * columns, 5_400_000 - 2.0 * rows
    return shapely.simplify(shapely.union_all(shapely.box(x, y - 2, x + 2, y)), 0)


def test_neighbours_that_lie_close_stay_apart(tmp_path: Path) -> None:
    pixels = canvas(40, 70)
    for left in range(2, 64, 6):  # cars in a row, a pixel apart, over all seams
        pixels[:, 10:20, left : left + 5] = COLOURS[0][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    segment(raster, tmp_path / "out.parquet", overlap=0.3)
    found = read(tmp_path / "out.parquet")
    assert len(found) == 11
    assert found.area.tolist() == [5 * 10 * 4.0] * 11


def test_the_attributes_and_their_order(tmp_path: Path) -> None:
    pixels = canvas(64, 64)
    pixels[:, 40:46, 40:50] = COLOURS[2][:, None, None]
    pixels[:, 2:8, 4:10] = COLOURS[0][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    chips = ByPaint(SPEC, twin=True)
    summary = segment(raster, tmp_path / "out.parquet", chips=chips)
    found = read(tmp_path / "out.parquet")
    assert list(found.columns) == [
        "class", "class_id", "score", "group", "class_raw", "score_raw", "mask_score", "cut", "geometry",
    ]  # fmt: skip
    assert found["class"].tolist() == ["red", "blue"]
    assert found["group"].tolist() == ["head", "tail"]
    assert found["score"].tolist() == pytest.approx([0.7, 0.7])
    assert found["class_raw"].tolist() == ["red", "red"]
    assert found["mask_score"].tolist() == [0.9, 0.9]
    assert found.crs.to_epsg() == 32632
    assert found.geometry[0].equals(shapely.box(500_008, 5_399_984, 500_020, 5_399_996))
    assert summary.counts == {"red": 1, "green": 0, "blue": 1, "none": 0}
    assert summary.files == (tmp_path / "out.parquet",)


def test_what_is_left_out(tmp_path: Path) -> None:
    pixels = canvas(64, 64)
    pixels[:, 2:4, 2:4] = COLOURS[0][:, None, None]  # four pixels
    pixels[:, 10:20, 10:20] = COLOURS[0][:, None, None]
    pixels[:, 40:44, 40:44] = GREY + 1  # an object that the classifier takes for background
    pixels[:, 50:60, 5:15] = COLOURS[1][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    out = tmp_path / "out.parquet"

    def classes(**options: Any) -> list[str]:
        segment(raster, out, **options)
        return sorted(read(out)["class"])

    assert classes() == ["green", "red", "red"]
    assert classes(keep_background=True) == ["green", "none", "red", "red"]
    assert classes(min_pixels=5) == ["green", "red"]
    assert classes(max_share=0.02) == classes(max_pixels=99) == ["red"]
    assert classes(min_score=0.8) == []
    assert classes(area=[500_000, 5_399_870, 500_128, 5_399_910]) == ["green"]


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_an_object_that_fills_tiles_is_whole(tmp_path: Path, overlap: float) -> None:
    pixels = canvas(200, 180)
    pixels[:, 20:150, 10:150] = COLOURS[1][:, None, None]  # a field over several tiles
    pixels[:, 60:70, 60:70] = GREY
    pixels[:, 170:180, 20:40] = COLOURS[0][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    segment(raster, tmp_path / "out.parquet", overlap=overlap, max_share=0.75)
    found = read(tmp_path / "out.parquet").set_index("class")
    assert found.geometry["green"].equals(traced(pixels, COLOURS[1]))
    assert found.geometry["red"].equals(traced(pixels, COLOURS[0]))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), size=st.sampled_from([24, 40, 64]), overlap=st.sampled_from([0.25, 0.5]))
def test_which_objects_are_too_large_does_not_hang_on_the_tiles(
    tmp_path: Path, seed: int, size: int, overlap: float
) -> None:
    rng = np.random.default_rng(seed)
    pixels = canvas(140, 140)
    for y in range(0, 140, 35):
        for x in range(0, 140, 35):
            h, w = rng.integers(2, 34, 2)
            pixels[:, y : y + h, x : x + w] = COLOURS[rng.integers(0, 3)][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    segment(raster, tmp_path / "tiles.parquet", Patches(size=size), overlap=overlap, max_pixels=250)
    segment(raster, tmp_path / "one.parquet", Patches(size=140), max_pixels=250)
    tiles, one = read(tmp_path / "tiles.parquet"), read(tmp_path / "one.parquet")
    assert outlines(tiles) == outlines(one)
    sizes = np.bincount(ndimage.label((pixels != GREY).any(axis=0))[0].ravel())[1:]
    assert len(one) == (sizes <= 250).sum()


def test_the_share_of_a_raster_is_one_of_its_pixels_with_data(tmp_path: Path) -> None:
    pixels = canvas(100, 100)
    pixels[:, :, :50] = 0
    pixels[:, 10:90, 55:95] = COLOURS[0][:, None, None]  # 64 % of the half with data
    raster = write_raster(tmp_path / "r.tif", pixels, nodata=0)
    for size in (32, 128):
        for share, count in ((0.63, 0), (0.65, 1)):
            segment(raster, tmp_path / "out.parquet", Patches(size=size), max_share=share)
            assert len(read(tmp_path / "out.parquet")) == count
    # What an area of interest hides counts as data: it changes nothing about what is found in it.
    pixels = canvas(200, 200)
    pixels[:, 100:120, 100:120] = COLOURS[0][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    area = [500_200, 5_399_760, 500_240, 5_399_800]
    for place in (None, area):
        segment(raster, tmp_path / "out.parquet", Patches(size=16), max_share=0.02, area=place)
        assert len(read(tmp_path / "out.parquet")) == 1


def test_pixels_without_data_belong_to_no_object(tmp_path: Path) -> None:
    pixels = canvas(64, 64)
    pixels[:, 10:20, 10:30] = COLOURS[0][:, None, None]
    pixels[:, :, 20:40] = 0
    raster = write_raster(tmp_path / "r.tif", pixels, nodata=0)
    segment(raster, tmp_path / "out.parquet")
    found = read(tmp_path / "out.parquet")
    assert found.area.tolist() == [10 * 10 * 4.0]
    empty = write_raster(tmp_path / "e.tif", np.zeros((3, 40, 40), np.uint8), nodata=0)
    with pytest.raises(RasterError, match="no data"):
        segment(empty, tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def test_a_run_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", painted(3, 700, 60, 90, side=20), blockysize=16, tiled=False)
    segment(raster, tmp_path / "whole.parquet", Patches())
    total = (tmp_path / "whole.parquet").read_bytes()
    calls = Patches()
    segment(raster, tmp_path / "again.parquet", calls)
    with pytest.raises(ZeroDivisionError):
        segment(raster, tmp_path / "out.parquet", Patches(fail_at=len(calls.calls) - 4))
    assert not (tmp_path / "out.parquet").exists()
    rest = Patches()
    summary = segment(raster, tmp_path / "out.parquet", rest)
    assert len(rest.calls) < len(calls.calls) / 2
    assert any("Went on" in note for note in summary.notes)
    assert (tmp_path / "out.parquet").read_bytes() == total
    assert sorted(os.listdir(tmp_path)) == ["again.parquet", "out.parquet", "r.tif", "whole.parquet"]


def test_the_result_does_not_hang_on_batches(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", painted(5, 200, 90, 60, side=40))
    segment(raster, tmp_path / "one.parquet", batch_size=1)
    segment(raster, tmp_path / "many.parquet", batch_size=7)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()


def test_cancelling_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", painted(5, 100, 90, 20, side=20))

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        segment(raster, tmp_path / "out.gpkg", progress=stop)
    assert not (tmp_path / "out.gpkg").exists()


def test_other_bands_and_values_are_stretched_alike_in_all_tiles(tmp_path: Path) -> None:
    pixels = painted(7, 60, 60, 15, side=8).astype(np.uint16) * 10
    stack = np.concatenate([pixels[::-1], np.full((1, 60, 60), 7, np.uint16)])
    raster = write_raster(tmp_path / "r.tif", stack)
    with rasterio.open(raster, "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red", "nir")
    model = Infrared(SPEC, bands=("blue", "green", "red", "nir"), dtype="uint16")
    segment(raster, tmp_path / "out.parquet", chips=model, stretch=(0, 2550))
    found = read(tmp_path / "out.parquet")
    assert len(found) == ndimage.label((pixels != 10 * GREY).any(axis=0))[1]
    with pytest.raises(ConfigError, match="holds uint16: say which values"):
        segment(raster, tmp_path / "no.parquet", chips=model)
    with pytest.raises(ConfigError, match="no band swir"):
        segment(raster, tmp_path / "no.parquet", chips=model, stretch=(0, 9), rgb=["red", "green", "swir"])
    with pytest.raises(ConfigError, match="no band 5"):
        segment(raster, tmp_path / "no.parquet", chips=model, stretch=(0, 9), rgb=[5, 1, 2])


class Infrared(ByPaint):
    """Takes four bands in another order."""

    def predict(self, images: Any, valid: Any) -> Any:
        plain = ByPaint(self.spec)
        return plain.predict((images[:, 2::-1] // 10).astype(np.uint8), valid)


def test_many_rasters_become_a_layer_each(tmp_path: Path) -> None:
    rasters = [write_raster(tmp_path / f"{name}.tif", painted(i, 60, 80, 15, side=8)) for i, name in enumerate("ab")]
    options = SegmentOptions(min_pixels=1, keep_background=True)
    resources = Resources(1, 1, 1)
    folder = tmp_path / "out"
    models = Patches(), ByPaint(SPEC)
    summary = segment_rasters(rasters, *models, folder, ".parquet", options, resources=resources)
    assert sorted(os.listdir(folder)) == ["a.parquet", "b.parquet"]
    for raster in rasters:
        segment(raster, tmp_path / "one.parquet", min_pixels=1, max_share=0.75, keep_background=True)
        assert outlines(read(folder / f"{raster.stem}.parquet")) == outlines(read(tmp_path / "one.parquet"))
    assert sum(summary.counts.values()) == sum(len(read(path)) for path in summary.files)


def test_what_other_processes_are_sent_can_be_sent() -> None:
    task = FindMasks(Segmenter(Patches(), ByPaint(SPEC)), 1)
    again = pickle.loads(pickle.dumps(task))
    images = np.full((2, 3, 32, 32), GREY, np.uint8)
    images[0, :, 4:9, 5:12] = 250
    valid = np.ones((2, 32, 32), bool)
    first, second = pickle.loads(pickle.dumps(again.predict(images, valid)))[0]
    assert first.bounds.tolist() == [[5, 4, 12, 9]]
    assert len(second.scores) == 0
    assert again.predictor.identity == task.predictor.identity
    assert Segmenter(Patches(), ByPaint(SPEC), rgb=[3, 2, 1]).identity != task.predictor.identity


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_pixels": 0}, "at least one pixel"),
        ({"max_share": 1.5}, "largest share"),
        ({"max_pixels": 15}, "16 to 15 pixels"),
        ({"alike": 0.0}, "likeness of two masks"),
        ({"min_score": 2.0}, "lowest score"),
    ],
)
def test_options_out_of_range(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SegmentOptions(**options)  # type: ignore[arg-type]


def test_refusals(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", canvas(20, 20))
    with pytest.raises(OutputError, match="must end in"):
        segment(raster, tmp_path / "out.shp")
    with pytest.raises(RasterError, match="bands"):
        segment(raster, tmp_path / "out.gpkg", chips=ByPaint(SPEC, bands=("grey",)))
    with pytest.raises(ConfigError, match="overlap"):
        segment(raster, tmp_path / "out.gpkg", overlap=1.0)
    assert os.listdir(tmp_path) == ["r.tif"]


def test_a_raster_in_degrees_keeps_its_crs(tmp_path: Path) -> None:
    pixels = painted(2, 50, 50, 6, side=8)
    raster = write_raster(tmp_path / "r.tif", pixels, crs="EPSG:4326", transform=Affine(1e-5, 0, 8.0, 0, -1e-5, 48.0))
    segment(raster, tmp_path / "out.parquet")
    found = read(tmp_path / "out.parquet")
    assert found.crs.to_epsg() == 4326
    assert found.area.sum() == pytest.approx((pixels != GREY).any(axis=0).sum() * 1e-10, rel=0.2)
