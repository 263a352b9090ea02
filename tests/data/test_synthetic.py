from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.windows import Window
from shapely.geometry import Point, Polygon
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.data import _render
from torchgeo_debias.data._sketches import MAX_RADIUS, SKETCHES, sketch
from torchgeo_debias.data.synthetic import COUNTS, CRS, ORIGIN, Scene, mosaic, write_scene
from torchgeo_debias.errors import ConfigError, DataError, OutputError
from torchgeo_debias.progress import Progress

SIZE = 2048
SMALL = {name: max(3, count // 4) for name, count in COUNTS.items()}
TEST_COUNT = 8


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), size=SIZE, counts=SMALL, test_count=TEST_COUNT)


def pixels(scene: Scene, layer: Path) -> tuple[gpd.GeoDataFrame, npt.NDArray[np.float64]]:
    """A layer and the bounds of its objects in pixels, (N, 4): left, top, right, bottom."""
    frame = gpd.read_file(layer)
    bounds = frame.bounds.to_numpy()
    with rasterio.open(scene.raster) as raster:
        left, top = ~raster.transform @ (bounds[:, 0], bounds[:, 3])
        right, bottom = ~raster.transform @ (bounds[:, 2], bounds[:, 1])
    return frame, np.column_stack([left, top, right, bottom])


def test_lies_on_the_map(scene: Scene) -> None:
    with rasterio.open(scene.raster) as raster:
        assert raster.crs.to_string() == CRS
        assert (raster.count, raster.dtypes[0], raster.shape) == (3, "uint8", (SIZE, SIZE))
        assert raster.block_shapes[0] == (512, 512)
        assert raster.compression.name == "deflate"
        assert raster.bounds == pytest.approx((*np.add(ORIGIN, (0, -SIZE * 0.3)), *np.add(ORIGIN, (SIZE * 0.3, 0))))
        bounds = raster.bounds
    for layer in (scene.labels, scene.footprints, scene.truth):
        frame = gpd.read_file(layer)
        assert frame.crs == CRS
        left, bottom, right, top = frame.total_bounds
        assert bounds.left < left < right < bounds.right
        assert bounds.bottom < bottom < top < bounds.top


def test_default_counts_are_long_tailed() -> None:
    counts = list(COUNTS.values())
    assert len(counts) >= 8
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[-1] >= 50
    assert 700 <= sum(counts) <= 900


def test_holds_what_was_asked_for(scene: Scene) -> None:
    assert gpd.read_file(scene.labels)["class"].value_counts().to_dict() == SMALL
    truth, footprints = gpd.read_file(scene.truth), gpd.read_file(scene.footprints)
    assert truth["class"].value_counts().to_dict() == dict.fromkeys(SMALL, TEST_COUNT)
    assert "class" not in footprints.columns
    assert footprints.geometry.equals(truth.geometry)


def test_labels_stay_in_the_west(scene: Scene) -> None:
    _, west = pixels(scene, scene.labels)
    _, east = pixels(scene, scene.footprints)
    assert west[:, 2].max() < SIZE / 2 - 4
    assert east[:, 0].min() > SIZE / 2 + 4
    everywhere = np.concatenate([west, east])
    assert everywhere.min() > 0
    assert everywhere.max() < SIZE


def test_no_object_overlaps_another(scene: Scene) -> None:
    shapes = np.concatenate([gpd.read_file(layer).geometry.to_numpy() for layer in (scene.labels, scene.footprints)])
    first, second = gpd.GeoSeries(shapes).sindex.query(shapes, predicate="intersects")
    assert (first == second).all()
    assert gpd.GeoSeries(shapes).is_valid.all()


def test_objects_fit_a_window(scene: Scene) -> None:
    for layer in (scene.labels, scene.footprints):
        _, bounds = pixels(scene, layer)
        longest = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
        assert longest.min() > 11
        assert longest.max() < 64


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(SKETCHES)), seed=st.integers(0, 2**32 - 1))
def test_outline_holds_every_part(name: str, seed: int) -> None:
    drawn = sketch(name, np.random.default_rng(seed))
    outline = Polygon(drawn.outline).buffer(3)
    assert all(outline.covers(Polygon(part.points)) for part in drawn.parts)
    assert Polygon(drawn.outline).contains(Point(0, 0))
    assert drawn.radius <= MAX_RADIUS + 1e-6


@pytest.mark.parametrize("name", list(SKETCHES))
def test_footprint_lies_on_the_object(name: str) -> None:
    """What an object changes in an even image, its shadow aside, lies where its outline says."""
    rng = np.random.default_rng(5)
    drawn = sketch(name, rng)
    image = Image.new("RGB", (160, 160), (255, 255, 255))
    flat = type(drawn)(tuple(type(p)(p.points, p.ink, p.shade, p.slope) for p in drawn.parts), drawn.outline)
    _render.render(image, flat, 83.3, 76.8, 1.1, np.array([0.6, 0.8]), rng)
    rows, columns = np.nonzero((np.asarray(image) != 255).any(axis=2))
    left, top = _render.place(drawn, 83.3, 76.8, 1.1).min(axis=0)
    right, bottom = _render.place(drawn, 83.3, 76.8, 1.1).max(axis=0)
    assert left - 4 < columns.min()
    assert columns.max() < right + 4
    assert top - 4 < rows.min()
    assert rows.max() < bottom + 4
    assert np.ptp(columns) > 0.7 * (right - left)
    assert np.ptp(rows) > 0.7 * (bottom - top)


