from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod
from rasterio.transform import Affine, from_origin

from tests.inference.fake_detector import TABLE, ByPatch, Scene, random_scene, write_scene
from tests.inference.fakes import ByColour
from tests.tiling.rasters import UTM, noise, write_raster
from torchgeo_debias.boxes.suppress import suppress
from torchgeo_debias.errors import Cancelled, ConfigError, LabelError, OutputError, RasterError
from torchgeo_debias.inference.box_rows import BOX_FIELDS, BoxFeatures, box_columns
from torchgeo_debias.inference.detections import DetectOptions, detect_raster, detect_rasters
from torchgeo_debias.inference.mapping import OutputFormats, Outputs, Resources
from torchgeo_debias.inference.masks.segment import SegmentOptions
from torchgeo_debias.inference.predictor import Found
from torchgeo_debias.inference.rasters import classify_raster
from torchgeo_debias.progress import Progress
from torchgeo_debias.tiling.area import Area
from torchgeo_debias.tiling.grid import Grid
from torchgeo_debias.tiling.parts import Part, pack

ONE = Resources(batch_size=3, workers=1, threads=1)
WEAK: dict[str, Any] = {"min_score": 0.0}
"""The model of these tests is hardly ever sure."""


def detect(path: Any, model: Any, out: Path, *, means: Resources = ONE, **options: Any) -> gpd.GeoDataFrame:
    """The features of ``detect_raster``, in an order of their own."""
    detect_raster(path, model, Outputs(out), DetectOptions(**(WEAK | options)), resources=means)
    return read(out)


def read(path: Path) -> gpd.GeoDataFrame:
    found = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path, layer=path.stem)
    middle = shapely.get_coordinates(shapely.centroid(found.geometry.to_numpy())).round(4)
    order = np.lexsort([middle[:, 0], middle[:, 1], found["score"], found["class_id"]])
    return found.iloc[order].reset_index(drop=True)


def same(one: gpd.GeoDataFrame, two: gpd.GeoDataFrame, *, cut: bool = True) -> None:
    assert len(one) == len(two)
    drop = ["geometry"] if cut else ["geometry", "cut"]
    pd.testing.assert_frame_equal(
        pd.DataFrame(one.drop(columns=drop)), pd.DataFrame(two.drop(columns=drop)), atol=2e-3, rtol=0
    )
    if len(one):
        assert shapely.hausdorff_distance(one.geometry.to_numpy(), two.geometry.to_numpy()).max() < 1e-6


def in_metres(box: tuple[float, float, float, float]) -> shapely.Polygon:
    """A box in pixels (x0, y0, x1, y1) of the test rasters on the map."""
    x0, y0, x1, y1 = box
    return shapely.box(500_000 + 2 * x0, 5_400_000 - 2 * y1, 500_000 + 2 * x1, 5_400_000 - 2 * y0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    size=st.sampled_from([33, 48, 64]),
    overlap=st.sampled_from([0.25, 0.5, 0.7]),
    oriented=st.booleans(),
    agnostic=st.booleans(),
    steps=st.sampled_from([0, 4]),
    batch=st.integers(1, 9),
)
def test_objects_smaller_than_the_overlap_do_not_depend_on_the_tiles(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    width: int,
    height: int,
    size: int,
    overlap: float,
    oriented: bool,
    agnostic: bool,
    steps: int,
    batch: int,
) -> None:
    folder = tmp_path_factory.mktemp("same")
    longest = size - round(size * (1 - overlap)) - 2.0
    if oriented:
        longest /= 1.6  # what the smallest rectangle around an object, turned, reaches beyond it at most
    path = write_scene(folder / "m.tif", random_scene(seed, width, height, 30, longest), width, height)
    rule: dict[str, Any] = {"agnostic": agnostic, "suppression": 0.3}
    tiles = detect(
        path,
        ByPatch(size, oriented, steps=steps),
        folder / "tiles.parquet",
        means=Resources(batch, 2, 1),
        overlap=overlap,
        **rule,
    )
    whole = detect(path, ByPatch(200, oriented, steps=steps), folder / "whole.parquet", **rule)
    same(tiles, whole)
    assert not tiles["cut"].any()


