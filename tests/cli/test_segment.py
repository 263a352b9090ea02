"""The verb ``segment``, with a SAM too small to see anything."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import pytest
import shapely

from tests.cli.verbs import Run, map_options
from tests.inference.masks.test_sam import checkpoint, model  # noqa: F401 - fixtures
from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.inference.masks import segment
from torchgeo_debias.inference.masks.segment import SegmentOptions


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "r.tif", noise((3, 70, 100)))


@pytest.fixture
def sam(checkpoint: Path) -> tuple[str, ...]:  # noqa: F811
    return "--sam-checkpoint", str(checkpoint), "--tile-size", "64"


def test_masks_are_searched_and_labelled(
    run: Run, tmp_path: Path, raster: Path, sam: tuple[str, ...], tiny_model: Path, tiny_weights: Path
) -> None:
    options = (*sam, *map_options(tiny_model, tiny_weights), "--points", "2", "--min-pixels", "1", "--json")
    facts = run("segment", raster, *options, "--out", tmp_path / "m.gpkg").json
    assert facts["tiles"] == 4
    found = gpd.read_file(tmp_path / "m.gpkg", layer="m")
    assert {"class", "class_id", "score", "group", "class_raw", "score_raw", "mask_score", "cut"} <= set(found.columns)
    assert len(found) == sum(facts["counts"].values())
    many = run("segment", raster, *options, "--out-dir", tmp_path / "out", "--format", "parquet").json
    assert many["files"] == [str(tmp_path / "out" / "r.parquet")]


@pytest.mark.parametrize(("verb", "place"), [("segment_raster", "--out"), ("segment_rasters", "--out-dir")])
def test_sizes_that_count_are_those_of_the_options(
    run: Run, tmp_path: Path, raster: Path, sam: tuple[str, ...], tiny_model: Path, tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch, verb: str, place: str,
) -> None:  # fmt: skip
    seen: list[SegmentOptions] = []

    def stop(*given: object, **_: object) -> None:
        seen.extend(value for value in given if isinstance(value, SegmentOptions))
        raise ConfigError("Enough.")

    monkeypatch.setattr(segment, verb, stop)
    options = (raster, *sam, *map_options(tiny_model, tiny_weights), place, tmp_path / "m.gpkg")
    assert run("segment", *options).sentence == "Enough."
    limits = ("--min-pixels", 7, "--max-pixels", 700, "--max-share", 0.25)
    assert run("segment", *options, *limits).sentence == "Enough."
    assert seen == [SegmentOptions(), SegmentOptions(min_pixels=7, max_pixels=700, max_share=0.25)]


def test_boxes_are_outlined(run: Run, tmp_path: Path, raster: Path, sam: tuple[str, ...]) -> None:
    places = [shapely.box(500_020, 5_399_900, 500_060, 5_399_960), shapely.box(500_100, 5_399_890, 500_160, 5_399_930)]
    boxes = gpd.GeoDataFrame({"class": ["a", "b"]}, geometry=places, crs=UTM)
    boxes.to_file(tmp_path / "boxes.gpkg")
    facts = run(
        "segment",
        raster,
        *sam,
        "--boxes",
        tmp_path / "boxes.gpkg",
        "--out",
        tmp_path / "m.parquet",
        "--json",
        "--quiet",
    ).json
    found = gpd.read_parquet(tmp_path / "m.parquet")
    assert len(found) + facts["skipped"] == 2
    assert set(found["class"]) <= {"a", "b"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--out", "{t}/a.gpkg", "--sam-checkpoint", "{t}/none.pth", "--boxes", "{r}"],
            "There is no SAM checkpoint at",
        ),
        (["--out", "{t}/a.gpkg"], "give --model to label them"),
        (["--boxes", "{r}"], "Give --out for one layer"),
        (["--boxes", "{r}", "--out", "{t}/a.gpkg", "--area", "0,0,1,1"], "--area has no meaning with --boxes"),
        (["--boxes", "{r}", "--out", "{t}/a.gpkg", "--min-score", "0.5"], "--min-score has no meaning with --boxes"),
        (["--out", "{t}/a.gpkg", "--out-dir", "{t}/b", "--boxes", "{r}"], "Give --out for one layer"),
        (["--out-dir", "{t}/b", "--boxes", "{r}"], "--boxes gives one layer"),
        (["--boxes", "{r}", "--out", "{t}/a.gpkg", "--max-share", "0.5"], "--max-share has no meaning with --boxes"),
        (["--boxes", "{r}", "--out", "{t}/a.gpkg", "--max-pixels", "99"], "--max-pixels has no meaning with --boxes"),
        (["--model", "{t}", "--out", "{t}/a.gpkg", "--max-pixels", "15"], "16 to 15 pixels"),
        (["--model", "{t}", "--out", "{t}/a.gpkg", "--max-share", "1.5"], "must lie above 0 and up to 1"),
        (["--out", "{t}/a.xyz", "--boxes", "{r}"], "the name must end in"),
        (["--out", "{t}/a.gpkg", "--boxes", "{r}", "--stretch", "dark"], "--stretch takes two numbers"),
        (["--out", "{t}/a.gpkg", "--boxes", "{r}", "--stretch", "1,2,3"], "--stretch takes two numbers"),
        (["--out-dir", "{t}/b", "--model", "{t}", "--format", "shp"], "--format takes"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run,
    tmp_path: Path,
    raster: Path,
    checkpoint: Path,  # noqa: F811
    options: list[str],
    sentence: str,
) -> None:
    filled = [option.format(t=tmp_path, r=raster) for option in options]
    sam = () if "--sam-checkpoint" in options else ("--sam-checkpoint", checkpoint)
    assert sentence in run("segment", raster, *sam, *filled, "--quiet").sentence
    assert [path.name for path in tmp_path.iterdir()] == ["r.tif"]