def test_same_seed_same_scene(tmp_path: Path) -> None:
    few = {"house": 3, "plane": 2}
    scenes = [
        write_scene(tmp_path / str(i), size=512, seed=seed, counts=few, test_count=2)
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (rasterio.open(scene.raster).read() for scene in scenes)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for name in ("labels", "footprints", "truth"):
        a, b = (gpd.read_file(getattr(scene, name)) for scene in scenes[:2])
        assert a.geometry.to_wkb().equals(b.geometry.to_wkb())
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
        "footprints.gpkg", "labels.gpkg", "scene.tif", "truth.gpkg",
    ]  # fmt: skip


def chips(scene: Scene, layer: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.str_]]:
    frame, bounds = pixels(scene, layer)
    rows = []
    with rasterio.open(scene.raster) as raster:
        for left, top, right, bottom in bounds:
            window = Window(round((left + right) / 2) - 32, round((top + bottom) / 2) - 32, 64, 64)
            chip = raster.read(window=window, boundless=True)
            rows.append(chip.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)).ravel())
    return np.stack(rows), frame["class"].to_numpy().astype(str)


def test_a_linear_model_on_pixels_fails(tmp_path: Path) -> None:
    scene = write_scene(tmp_path)
    train, labels = chips(scene, scene.labels)
    test, truth = chips(scene, scene.truth)
    scale = StandardScaler().fit(train)
    model = LogisticRegression(C=0.01, max_iter=60).fit(scale.transform(train), labels)
    assert model.score(scale.transform(train), labels) > 0.6  # it does learn what it is shown
    assert f1_score(truth, model.predict(scale.transform(test)), average="macro") < 0.35


def test_reports_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    write_scene(tmp_path, size=512, counts={"house": 2}, test_count=1, progress=seen.append)
    assert {step.stage for step in seen} == {"objects", "raster"}
    assert seen[-1].done == seen[-1].total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {"castle": 3}}, "castle"),
        ({"counts": {"house": 0}}, "at least one"),
        ({"size": 100}, "512"),
        ({"size": 512, "counts": {"house": 200}}, "do not fit"),
    ],
)
def test_refuses(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_scene(tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        write_scene(tmp_path / "taken", size=512, counts={"house": 1}, test_count=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images of one colour each, of odd sizes."""
    folder = tmp_path / "images"
    for i, (name, side) in enumerate((("a", 30), ("a", 32), ("b", 40), ("b", 32), ("c", 64))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (40 * i + 10, 200 - 40 * i, 90)).save(folder / name / f"{i}.png")
    return folder


def test_mosaic_cells_show_their_images(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    cells = mosaic(images, out, 0.5, "EPSG:32611", 32)
    assert cells["class"].value_counts().to_dict() == {"a": 2, "b": 2, "c": 1}
    assert gpd.read_file(out.with_suffix(".gpkg"))["class"].tolist() == cells["class"].tolist()
    with rasterio.open(out) as raster:
        assert raster.crs == cells.crs == "EPSG:32611"
        assert raster.res == (0.5, 0.5)
        assert raster.shape == (64, 96)
        for cell in cells.itertuples():
            window = raster.window(*cell.geometry.bounds)
            i = int(Path(cell.source).stem)
            assert (raster.read(window=window).reshape(3, -1).T == (40 * i + 10, 200 - 40 * i, 90)).all()
            assert (raster.dataset_mask(window=window) == 255).all()
        assert (raster.dataset_mask() == 255).sum() == 5 * 32 * 32
    assert not list(tmp_path.glob(".*"))


def test_mosaic_names_a_corrupt_image(images: Path, tmp_path: Path) -> None:
    (images / "b" / "bad.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"bad\.png"):
        mosaic(images, tmp_path / "map.tif", 0.5, "EPSG:32611", 32)
    assert not (tmp_path / "map.tif").exists()
    with pytest.raises(ConfigError, match="EPSG:1"):
        mosaic(images, tmp_path / "map.tif", 0.5, "EPSG:1", 32)
    with pytest.raises(DataError, match="No image"):
        mosaic(tmp_path / "nowhere", tmp_path / "map.tif", 0.5, "EPSG:32611", 32)


@pytest.mark.real_data
def test_mosaic_of_real_scenes(real_data: Path, tmp_path: Path) -> None:
    cells = mosaic(real_data / "ucmerced" / "test", tmp_path / "map.tif", 0.3, "EPSG:32611", 256)
    with rasterio.open(tmp_path / "map.tif") as raster:
        first = cells.iloc[0]
        shown = raster.read(window=raster.window(*first.geometry.bounds))
        assert raster.width * raster.height >= len(cells) * 256 * 256
    with Image.open(real_data / "ucmerced" / "test" / first.source) as image:
        if image.size == (256, 256):
            assert np.array_equal(shown, np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert cells["class"].nunique() == 21