@dataclass
class Wavering(ByPatch):
    """Moves each box away from the middle of the tile, into the core of the next one."""

    def _find(self, image: npt.NDArray[Any]) -> Found:
        boxes, scores, classes = super()._find(image)
        away = np.sign((boxes[:, :2] + boxes[:, 2:]) / 2 - self.size / 2)
        return Found(boxes + np.tile(away, 2), scores, classes)


def test_objects_between_two_tiles_are_not_left_by_one_to_the_other(tmp_path: Path) -> None:
    pixels = np.zeros((1, 130, 130), np.uint8)
    middles = [20, 40, 56, 72, 88, 110]  # tiles of 64 pixels with an overlap of 16: cores end at 56 and 104
    for number, (x, y) in enumerate((x, y) for x in middles for y in middles):
        pixels[0, y - 6 : y + 6, x - 6 : x + 6] = number + 1
    path = write_raster(tmp_path / "m.tif", pixels)
    found = detect(path, Wavering(twice=False), tmp_path / "a.parquet")
    expected = [in_metres((x - 6, y - 6, x + 6, y + 6)) for x in middles for y in middles]
    tree = shapely.STRtree(found.geometry.to_numpy())
    nearest = tree.query_nearest(shapely.centroid(expected), all_matches=False)[1]
    assert len(found) == len(set(nearest.tolist())) == len(expected)
    assert shapely.hausdorff_distance(expected, found.geometry.to_numpy()[nearest]).max() <= np.hypot(2, 2)


