"""What the verbs for objects hold out, and where labels are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import shapely

from tests.data.objects.test_layer import CRS, NORTH_UP, layer, on_map, write_raster
from torchgeo_debias.cli.objects import held_out, outline
from torchgeo_debias.data.objects import objects_from_layer
from torchgeo_debias.errors import LabelError
from torchgeo_debias.inference.held_out import Split


@pytest.mark.parametrize(("step", "shared"), [(90, True), (200, False)])
def test_the_sentence_on_a_split_tells_of_shared_ground(tmp_path: Path, step: int, shared: bool) -> None:
    """Six rasters in a row, which overlap or not, with objects on the ground that each has alone."""
    paths = [write_raster(tmp_path / f"{i}.tif", NORTH_UP @ NORTH_UP.translation(step * i, 0)) for i in range(6)]
    shapes = [shapely.box(step * i + 30, y, step * i + 35, y + 5) for i in range(6) for y in (10, 30)]
    objects = objects_from_layer(paths, layer(shapes), "kind", oriented=False)
    train, test, facts = held_out(objects, 0.3, 0)
    numbers = [[int(one.name) for one in part.images] for part in (train, test)]
    touching = sum(any(abs(own - other) == 1 for other in numbers[0]) for own in numbers[1]) if shared else 0
    assert facts["shared_ground"] == touching
    assert (touching > 0) == shared
    split = Split(0.3, 0, "images", len(train), len(test), shared=facts["shared_ground"])
    told = f"; {touching} of those to test share ground with training images, so scores may be too high"
    assert split.sentence("images").endswith(told if shared else f"{len(train)} to train")
    assert split.to_json()["shared"] == touching


def test_an_area_wider_than_the_crs_of_the_rasters_is_cut_to_them(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{x}.tif", NORTH_UP @ NORTH_UP.translation(x, 0)) for x in (0, 2000)]
    gpd.GeoSeries([shapely.box(-180, -90, 180, 90)], crs=4326).to_file(tmp_path / "earth.gpkg")
    grounds = [on_map(shapely.box(x, 0, x + 100, 60)) for x in (0, 2000)]
    area: Any = outline(str(tmp_path / "earth.gpkg"), paths)
    assert area.is_valid
    assert all(area.contains(ground) for ground in grounds)
    assert area.area < 4 * sum(ground.area for ground in grounds)
    # Where it ends among the rasters, it ends there.
    half = gpd.GeoSeries([on_map(shapely.box(50, -1e6, 3000, 1e6))], crs=CRS).segmentize(1000).to_crs(4326)
    half.to_file(tmp_path / "half.gpkg")
    area = outline(str(tmp_path / "half.gpkg"), paths)
    assert area.intersection(grounds[0]).area == pytest.approx(grounds[0].area / 2, rel=1e-3)
    assert area.contains(grounds[1])
    gpd.GeoSeries([shapely.box(100, 10, 110, 20)], crs=4326).to_file(tmp_path / "away.gpkg")
    with pytest.raises(LabelError, match=r"away\.gpkg touches none of the rasters"):
        outline(str(tmp_path / "away.gpkg"), paths)
    assert outline(None, paths) is None
