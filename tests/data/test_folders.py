from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from torchgeo_debias.data.chips import resize
from torchgeo_debias.data.folders import centre_crop, read_folder
from torchgeo_debias.data.images import read_image
from torchgeo_debias.errors import Cancelled, ConfigError, DataError
from torchgeo_debias.progress import Progress

RNG = np.random.default_rng(0)


def save(path: Path, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 255, (height, width, channels), dtype=np.uint8)
    Image.fromarray(array.squeeze()).save(path)
    return array


def save_tif(path: Path, array: np.ndarray, **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, **profile
    ) as target:
        target.write(array)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name in ("airplane", "beach"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_reads_everything_in_sorted_order(flat: Path) -> None:
    (flat / "beach" / ".hidden.png").write_text("no image")
    (flat / "beach" / "notes.TXT").write_text("no image")
    (flat / "beach" / "0.png.aux.xml").write_text("no image")
    (flat / "beach" / "Thumbs.db").write_text("no image")
    (flat / ".cache").mkdir()
    array = save(flat / "beach" / "9.png")
    reports: list[Progress] = []
    chips = read_folder(flat, 16, progress=reports.append)
    assert chips.table.names == ("airplane", "beach")
    assert chips.table.counts == (10, 10)
    assert chips.bands == ("red", "green", "blue")
    assert chips.images.dtype == np.uint8
    assert chips.sources[-1] == "beach/9.png"
    np.testing.assert_array_equal(chips.images[-1], array.transpose(2, 0, 1))
    assert (chips.spec.size, chips.spec.window, chips.spec.unit, chips.spec.gsd) == (16, 16.0, "px", None)
    assert reports[-1] == Progress("read images", 20, 20)


def test_seeded_split_is_stratified_and_has_no_image_twice(flat: Path) -> None:
    train, test = read_folder(flat, 8, split="train"), read_folder(flat, 8, split="test")
    assert train.table.counts == (8, 8)
    assert test.table.counts == (2, 2)
    assert not set(train.sources) & set(test.sources)
    other = read_folder(flat, 8, split="test", seed=1)
    assert set(other.sources) != set(test.sources)


def test_split_folders_share_one_class_table(tmp_path: Path) -> None:
    for where in ("train/a/0", "train/a/1", "train/b/0", "test/b/0", "val/c/0"):
        save(tmp_path / f"{where}.jpg")
    test = read_folder(tmp_path, 8, split="test")
    assert test.table.names == ("a", "b", "c")
    assert test.labels.tolist() == [1]
    assert read_folder(tmp_path, 8, split="train").table.counts == (2, 1, 0)
    assert len(read_folder(tmp_path, 8)) == 5
    assert len(read_folder(tmp_path / "val", 8)) == 1


def test_classes_of_a_model_give_the_ids(flat: Path) -> None:
    chips = read_folder(flat, 8, classes=["ship", "beach", "airplane"])
    assert chips.table.counts == (0, 10, 10)
    with pytest.raises(DataError, match=r"airplane is none of the classes beach"):
        read_folder(flat, 8, classes=["beach"])


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    save(tmp_path / "train" / "0.png")
    save(tmp_path / "bus" / "0.png")
    assert read_folder(tmp_path, 8).table.names == ("bus", "train")


def test_whole_image_is_resized_and_window_is_the_usual_side(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", 20, 30)
    save(tmp_path / "a" / "1.png", 30, 30)
    save(tmp_path / "a" / "2.png", 25, 25)
    array = save(tmp_path / "a" / "3.png", 20, 10)
    chips = read_folder(tmp_path, 12)
    assert chips.spec.window == 30
    expected, _ = resize(array.transpose(2, 0, 1), np.ones((20, 10), dtype=bool), 12)
    np.testing.assert_array_equal(chips.images[3], expected)


def test_geotiffs_keep_type_bands_nodata_and_resolution(tmp_path: Path) -> None:
    for i in range(3):
        array = RNG.integers(1, 4000, (5, 12, 12), dtype=np.uint16)
        array[:, :4] = 0
        save_tif(
            tmp_path / "a" / f"{i}.tif", array, crs="EPSG:32632", transform=from_origin(5e5, 5e6, 10, 10), nodata=0
        )
    chips = read_folder(tmp_path, 12, bands=[4, 2])
    assert chips.images.dtype == np.uint16
    assert chips.bands == ("band_4", "band_2")
    assert chips.spec.gsd == pytest.approx(10)
    assert not chips.valid[:, :4].any()
    assert chips.valid[:, 4:].all()
    np.testing.assert_array_equal(chips.images[2, 1], array[1])


def test_float_nodata_is_masked_and_nan_refused(tmp_path: Path) -> None:
    array = RNG.normal(size=(2, 8, 8)).astype(np.float32)
    array[1, 0, 0] = np.nan
    save_tif(tmp_path / "a" / "0.tif", array, nodata=np.nan)
    chips = read_folder(tmp_path, 8)
    assert not chips.valid[0, 0, 0]
    assert chips.valid.sum() == 63
    assert np.isfinite(chips.images).all()
    save_tif(tmp_path / "a" / "1.tif", array)
    with pytest.raises(DataError, match=r"1\.tif has NaN"):
        read_folder(tmp_path, 8)


def test_alpha_is_validity(tmp_path: Path) -> None:
    array = RNG.integers(1, 255, (8, 8, 4), dtype=np.uint8)
    array[:3, :, 3] = 0
    Image.fromarray(array).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image.bands == ("red", "green", "blue")
    assert not image.valid[:3].any()
    assert image.valid[3:].all()
    assert (image.pixels[:, :3] == 0).all()


@pytest.mark.parametrize(("mode", "bands"), [("P", 3), ("L", 1), ("1", 1), ("LA", 1), ("CMYK", 3)])
def test_modes_of_pil(tmp_path: Path, mode: str, bands: int) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8)).convert(mode).save(path)
    image = read_image(path)
    assert image.pixels.shape == (bands, 8, 8)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.max() > 1