def test_boxes_are_those_of_the_objects(tmp_path: Path) -> None:
    """Against the rectangles that were painted."""
    places = np.array([[10, 20, 30, 26], [100, 5, 104, 25], [62, 60, 72, 70], [118, 118, 128, 128]])
    boxes = np.column_stack([(places[:, :2] + places[:, 2:]) / 2, places[:, 2:] - places[:, :2], np.zeros(4)])
    pixels = np.zeros((1, 128, 128), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(places):
        pixels[0, y0:y1, x0:x1] = number + 1
    path = write_raster(tmp_path / "m.tif", pixels)
    for oriented in (False, True):
        out = tmp_path / f"{oriented}.gpkg"
        options = DetectOptions(**WEAK, overlap=0.5)
        summary = detect_raster(path, ByPatch(oriented=oriented), Outputs(out), options, resources=ONE)
        found = gpd.read_file(out, layer=out.stem)
        assert found.crs == UTM
        assert summary.counts == {"ship": 1, "plane": 2, "pad": 1}
        assert summary.files == (out,)
        assert summary.notes == ()
        assert (summary.tiles, summary.skipped) == (9, 0)
        for number, box in enumerate(places.tolist()):
            (one,) = [row for row in found.itertuples() if row.geometry.equals_exact(in_metres(box), 1e-6) or
                      row.geometry.normalize().equals_exact(in_metres(box).normalize(), 1e-6)]  # fmt: skip
            assert one.class_id == (number + 1) % 3
            assert (getattr(one, "class_", None) or found.loc[one.Index, "class"]) == TABLE.names[one.class_id]
            assert one.group == TABLE.groups[one.class_id]
            assert [one.width, one.length] == pytest.approx(sorted(boxes[number, 2:4] * 2))
            assert one.angle == (90 if number == 1 else 0)
            assert one.score == pytest.approx(1 / (1.1 + np.log10(boxes[number, 2] * boxes[number, 3])), abs=1e-6)


def test_angles_are_counter_clockwise_from_east(tmp_path: Path) -> None:
    """A bar that rises to the right on the screen, and its mirror image in a raster whose rows point north."""
    bar = Scene(np.array([[50.0, 50.0, 60.0, 6.0, 150.0]]), np.array([1]))  # degrees clockwise on the screen
    north_up = write_scene(tmp_path / "n.tif", bar, 100, 100)
    south_up = write_scene(tmp_path / "s.tif", bar, 100, 100, transform=from_origin(500_000, 5_400_000, 2, -2))
    for path, angle in ((north_up, 30), (south_up, 150)):
        found = detect(path, ByPatch(128, oriented=True), tmp_path / "a.parquet")
        assert found["angle"].tolist() == pytest.approx([angle], abs=1.5)
        assert found["length"].tolist() == pytest.approx([120], abs=6)
        assert found["width"].tolist() == pytest.approx([12], abs=6)
        (start, end, *_) = sorted(
            zip(*[iter(shapely.get_coordinates(found.geometry[0]))] * 2, strict=False),
            key=lambda side: -np.hypot(*(side[1] - side[0])),
        )[0]
        assert np.degrees(np.arctan2(*(end - start)[::-1])) % 180 == pytest.approx(found["angle"][0], abs=0.01)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    width=st.integers(60, 260),
    height=st.integers(60, 260),
    overlap=st.sampled_from([0.1, 0.25, 0.5]),
)
def test_the_overlap_that_the_note_asks_for_holds_the_objects(
    tmp_path_factory: pytest.TempPathFactory, seed: int, width: int, height: int, overlap: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    rng = np.random.default_rng(seed)
    sides = rng.uniform(8, 48, 2)
    scene = Scene(np.array([[*rng.uniform(30, [width - 29, height - 29]), *sides, 0]]), np.array([7]))
    path = write_scene(folder / "m.tif", scene, width, height)
    whole = detect(path, ByPatch(400, twice=False), folder / "whole.parquet")
    options, model = DetectOptions(**WEAK, overlap=overlap), ByPatch(twice=False)
    summary = detect_raster(path, model, Outputs(folder / "a.parquet"), options, resources=ONE)
    found = read(folder / "a.parquet")
    if not found["cut"].any():
        same(found, whole)
        assert summary.notes == ()
        return
    assert found.within(whole.geometry[0]).all()
    (note,) = summary.notes
    assert note.startswith(f"{found['cut'].sum()} objects reach the rim of their tile and may be cut: ")
    if "may be longer than a tile (64 pixels)" in note:
        assert max(sides) > 0.45 * 64
        return
    share = float(note.split("at least ")[1].split(" ")[0])
    again = detect(path, model, folder / "b.parquet", overlap=share)
    same(again, whole)


def test_what_is_cut_says_so_over_many_rasters_too(tmp_path: Path) -> None:
    scene = Scene(np.array([[64.0, 20, 80, 10, 0], [20, 100, 8, 8, 0]]), np.array([1, 2]))
    paths = [write_scene(tmp_path / f"{name}.tif", scene, 128, 128) for name in "ab"]
    out = tmp_path / "out"
    first: list[Progress] = []

    def stop(progress: Progress) -> None:
        first.append(progress)
        if (out / "a.gpkg").exists():
            raise Cancelled("stopped")

    options = DetectOptions(**WEAK, overlap=0.1)
    with pytest.raises(Cancelled):
        detect_rasters(paths, ByPatch(), out, options=options, resources=ONE, progress=stop)
    assert sorted(os.listdir(out)) == ["a.gpkg", "detect.partial"]
    assert {step.stage for step in first} == {"detect", "write"}
    summary = detect_rasters(paths, ByPatch(), out, options=options, resources=ONE)
    fresh = detect_rasters(paths, ByPatch(), tmp_path / "fresh", options=options, resources=ONE)
    assert (summary.counts, summary.tiles, summary.skipped) == (fresh.counts, fresh.tiles, fresh.skipped)
    assert summary.counts == {"ship": 0, "plane": 4, "pad": 2}
    assert [note for note in summary.notes if "rim" in note] == list(fresh.notes)
    assert fresh.notes[0].startswith("4 objects reach the rim")
    same(read(out / "a.gpkg"), read(tmp_path / "fresh" / "b.gpkg"))


@pytest.mark.parametrize("gsd", [0.7, 1.3, 3.0, 5.0])
def test_the_note_counts_in_pixels_of_the_model_whatever_those_of_the_rasters(tmp_path: Path, gsd: float) -> None:
    """The same ground in two resolutions."""
    fine = np.zeros((1, 380, 200), np.uint8)
    fine[0, 140:240, 100:140] = 1
    coarse = fine[:, ::2, ::2]
    place = {"transform": from_origin(500_000, 5_400_000, 4, 4)}
    paths = [write_raster(tmp_path / "fine.tif", fine), write_raster(tmp_path / "coarse.tif", coarse, **place)]
    model = ByPatch(round(400 / gsd), gsd=gsd, twice=False)  # tiles of 400 m, an object of 200 on the rim
    few = DetectOptions(**WEAK, overlap=0.1)
    for rasters in (paths, paths[::-1]):
        out = tmp_path / rasters[0].stem
        notes = detect_rasters(rasters, model, out, options=few, resources=ONE).notes
        (note,) = [note for note in notes if "rim" in note]
        assert f" of {model.size} pixels)" in note
        share = float(note.split("at least ")[1].split(" ")[0])
        assert 200 / 400 < share < 200 / 400 + (16 + 6 * gsd) / 400
        enough = DetectOptions(**WEAK, overlap=share)
        again = detect_rasters(rasters, model, tmp_path / "again", options=enough, resources=ONE)
        assert not any("rim" in note for note in again.notes)
        assert sum(again.counts.values()) == 2


@dataclass
class BySeed(ByPatch):
    """Boxes far larger than their tile, around each pixel above 0; the value is the score."""

    reach: float = 0.0

    def _find(self, image: npt.NDArray[Any]) -> Found:
        rows, columns = np.nonzero(image)
        middle = np.column_stack([columns, rows]) + 0.5
        scores = (image[rows, columns] / 256).astype(np.float32)
        # Tall, wide, small, by value.
        half = np.array([[2, self.reach], [self.reach, 2], [1, 1]])[image[rows, columns] % 3]
        angle = image[rows, columns] % 7 * 11.0
        boxes = (
            np.column_stack([middle, 2 * half, angle])
            if self.oriented
            else np.concatenate([middle - half, middle + half], axis=1)
        )
        return Found(boxes, scores, np.zeros(len(boxes), np.int64))


@pytest.mark.parametrize("oriented", [False, True])
@pytest.mark.parametrize("reach", [12.0, 40.0, 1200.0])
def test_boxes_that_stick_far_out_of_their_tiles_are_suppressed_across_all_bands(
    tmp_path: Path, oriented: bool, reach: float
) -> None:
    rng = np.random.default_rng(1)
    pixels = np.zeros((1, 2100, 40), np.uint8)
    places = np.sort(rng.permutation(2100 * 40)[:250])
    values = rng.permutation(250) + 1
    # Only at the foot of the raster are there tall boxes, so that what sticks out most comes last.
    pixels.reshape(-1)[places] = values[np.argsort(values % 3 == 0, kind="stable")]
    path = write_raster(tmp_path / "m.tif", pixels)
    model = BySeed(16, oriented, reach=reach)
    found = detect(path, model, tmp_path / "a.parquet", overlap=0.0, suppression=0.1)
    everything = model._find(pixels[0])
    kept = suppress(everything.boxes, everything.scores, threshold=0.1)
    assert 10 < len(kept) < 250
    assert sorted(found["score"]) == pytest.approx(sorted(everything.scores[kept].astype(float)), abs=1e-6)


@dataclass
class Undecided(ByPatch):
    """Finds a square around each pixel above 0, all with one score."""

    def _find(self, image: npt.NDArray[Any]) -> Found:
        middle = np.argwhere(image)[:, ::-1] + 0.5
        boxes = np.concatenate([middle - 5, middle + 5], axis=1)
        return Found(boxes, np.full(len(boxes), 0.9, np.float32), np.zeros(len(boxes), np.int64))


def test_of_equal_scores_the_same_one_wins_whatever_the_tiles(tmp_path: Path) -> None:
    pixels = (np.random.default_rng(0).random((1, 128, 128)) < 0.02).astype(np.uint8)
    path = write_raster(tmp_path / "m.tif", pixels)
    whole = detect(path, Undecided(128), tmp_path / "a.parquet", suppression=0.3)
    assert 30 < len(whole) < pixels.sum() - 30
    assert set(whole["score"]) == {0.9}
    for size in (24, 40, 64):
        same(detect(path, Undecided(size), tmp_path / "b.parquet", suppression=0.3, overlap=0.5), whole)


def test_classes_are_suppressed_on_their_own_unless_told(tmp_path: Path) -> None:
    pixels = np.zeros((1, 40, 40), np.uint8)
    pixels[0, 10:20, 10:20] = 1
    pixels[0, 10:20, 12:20] = 2  # of another class, over most of the first
    pixels[0, 10:12, 10:20] = 1
    path = write_raster(tmp_path / "m.tif", pixels)
    apart = detect(path, ByPatch(), tmp_path / "a.parquet", suppression=0.3)
    assert apart["class"].tolist() == ["plane", "pad"]
    together = detect(path, ByPatch(), tmp_path / "b.parquet", suppression=0.3, agnostic=True)
    same(together, apart[:1])


def test_weak_objects_and_the_background_are_left_out(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "m.tif", random_scene(3, 150, 150, 30, 14), 150, 150)
    every = detect(path, ByPatch(), tmp_path / "a.parquet")
    strong = detect(path, ByPatch(), tmp_path / "b.parquet", min_score=0.4)
    same(strong, every[every["score"] >= 0.4].reset_index(drop=True))
    assert 0 < len(strong) < len(every)
    background = ByPatch(table=type(TABLE).from_counts({"ship": 900, "plane": 40, "pad": 2}, background="plane"))
    assert set(detect(path, background, tmp_path / "c.parquet")["class"]) == {"ship", "pad"}
    assert set(detect(path, background, tmp_path / "d.parquet", keep_background=True)["class"]) == set(TABLE.names)


@pytest.mark.parametrize("oriented", [False, True])
def test_an_area_gives_the_objects_whose_centre_lies_in_it(tmp_path: Path, oriented: bool) -> None:
    path = write_scene(tmp_path / "m.tif", random_scene(5, 300, 260, 90, 14), 300, 260)
    every = detect(path, ByPatch(oriented=oriented), tmp_path / "a.parquet")
    area = gpd.GeoDataFrame(
        geometry=[shapely.Point(500_300, 5_399_700).buffer(170), shapely.Point(500_100, 5_399_900).buffer(30)], crs=UTM
    )
    inside = every.geometry.centroid.within(area.union_all())
    assert 5 < inside.sum() < len(every) - 5
    some = detect(path, ByPatch(oriented=oriented), tmp_path / "b.parquet", area=area)
    same(some, every[inside].reset_index(drop=True))
    with pytest.raises(LabelError, match="does not meet"):
        detect(path, ByPatch(), tmp_path / "c.parquet", area=(0, 0, 1, 1))


def test_objects_whose_centre_has_no_data_are_left_out(tmp_path: Path) -> None:
    pixels = np.full((1, 100, 100), 250, np.uint8)
    pixels[0, 10:90, 10:90] = 0
    pixels[0, 30:40, 30:40] = 7
    path = write_raster(tmp_path / "m.tif", pixels, nodata=0)  # the frame's centre lies in its hole
    summary = detect_raster(path, ByPatch(128), Outputs(tmp_path / "a.parquet"), DetectOptions(**WEAK), resources=ONE)
    assert read(tmp_path / "a.parquet").geometry[0].equals(in_metres((30, 30, 40, 40)))
    assert sum(summary.counts.values()) == 1


def test_points_are_the_centres_of_the_boxes(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "m.tif", random_scene(4, 150, 150, 30, 14), 150, 150)
    boxes = detect(path, ByPatch(oriented=True), tmp_path / "a.parquet")
    detect_raster(
        path, ByPatch(oriented=True), Outputs(tmp_path / "p.gpkg", shape="points"), DetectOptions(**WEAK), resources=ONE
    )
    points = read(tmp_path / "p.gpkg")
    assert set(points.geom_type) == {"Point"}
    assert shapely.distance(shapely.centroid(boxes.geometry.to_numpy()), points.geometry.to_numpy()).max() < 1e-6
    assert points["angle"].tolist() == pytest.approx(boxes["angle"].tolist())


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".fgb", ".geojson"])
def test_nothing_found_is_a_layer_without_features(tmp_path: Path, ending: str) -> None:
    path = write_raster(tmp_path / "m.tif", np.zeros((1, 80, 80), np.uint8))
    out = tmp_path / f"a{ending}"
    summary = detect_raster(path, ByPatch(), Outputs(out), DetectOptions(**WEAK), resources=ONE)
    assert summary.counts == dict.fromkeys(TABLE.names, 0)
    found = gpd.read_parquet(out) if ending == ".parquet" else gpd.read_file(out)
    assert len(found) == 0
    if ending != ".geojson":  # which knows no fields without features
        assert set(found.columns) == {*BOX_FIELDS, "geometry"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1)])
