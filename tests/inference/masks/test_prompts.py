from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import shapely

from tests.inference.fakes import COLOURS
from tests.inference.masks.fakes import GREY, SPEC, ByPaint, Patches, read
from tests.tiling.rasters import UTM, write_raster
from torchgeo_debias.errors import LabelError, OutputError
from torchgeo_debias.inference.masks.prompts import segment_boxes
from torchgeo_debias.tiling.source import RasterSource

# Left, top, right, bottom in pixels, and the colour: two in one tile, one on every seam, one in a corner.
OBJECTS = [((4, 6, 12, 10), 0), ((20, 3, 28, 12), 1), ((30, 28, 40, 37), 2), ((60, 66, 70, 70), 0)]


def scene() -> npt.NDArray[np.uint8]:
    pixels = np.full((3, 70, 70), GREY, np.uint8)
    for (left, top, right, bottom), colour in OBJECTS:
        pixels[:, top:bottom, left:right] = COLOURS[colour][:, None, None]
        pixels[:, top, left] = GREY  # so that outline and box differ
    return pixels


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "r.tif", scene())


def boxes(margin: float = 1.0) -> gpd.GeoDataFrame:
    """A box around each object, a margin of pixels wider, in map coordinates."""
    rows = np.array([box for box, _ in OBJECTS], np.float64) + np.array([-1, -1, 1, 1]) * margin
    x, y = 500_000 + 2 * rows[:, [0, 2]], 5_400_000 - 2 * rows[:, [1, 3]]
    shapes = shapely.box(x[:, 0], y[:, 1], x[:, 1], y[:, 0])
    return gpd.GeoDataFrame({"class": ["a", "b", "c", "d"], "cut": 7}, geometry=shapes, crs=UTM)


def expected() -> list[float]:
    return [((r - left) * (b - top) - 1) * 4.0 for (left, top, r, b), _ in OBJECTS]


def test_each_box_becomes_the_outline_of_its_object(tmp_path: Path, raster: Path) -> None:
    out = tmp_path / "out.gpkg"
    model = Patches()
    summary = segment_boxes(raster, boxes().to_crs("EPSG:4326"), model, out)
    found = gpd.read_file(out, layer="out")
    assert found.crs.to_epsg() == 32632
    assert found["class"].tolist() == ["a", "b", "c", "d"]
    assert found["cut_label"].tolist() == [7] * 4
    assert found["cut"].tolist() == [False] * 4
    assert found["mask_score"].tolist() == [0.8] * 4
    assert found.area.tolist() == expected()
    assert found.within(boxes(margin=2).geometry).all()
    assert (summary.tiles, summary.skipped, summary.files) == (4, 0, (out,))


def test_a_chip_classifier_has_the_say_where_it_is_given(tmp_path: Path, raster: Path) -> None:
    out = tmp_path / "out.parquet"
    summary = segment_boxes(raster, boxes(), Patches(), out, ByPaint(SPEC, twin=True))
    found = read(out)
    assert found["class"].tolist() == ["red", "green", "blue", "red"]
    assert found["class_label"].tolist() == ["a", "b", "c", "d"]
    assert found["class_raw"].tolist() == ["red"] * 4
    assert summary.counts == {"red": 2, "green": 1, "blue": 1, "none": 0}


def test_boxes_without_an_object_or_off_the_raster_are_left_out(tmp_path: Path, raster: Path) -> None:
    frame = boxes()
    frame.loc[1, "geometry"] = shapely.box(500_090, 5_399_970, 500_100, 5_399_980)  # on grey
    frame.loc[2, "geometry"] = shapely.box(600_000, 5_399_970, 600_010, 5_399_980)
    summary = segment_boxes(raster, frame, Patches(), tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet")["class"].tolist() == ["a", "d"]
    assert summary.skipped == 2
    with pytest.raises(LabelError, match="No object was found in the 1 boxes"):
        segment_boxes(raster, frame[2:3], Patches(), tmp_path / "none.parquet")
    assert sorted(os.listdir(tmp_path)) == ["out.parquet", "r.tif"]


def test_a_box_longer_than_its_tile_is_told(tmp_path: Path) -> None:
    pixels = scene()
    pixels[:, 45:50, 5:65] = COLOURS[0][:, None, None]
    raster = write_raster(tmp_path / "r.tif", pixels)
    frame = boxes()
    frame.loc[0, "geometry"] = shapely.box(500_008, 5_399_898, 500_132, 5_399_912)
    summary = segment_boxes(raster, frame, Patches(), tmp_path / "out.parquet")
    found = read(tmp_path / "out.parquet")
    assert found["cut"].tolist() == [True, False, False, False]
    assert found.area[0] == 32 * 5 * 4
    assert summary.notes == ("1 boxes reach beyond their tile of 32 pixels, and so may their objects.",)


def test_a_source_that_was_handed_over_stays_open(tmp_path: Path, raster: Path) -> None:
    with RasterSource(raster) as source:
        for name in ("a.parquet", "b.parquet"):
            segment_boxes(source, boxes(), Patches(), tmp_path / name)
        np.testing.assert_array_equal(source.read(0, 0, 70, 70)[0], scene())


def test_refusals(tmp_path: Path, raster: Path) -> None:
    points = boxes()
    points.geometry = points.centroid
    with pytest.raises(LabelError, match="must be polygons"):
        segment_boxes(raster, points, Patches(), tmp_path / "out.gpkg")
    with pytest.raises(OutputError, match="must end in"):
        segment_boxes(raster, boxes(), Patches(), tmp_path / "out.shp")
    boxes().to_file(tmp_path / "b.gpkg")
    with pytest.raises(OutputError, match="destroy the input"):
        segment_boxes(raster, tmp_path / "b.gpkg", Patches(), tmp_path / "b.gpkg")

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        segment_boxes(raster, boxes(), Patches(), tmp_path / "out.gpkg", progress=fail)
    assert sorted(os.listdir(tmp_path)) == ["b.gpkg", "r.tif"]
