"""Object chips cut from images with boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.objects.making import write_text
from torchgeo_debias.boxes.convert import oriented_to_horizontal
from torchgeo_debias.data.chips import ChipSpec, resize
from torchgeo_debias.data.folders import TEST_SHARE
from torchgeo_debias.data.images import read_image
from torchgeo_debias.data.objects import (
    ArrayPicture,
    LabelledImage,
    ObjectSet,
    chips_from_objects,
    read_dota,
    read_yolo,
)
from torchgeo_debias.data.splits import split_by_source
from torchgeo_debias.data.windows import square_windows
from torchgeo_debias.errors import DataError

SPEC = ChipSpec(16)
NAMES = ["ship", "plane"]


def picture(seed: int = 0, height: int = 40, width: int = 60) -> ArrayPicture:
    rng = np.random.default_rng(seed)
    return ArrayPicture(rng.integers(0, 256, (3, height, width)).astype(np.uint8), bands=("red", "green", "blue"))


def image(
    boxes: list[list[float]], labels: list[int], ignored: list[int] | None = None, seed: int = 0
) -> LabelledImage:
    flags = np.array(ignored or [0] * len(boxes), bool)
    rows = np.array(boxes, np.float64).reshape(len(boxes), -1 if boxes else 4)
    return LabelledImage(f"image{seed}", f"source{seed}", picture(seed), rows, np.array(labels, np.int64), flags)


def objects(*images: LabelledImage) -> ObjectSet:
    return ObjectSet.of(images, NAMES, oriented=images[0].boxes.shape[1] == 5)


def test_tight_crops_are_the_pixels_of_the_upright_box() -> None:
    one = image([[3.2, 5.0, 19.0, 12.7], [0.0, 0.0, 16.0, 16.0]], [0, 1])
    chips = chips_from_objects(objects(one), SPEC, tight=True)
    pixels = one.picture.read(0, 0, 60, 40)[0]
    wanted, _ = resize(pixels[:, 5:13, 3:19], np.ones((8, 16), bool), 16)
    np.testing.assert_array_equal(chips.images[0], wanted)
    np.testing.assert_array_equal(chips.images[1], pixels[:, :16, :16])
    assert chips.labels.tolist() == [0, 1]
    assert chips.table.names == ("ship", "plane")
    assert chips.valid.all()
    assert (chips.spec.margin, chips.spec.window) == (0.0, None)


def test_tight_crops_of_oriented_boxes_end_at_the_edge_of_the_image() -> None:
    one = image([[56.0, 20.0, 16.0, 4.0, 45.0], [-2.0, -1.0, 8.0, 4.0, 0.0]], [0, 0])
    chips = chips_from_objects(objects(one), SPEC, tight=True)
    pixels = one.picture.read(0, 0, 60, 40)[0]
    half = (16 + 4) / 2 / np.sqrt(2)
    first, last = int(np.floor(56 - half)), 60
    rows = slice(int(np.floor(20 - half)), int(np.ceil(20 + half)))
    wanted = pixels[:, rows, first:last]
    np.testing.assert_array_equal(chips.images[0], resize(wanted, np.ones(wanted.shape[1:], bool), 16)[0])
    np.testing.assert_array_equal(chips.images[1], resize(pixels[:, :1, :2], np.ones((1, 2), bool), 16)[0])
    assert chips.valid.all()


def test_squares_are_those_around_features_of_a_layer() -> None:
    one = image([[10.0, 10.0, 34.0, 18.0]], [1])
    chips = chips_from_objects(objects(one), SPEC)
    ((column, row, side),) = square_windows(one.boxes, SPEC, None)
    np.testing.assert_array_equal(chips.images[0], resize(*one.picture.read(column, row, side, side), 16)[0])


def test_difficult_objects_are_left_out_unless_asked_for() -> None:
    one = image([[0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 30.0, 30.0]], [0, 1], [0, 1])
    assert chips_from_objects(objects(one), SPEC).labels.tolist() == [0]
    assert chips_from_objects(objects(one), SPEC, ignored=True).table.counts == (1, 1)


def test_many_images_keep_their_order_and_their_sources() -> None:
    images = [image([[i, 0.0, i + 12.0, 12.0], [20.0, 4.0, 30.0, 14.0]], [0, i % 2], seed=i) for i in range(12)]
    chips = chips_from_objects(objects(*images), SPEC, tight=True)
    assert chips.sources.tolist() == [f"source{i}" for i in range(12) for _ in range(2)]
    for i, one in enumerate(images):
        wanted, mask = one.picture.read(i, 0, 12, 12)
        np.testing.assert_array_equal(chips.images[2 * i], resize(wanted, mask, 16)[0])
    kept, held = split_by_source(chips, TEST_SHARE, 0)
    assert len(held)
    assert not set(chips.sources[kept]) & set(chips.sources[held])


def test_objects_on_nodata_alone_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.ones((3, 40, 60), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[:, 30:] = True
    boxes = np.array([[0.0, 0, 10, 10], [35, 0, 45, 10]])
    half = LabelledImage("a", "a", ArrayPicture(pixels, mask), boxes, np.array([0, 1]), np.zeros(2, bool))
    assert chips_from_objects(objects(half), SPEC, tight=True).labels.tolist() == [1]
    assert "1 objects" in caplog.text


def test_a_set_without_objects_is_refused() -> None:
    with pytest.raises(DataError, match="no object"):
        chips_from_objects(objects(image([], [])), SPEC)


def test_from_files_in_dota_s_form(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3)).astype(np.uint8)
    for name in ("P1__1__0___0", "P1__1__512___0", "P2"):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
        write_text(tmp_path / "labels" / f"{name}.txt", "2 3 22 3 22 13 2 13 plane 0\n30 30 40 30 40 44 30 44 ship 1")
    chips = chips_from_objects(
        read_dota(tmp_path / "images", tmp_path / "labels", names=NAMES), SPEC, tight=True, ignored=True
    )
    assert chips.sources.tolist() == ["P1"] * 4 + ["P2"] * 2
    assert chips.labels.tolist() == [1, 0] * 3
    crop = pixels[3:13, 2:22].transpose(2, 0, 1)
    np.testing.assert_array_equal(chips.images[0], resize(crop, np.ones((10, 20), bool), 16)[0])


@pytest.mark.real_data
def test_dota8_gives_the_crops_of_its_boxes(real_data: Path) -> None:
    folder = real_data / "dota8"
    found = read_yolo(folder / "images", folder / "labels", [str(i) for i in range(15)])
    chips = chips_from_objects(found, ChipSpec(32), tight=True)
    assert len(chips) == sum(found.table.counts) == 133
    assert len(set(chips.sources.tolist())) == 8
    at = 0
    for one in found.images:
        pixels = read_image(folder / "images" / one.name).pixels
        for left, top, right, bottom in oriented_to_horizontal(one.boxes):
            x, y = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
            crop = pixels[:, y : int(np.ceil(bottom)), x : int(np.ceil(right))]
            np.testing.assert_array_equal(chips.images[at], resize(crop, np.ones(crop.shape[1:], bool), 32)[0])
            at += 1