def test_narrow_rasters(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = write_raster(tmp_path / "m.tif", np.full((1, *shape), 4, np.uint8))
    (height, width) = shape
    found = detect(path, ByPatch(100, oriented=True), tmp_path / "a.parquet")
    assert found.geometry[0].normalize().equals_exact(in_metres((0, 0, width, height)).normalize(), 1e-6)
    assert (found["length"][0], found["width"][0]) == (2 * max(shape), 2)
    assert found["angle"][0] == (90 if height > 1 else 0)


def test_a_model_of_another_resolution_reads_the_raster_at_its_own(tmp_path: Path) -> None:
    pixels = np.zeros((1, 200, 240), np.uint8)
    pixels[0, 40:80, 100:180] = 1
    pixels[0, 120:160, 8:48] = 2
    path = write_raster(tmp_path / "m.tif", pixels)
    model = ByPatch(gsd=8.0)
    summary = detect_raster(path, model, Outputs(tmp_path / "a.parquet"), DetectOptions(**WEAK), resources=ONE)
    assert summary.tiles == 1
    assert summary.notes == (
        "The raster has pixels of 2 m and the model was made for 8 m: tiles of 256 pixels are resampled to 64.",
    )
    found = read(tmp_path / "a.parquet")
    assert [shape.bounds for shape in found.geometry] == [
        in_metres((100, 40, 180, 80)).bounds,
        in_metres((8, 120, 48, 160)).bounds,
    ]
    assert found["length"].tolist() == [160, 80]
    alike = detect_raster(
        path, ByPatch(gsd=2.05), Outputs(tmp_path / "b.parquet"), DetectOptions(**WEAK), resources=ONE
    )
    assert not any("resampled" in note for note in alike.notes)
    many = detect_rasters(
        [path], model, tmp_path / "out", OutputFormats(".parquet"), DetectOptions(**WEAK), resources=ONE
    )
    assert many.notes == summary.notes
    same(read(tmp_path / "out" / "m.parquet"), found)


def test_one_raster_that_does_not_fit_the_model_does_not_stop_the_others(tmp_path: Path) -> None:
    pixels = np.ones((1, 120, 120), np.uint8)
    near = write_raster(tmp_path / "near.tif", pixels)
    coarse = write_raster(tmp_path / "coarse.tif", pixels, transform=from_origin(500_000, 5_400_000, 900, 900))
    # At the pole a degree east has next to no length.
    pole = write_raster(tmp_path / "pole.tif", pixels, crs="EPSG:4326", transform=from_origin(0, 90, 1e-4, 1e-4))
    with pytest.raises(RasterError, match=r"2 of 3 rasters .*coarse\.tif does not fit .*pole\.tif does not fit"):
        detect_rasters(
            [near, coarse, pole], ByPatch(gsd=4.0), tmp_path / "out", options=DetectOptions(**WEAK), resources=ONE
        )
    assert "near.gpkg" in os.listdir(tmp_path / "out")


@pytest.mark.parametrize("oriented", [False, True])
def test_a_rotated_raster_gives_its_objects_where_they_are(tmp_path: Path, oriented: bool) -> None:
    turned = from_origin(500_000, 5_400_000, 2, 2) * Affine.rotation(30)
    pixels = np.zeros((1, 120, 120), np.uint8)
    pixels[0, 20:60, 30:40] = 1
    path = write_raster(tmp_path / "m.tif", pixels, transform=turned)
    found = detect(path, ByPatch(256, oriented, twice=False), tmp_path / "a.parquet")
    corners = shapely.Polygon([turned * corner for corner in ((30, 20), (40, 20), (40, 60), (30, 60))])
    (shape,) = found.geometry
    assert shapely.hausdorff_distance(shape, corners if oriented else shapely.envelope(corners)) < 4  # two pixels
    if oriented:
        assert found["length"][0] == pytest.approx(80, abs=5)
        assert found["angle"][0] == pytest.approx(60, abs=3)


def test_room_is_planned_for_the_boxes_that_a_model_tells_of_before_suppression() -> None:
    grid = Grid(10, 10, None, None)
    for min_score, boxes in ((0.5, 11), (0.3, 50), (0.2, 128), (0.1, 614), (0.05, 4001), (0.0, 4001)):  # of a tile
        rule = {"overlap": 1, "scale": 1.0, "threshold": 0.5, "agnostic": False, "points": False}
        features = BoxFeatures(TABLE, grid, Area(), min_score=min_score, **rule)  # type: ignore[arg-type]
        part: Part = {"boxes": np.random.default_rng(0).random((boxes, 5)), "scores": np.zeros(boxes, np.float32)}
        part |= {"classes": np.zeros(boxes, np.int64), "cut": np.zeros(boxes, np.float32)}
        size = len(pack(part)) - len(pack({name: array[:0] for name, array in part.items()}))
        assert 0.9 * size < features.bytes_a_tile < 8 * size


def test_the_command_line_has_the_defaults_of_the_library() -> None:
    from torchgeo_debias.cli import detection

    given = inspect.signature(detection.detect).parameters
    for name in ("overlap", "min_score", "suppression", "agnostic"):
        assert given[name].default == getattr(DetectOptions(), name)
    given = inspect.signature(detection.segment).parameters
    for name in ("overlap", "min_score", "min_pixels"):
        assert given[name].default == getattr(SegmentOptions(), name)


def test_where_no_resolution_is_known_the_raster_is_scaled_as_the_training_images_were(tmp_path: Path) -> None:
    pixels = np.zeros((1, 200, 240), np.uint8)
    pixels[0, 40:80, 100:180] = 1
    path = write_raster(tmp_path / "m.tif", pixels)
    summary = detect_raster(
        path, ByPatch(scale=0.25), Outputs(tmp_path / "a.parquet"), DetectOptions(**WEAK), resources=ONE
    )
    assert summary.notes == (
        "The raster has pixels of 2 m and the model scaled its training images by 0.25: tiles of 256 pixels are "
        "resampled to 64.",
    )
    assert [shape.bounds for shape in read(tmp_path / "a.parquet").geometry] == [in_metres((100, 40, 180, 80)).bounds]
    plain = detect_raster(path, ByPatch(), Outputs(tmp_path / "b.parquet"), DetectOptions(**WEAK), resources=ONE)
    assert not any("resampled" in note for note in plain.notes)
    with pytest.raises(RasterError, match=r"m\.tif does not fit the model\. .* 20 times as large"):
        detect(path, ByPatch(gsd=0.1), tmp_path / "c.parquet")


@pytest.mark.parametrize("gsd", [None, 0.5])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_lengths_are_metres_on_the_ground(tmp_path: Path, crs: str, gsd: float | None) -> None:
    """At 60 degrees north a degree east, and a unit of Web Mercator, are half as long as at the equator."""
    place = shapely.Point(25, 60)
    side = 1e-5 if crs == "EPSG:4326" else 1.0
    left, top = gpd.GeoSeries([place], crs="EPSG:4326").to_crs(crs).get_coordinates().to_numpy()[0]
    pixels = np.zeros((1, 120, 120), np.uint8)
    pixels[0, 20:60, 30:40] = 1
    path = write_raster(tmp_path / "m.tif", pixels, crs=crs, transform=from_origin(left, top, side, side))
    found = detect(path, ByPatch(400, gsd=gsd, oriented=True), tmp_path / "a.parquet")
    corners = shapely.Point(left + 30 * side, top - 20 * side), shapely.Point(left + 40 * side, top - 60 * side)
    (west, north), (east, south) = gpd.GeoSeries(corners, crs=crs).to_crs("EPSG:4326").get_coordinates().to_numpy()
    middle = (north + south) / 2
    _, _, (across, down) = Geod(ellps="WGS84").inv([west, west], [middle, north], [east, west], [middle, south])
    rounding = 1e-3 if gsd is None else 1.5 * gsd
    assert found["length"][0] == pytest.approx(max(across, down), abs=rounding)
    assert found["width"][0] == pytest.approx(min(across, down), abs=rounding)
    assert found["angle"][0] == pytest.approx(90)
    assert found.geometry[0].bounds == pytest.approx(
        (left + 30 * side, top - 60 * side, left + 40 * side, top - 20 * side), abs=rounding * 2e-5 if side < 1 else 2
    )


@settings(max_examples=60, deadline=None)
@given(w=st.floats(1, 50), h=st.floats(1, 50), angle=st.floats(0, 179), x=st.floats(0, 100), y=st.floats(0, 100))
def test_angle_length_and_width_are_those_of_the_shape(w: float, h: float, angle: float, x: float, y: float) -> None:
    """Of the two lengths on the ground the longer one leads, and the angle goes with it."""
    import rasterio.crs

    grid = Grid(100, 100, rasterio.crs.CRS.from_epsg(32632), from_origin(500_000, 5_400_000, 2, 3))
    columns = box_columns(np.array([[x, y, w, h, angle]]), grid).iloc[0]
    turn = np.radians(angle)
    sides = np.array([[w * np.cos(turn), w * np.sin(turn)], [-h * np.sin(turn), h * np.cos(turn)]]) * [2, -3]
    lengths = np.hypot(*sides.T)
    assert sorted(lengths) == pytest.approx([columns["width"], columns["length"]], abs=1e-3)
    if abs(lengths[0] - lengths[1]) > 0.01:
        expected = np.degrees(np.arctan2(*sides[lengths.argmax()][::-1])) % 180
        assert abs((columns["angle"] - expected + 90) % 180 - 90) < 1e-3
    assert 0 <= columns["angle"] < 180


def test_several_rasters_are_one_mosaic_in_two_systems(tmp_path: Path) -> None:
    scene = random_scene(6, 200, 120, 40, 14)
    pixels = scene.paint(200, 120)
    whole = write_raster(tmp_path / "whole.tif", pixels)
    left = write_raster(tmp_path / "left.tif", pixels[:, :, :90])
    there = {"transform": from_origin(500_180, 5_400_000, 2, 2)}
    right = write_raster(tmp_path / "right.tif", pixels[:, :, 90:], **there)
    one = detect(whole, ByPatch(oriented=True), tmp_path / "one.parquet")
    same(detect([left, right], ByPatch(oriented=True), tmp_path / "two.parquet"), one)
    # ETRS89 and WGS 84 differ by less than a metre, so by no pixel.
    other = write_raster(tmp_path / "other.tif", pixels[:, :, 90:], crs="EPSG:25832", **there)
    mixed = detect([left, other], ByPatch(oriented=True), tmp_path / "mixed.parquet")
    assert mixed.crs == UTM
    same(mixed, one)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", noise((1, 16, 16)))
    two = write_raster(tmp_path / "two.tif", noise((2, 16, 16)))
    nowhere = write_raster(tmp_path / "nowhere.tif", noise((1, 16, 16)), crs=None)
    empty = write_raster(tmp_path / "empty.tif", np.zeros((1, 99, 99), np.uint8), nodata=0)
    folder = tmp_path / "out"
    folder.mkdir()
    out = Outputs(folder / "a.gpkg")
    maps = Outputs(folder / "a.gpkg", folder / "a.tif")
    cases: list[tuple[type[Exception], str, Path, Outputs, dict[str, Any]]] = [
        (RasterError, "2 bands .* takes 1", two, out, {}),
        (RasterError, "no coordinate reference system", nowhere, out, {}),
        (RasterError, "no data in the bands", empty, out, {}),
        (ConfigError, "boxes.*no maps", path, maps, {}),
        (ConfigError, "boxes.*no maps", path, Outputs(folder / "a.gpkg", shape="tiles"), {}),
        (ConfigError, "Features can be", path, Outputs(folder / "a.gpkg", shape="circles"), {}),  # type: ignore[arg-type]
        (ConfigError, "overlap of tiles", path, out, {"overlap": 1.0}),
        (ConfigError, "threshold is 2", path, out, {"suppression": 2.0}),
        (ConfigError, "lowest score", path, out, {"min_score": -1.0}),
        (OutputError, "must end in", path, Outputs(folder / "a.shp"), {}),
    ]
    for kind, words, raster, outputs, options in cases:
        with pytest.raises(kind, match=words):
            detect_raster(raster, ByPatch(), outputs, DetectOptions(**options), resources=ONE)
        assert os.listdir(folder) == []
    found = detect(nowhere, ByPatch(), folder / "b.gpkg", crs=UTM)
    assert found.crs == UTM
    colours = write_raster(tmp_path / "rgb.tif", noise((3, 8, 8)))
    with pytest.raises(ConfigError, match="tiles, points, regions, and no boxes"):
        classify_raster(colours, ByColour(), Outputs(out.layer, shape="boxes"))