def test_sixteen_bit_png_keeps_its_depth(tmp_path: Path) -> None:
    array = RNG.integers(300, 60000, (3, 8, 8), dtype=np.uint16)
    with rasterio.open(tmp_path / "x.png", "w", driver="PNG", count=3, height=8, width=8, dtype="uint16") as target:
        target.write(array)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").pixels, array)


@pytest.mark.parametrize(("suffix", "count"), [("pgm", 1), ("ppm", 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_portable_maps_keep_their_depth(tmp_path: Path, suffix: str, count: int, dtype: str) -> None:
    array = RNG.integers(0, np.iinfo(dtype).max, (8, 8, count)).astype(dtype)
    magic = b"P5" if count == 1 else b"P6"
    header = magic + b"\n8 8\n%d\n" % np.iinfo(dtype).max
    (tmp_path / f"x.{suffix}").write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())
    image = read_image(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(image.pixels, array.transpose(2, 0, 1))
    assert image.pixels.dtype == dtype
    assert image.bands == (("red", "green", "blue") if count == 3 else ("band_1",))
    assert image.gsd is None


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_deep_pixels_under_a_foreign_name_keep_their_depth(tmp_path: Path, dtype: str) -> None:
    for kind in ("TIFF", "PNG") if dtype == "uint16" else ("TIFF",):
        Image.fromarray(np.full((8, 8), 4000, dtype)).save(tmp_path / "x.jpg", format=kind)
        image = read_image(tmp_path / "x.jpg")
        assert (image.pixels == 4000).all()
        assert image.pixels.dtype == ("uint16" if dtype == "uint16" else "float32")


def test_centre_crop() -> None:
    image = np.arange(2 * 7 * 10).reshape(2, 7, 10)
    np.testing.assert_array_equal(centre_crop(image, 4), image[:, 1:5, 3:7])
    assert centre_crop(image, 8).shape == (2, 7, 8)


def test_crop_takes_the_centre_before_resampling(tmp_path: Path) -> None:
    array = save(tmp_path / "a" / "0.png", 40, 30, 1)
    chips = read_folder(tmp_path, 20, crop=20)
    np.testing.assert_array_equal(chips.images[0, 0], array[10:30, 5:25, 0])
    assert chips.spec.window == 20


def test_cancelling_stops(flat: Path) -> None:
    def cancel(progress: Progress) -> None:
        if progress.done == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        read_folder(flat, 8, progress=cancel)


def _truncated(root: Path) -> None:
    save(root / "beach" / "bad.jpg", 64, 64)
    data = (root / "beach" / "bad.jpg").read_bytes()
    (root / "beach" / "bad.jpg").write_bytes(data[: len(data) // 2])


def _truncated_tif(root: Path) -> None:
    save_tif(root / "beach" / "bad.tif", np.ones((3, 64, 64), dtype=np.uint8))
    data = (root / "beach" / "bad.tif").read_bytes()
    (root / "beach" / "bad.tif").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncated, r"bad\.jpg cannot be read as an image"),
        (_truncated_tif, r"bad\.tif cannot be read as an image"),
        (lambda root: (root / "beach" / "bad.png").write_bytes(b"\x89PNG nonsense"), r"bad\.png cannot be read"),
        (lambda root: (root / "beach" / "bad.doc").write_text("text"), r"bad\.doc cannot be read as an image"),
        (lambda root: save(root / "beach" / "bad.png", channels=1), r"bad\.png has 1 bands of uint8.*has 3"),
        (lambda root: save_tif(root / "beach" / "bad.tif", np.ones((3, 9, 9), np.int16)), r"bad\.tif has 3.*int16"),
        (lambda root: (root / "empty").mkdir(), r"class folder .*empty has no image"),
        (lambda root: save(root / "test" / "beach" / "0.png"), r"split folders and also airplane, beach"),
    ],
)
def test_bad_folders_are_refused(flat: Path, spoil: Any, message: str) -> None:
    spoil(flat)
    with pytest.raises(DataError, match=message):
        read_folder(flat, 8)


def test_missing_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        read_folder(tmp_path / "nowhere", 8)
    with pytest.raises(DataError, match="no class folders"):
        read_folder(tmp_path, 8)
    save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(DataError, match="has no folder 'test', only train"):
        read_folder(tmp_path, 8, split="test")
    with pytest.raises(ConfigError, match="between 8 and 4096 pixels"):
        read_folder(tmp_path, 4)
    with pytest.raises(ConfigError, match="crop must be at least 1"):
        read_folder(tmp_path, 8, crop=0)
    with pytest.raises(DataError, match=r"3 bands, so the bands \[4\]"):
        read_folder(tmp_path, 8, bands=[4])


@pytest.mark.real_data
def test_uc_merced(real_data: Path, tmp_path: Path) -> None:
    for name in ("airplane", "beach"):
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / name).symlink_to(real_data / "ucmerced" / split / name)
    train, test = read_folder(tmp_path, 64, split="train"), read_folder(tmp_path, 64, split="test")
    assert train.table.counts == (80, 80)
    assert test.table.counts == (20, 20)
    assert train.images.shape == (160, 3, 64, 64)
    assert train.spec.window == 256
    # beaches are blue and smooth: the pixels belong to their labels
    blue = train.images[:, 2].mean(axis=(1, 2)) - train.images[:, 0].mean(axis=(1, 2))
    assert blue[train.labels == 1].mean() > blue[train.labels == 0].mean()


@pytest.mark.real_data
def test_mstar_needs_the_crop_or_its_size_leaks(real_data: Path, tmp_path: Path) -> None:
    for name in ("2S1", "BTR70", "ZIL131"):
        (tmp_path / name).symlink_to(real_data / "mstar_soc10" / "test" / name)
    chips = read_folder(tmp_path, 88, crop=88)
    assert chips.spec.window == 88
    assert chips.bands == ("band_1",)
    first = Image.open(tmp_path / "2S1" / Path(chips.sources[0]).name)
    assert first.size == (158, 158)
    np.testing.assert_array_equal(chips.images[0, 0], np.asarray(first)[35:123, 35:123])


@pytest.mark.parametrize("splits", [False, True])
def test_folders_within_those_of_the_classes_are_domains(splits: bool, tmp_path: Path) -> None:
    root = tmp_path / "train" if splits else tmp_path
    # A domain may be called like a class.
    places = ["beach/0.png", "beach/radar/1.png", "beach/beach/2.png", "dune/radar/3.png", "dune/.cache/4.png"]
    for place in places:
        save(root / place)
    chips = read_folder(tmp_path, 16)
    assert chips.sources.tolist() == sorted(f"{'train/' * splits}{place}" for place in places[:-1])
    assert chips.domains is not None
    of = dict(zip((Path(source).stem for source in chips.sources), chips.domains.tolist(), strict=True))
    assert of["1"] == of["3"]
    assert len({of["0"], of["1"], of["2"]}) == 3
    assert chips.subset([0, 2]).domains.tolist() == chips.domains[[0, 2]].tolist()  # type: ignore[union-attr]


def test_images_in_the_folders_of_classes_alone_have_no_domains(flat: Path) -> None:
    assert read_folder(flat, 16).domains is None
