"""The pictures of the documentation: their size, and the script that makes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from shapely.geometry import box

from torchgeo_debias.classes import ClassTable

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder as the demo leaves it: one common object in the upper left, a rare one in the lower right."""
    (tmp_path / "scene").mkdir()
    profile = {"driver": "GTiff", "width": 1000, "height": 1200, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    transform = from_origin(412_000, 5_318_000, 0.5, 0.5)
    with rasterio.open(tmp_path / "scene" / "east.tif", "w", transform=transform, **profile) as raster:
        raster.write(np.full((3, 1200, 1000), 90, dtype=np.uint8))
    squares = [box(412_010, 5_317_980, 412_020, 5_317_990), box(412_480, 5_317_410, 412_490, 5_317_420)]
    truth = gpd.GeoDataFrame({"class": ["house", "helipad"]}, geometry=squares, crs="EPSG:32633")
    truth.to_file(tmp_path / "scene" / "truth.gpkg", layer="truth")
    truth.assign(class_raw="house").to_file(tmp_path / "objects.gpkg", layer="objects")
    return tmp_path


def test_pictures_of_the_documentation_are_light() -> None:
    files = list((DOCS / "images").iterdir())
    assert files
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_crop_holds_the_rare_object(pictures: ModuleType, demo: Path) -> None:
    objects = pictures.read_objects(demo)
    with rasterio.open(demo / "scene" / "east.tif") as raster:
        window = pictures.choose_crop(raster, objects, ["helipad"])
    assert window.col_off <= 960
    assert window.col_off + window.width >= 980
    assert window.row_off + window.height >= 1180


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.width > 2 * image.height
        assert np.asarray(image.convert("RGB")).std() > 10


def test_script_writes_wide_pictures(pictures: ModuleType, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ClassTable(("house", "helipad"), (90, 3), ("head", "tail"))
    monkeypatch.setattr(pictures.ModelPackage, "load", lambda path: SimpleNamespace(table=table))
    pictures.main(demo, demo / "images")
    written = sorted((demo / "images").iterdir())
    assert [path.name for path in written] == ["large_rasters.webp", "lora_and_deblora.webp"]
    for path in written:
        check_picture(path)


def test_the_engine_is_drawn_without_a_demo(pictures: ModuleType, tmp_path: Path) -> None:
    pictures.main(folder=tmp_path)
    (written,) = tmp_path.iterdir()
    check_picture(written)
