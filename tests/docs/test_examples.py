"""The examples of a page, run from its first block to its last as a reader would in one session."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely.geometry import box

from tests import tiny
from tests.tiling.rasters import noise, write_raster

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "large_rasters.md"
LEFT, TOP, GSD, SIDE = 412_000, 5_318_000, 0.3, 320


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def net(path: Path) -> None:
    """An ONNX file that looks at single pixels: the brightest band is the class."""
    node = onnx.helper.make_node
    info = onnx.helper.make_tensor_value_info
    shape = ["n", 3, 256, 256]
    weights = 20 * np.eye(3, dtype=np.float32)[..., None, None]
    graph = onnx.helper.make_graph(
        [node("Conv", ["images", "weights"], ["logits"]), node("Softmax", ["logits"], ["probabilities"], axis=1)],
        "colours",
        [info("images", onnx.TensorProto.FLOAT, shape)],
        [info("probabilities", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def session(
    tiny_model: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder with the files that the page names, and the variables after its last line of Python."""
    folder = tmp_path_factory.mktemp("session")
    (folder / "model").symlink_to(tiny_model)
    for row, name in enumerate(("north", "south")):
        place = from_origin(LEFT, TOP - row * SIDE * GSD, GSD, GSD)
        pixels = noise((3, SIDE, SIDE), seed=row)
        pixels[0] |= 128  # red is the brightest
        write_raster(folder / f"{name}.tif", pixels, crs="EPSG:32633", transform=place, photometric="rgb")
    districts = gpd.GeoSeries([box(LEFT, TOP - 100, LEFT + 50, TOP)], crs="EPSG:32633")
    districts.to_crs(4326).to_file(folder / "districts.gpkg")
    net(folder / "landcover.onnx")
    text = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    ours = text.replace('load_predictor("model")', f'load_predictor("model", weights={str(tiny_weights)!r})')
    assert ours != text
    names: dict[str, Any] = {"__name__": "example"}
    with inside(folder):
        exec(compile(ours, str(PAGE), "exec"), names)
    return folder, names


def test_every_result_is_there_and_nothing_else(session: tuple[Path, dict[str, Any]]) -> None:
    made = {path.name for path in session[0].iterdir() if not path.name.endswith(".aux.xml")}
    assert made == {
        "model", "north.tif", "south.tif", "districts.gpkg", "landcover.onnx",
        "tiles.gpkg", "classes.tif", "scores.tif", "array.gpkg", "dataset.gpkg",
        "landcover.gpkg", "landcover.tif", "torch.tif",
    }  # fmt: skip


def test_the_mosaic_is_mapped_where_the_districts_are(session: tuple[Path, dict[str, Any]]) -> None:
    folder, names = session
    with rasterio.open(folder / "classes.tif") as classes:
        assert classes.shape == (2 * SIDE, SIDE)
        ids = classes.read(1)
    columns = np.flatnonzero((ids != 255).any(axis=0))
    assert columns.max() < 50 / GSD + 1
    assert set(names["summary"].counts) == set(tiny.COUNTS)


def test_a_net_of_ones_own_makes_a_map(session: tuple[Path, dict[str, Any]]) -> None:
    with rasterio.open(session[0] / "landcover.tif") as raster, rasterio.open(session[0] / "north.tif") as image:
        assert (raster.read(1) == image.read().argmax(axis=0)).mean() > 0.98  # but for equally bright bands
    regions = gpd.read_file(session[0] / "landcover.gpkg", layer="landcover")
    assert set(regions["class"]) <= {"water", "wood"}


def test_boxes_come_out_as_the_page_says(session: tuple[Path, dict[str, Any]]) -> None:
    assert session[1]["kept"].tolist() == [0, 2]
    assert session[1]["stream"].live == 0


def test_the_source_is_read_at_the_resolution_asked_for(session: tuple[Path, dict[str, Any]]) -> None:
    assert session[1]["image"].shape == (3, 256, 256)
    assert session[1]["valid"][: SIDE // 2, : SIDE // 2].all()
    assert not session[1]["valid"][:, SIDE // 2 + 1 :].any()
