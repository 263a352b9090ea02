"""Which tiles a batch holds, how they are turned, and what is kept of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tiny_objects import NAMES, SIDE, TILES, scenes
from torchgeo_debias.boxes.convert import Floats, canonical, to_corners
from torchgeo_debias.data.images import read_image
from torchgeo_debias.data.objects import ArrayPicture, FilePicture, ObjectSet, ObjectTiles, Tile, picture
from torchgeo_debias.errors import DataError
from torchgeo_debias.progress import silent
from torchgeo_debias.training.checkpoints import fingerprint
from torchgeo_debias.training.detection.batches import Batch, Draw, Order, TrainTiles, loader, repeat_factors, turned

N = 32


def drawn(box: Floats, n: int = N) -> np.ndarray:
    """A mask (n, n) of the pixels whose middle lies in a box."""
    corners = to_corners(box[None])[0]
    y, x = np.mgrid[:n, :n] + 0.5
    inside = np.ones((n, n), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    return inside


def tile_of(box: Floats) -> Tile:
    mask = drawn(box)
    flags = np.zeros(1, bool)
    return Tile(mask[None].astype(np.uint8), mask, box[None], np.zeros(1, np.int64), flags, 0, (0, 0, N))


@given(
    symmetry=st.integers(0, 7),
    corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_horizontal_boxes_still_fit_what_they_are_round(
    symmetry: int, corner: tuple[int, int], sides: tuple[int, int]
) -> None:
    box = np.array([*corner, corner[0] + sides[0], corner[1] + sides[1]], np.float64)
    after = turned(tile_of(box), symmetry)
    np.testing.assert_array_equal(after.image[0], drawn(after.boxes[0]))
    np.testing.assert_array_equal(after.valid, drawn(after.boxes[0]))


@given(
    symmetry=st.integers(0, 7),
    centre=st.tuples(st.floats(8, 24), st.floats(8, 24)),
    sides=st.tuples(st.floats(2, 14), st.floats(2, 14)),
    angle=st.floats(0, 179),
)
def test_oriented_boxes_still_fit_what_they_are_round(
    symmetry: int, centre: tuple[float, float], sides: tuple[float, float], angle: float
) -> None:
    box = canonical(np.array([[*centre, *sides, angle]]))[0]
    after = turned(tile_of(box), symmetry)
    # Rounding may put the middle of a pixel on the other side of an edge that it lies on.
    narrow, wide = after.boxes[0].copy(), after.boxes[0].copy()
    narrow[2:4] -= 1e-6
    wide[2:4] += 1e-6
    assert (drawn(narrow) <= after.image[0]).all()
    assert (after.image[0] <= drawn(wide)).all()
    np.testing.assert_allclose(sorted(after.boxes[0, 2:4]), sorted(box[2:4]), atol=1e-9)


def test_the_eight_symmetries_differ() -> None:
    tile = tile_of(np.array([3.0, 5.0, 20.0, 9.0]))
    tile.image[0, 6, 4] = 7  # breaks the symmetry of the rectangle
    assert len({turned(tile, symmetry).image.tobytes() for symmetry in range(8)}) == 8
    assert turned(tile, 0) is tile


def test_repeat_factors_by_hand() -> None:
    # Of 8 tiles class 0 is in all but the empty one, class 1 in two, class 2 in one; t = 0.5.
    classes = [np.array(each, np.int64) for each in ([0], [0], [0], [0, 1], [0, 1, 2], [0], [0], [])]
    factors = repeat_factors(classes, 4, threshold=0.5)
    # sqrt(0.5 / (7/8)) < 1, sqrt(0.5 / (2/8)) = 1.414, sqrt(0.5 / (1/8)) = 2
    np.testing.assert_allclose(factors, [1, 1, 1, 2**0.5, 2, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors(classes, 4, threshold=1e-3), 1)


def epochs_of(order: Order, n: int) -> list[list[Draw]]:
    found = []
    for epoch in range(n):
        order.set_epoch(epoch)
        found.append(list(order))
    return found


def test_an_epoch_holds_every_tile_once_in_an_order_of_its_own() -> None:
    first, second = epochs_of(Order(20, seed=3, augment=True), 2)
    assert sorted(draw.tile for draw in first) == sorted(draw.tile for draw in second) == list(range(20))
    assert first != second
    assert len({draw.symmetry for draw in first + second}) > 4
    assert epochs_of(Order(20, seed=3, augment=True), 2) == [first, second]
    assert epochs_of(Order(20, seed=4, augment=True), 1) != [first]
    assert {draw.symmetry for draw in epochs_of(Order(20, seed=3, augment=False), 1)[0]} == {0}


def test_repeated_tiles_come_so_much_more_often_in_epochs_as_long() -> None:
    repeats = np.array([1.0] * 8 + [2.5, 4.0])
    epochs = epochs_of(Order(10, seed=0, augment=False, repeats=repeats), 600)
    assert {len(epoch) for epoch in epochs} == {10}
    often = np.bincount([draw.tile for epoch in epochs for draw in epoch], minlength=10) / 600
    # The first ten of all that are wanted, in random order: each in proportion.
    np.testing.assert_allclose(often, repeats * 10 / repeats.sum(), rtol=0.12)


def test_repeating_changes_neither_the_order_nor_the_number_where_nothing_is_rare() -> None:
    plain, repeated = Order(9, 0, augment=True), Order(9, 0, augment=True, repeats=np.ones(9))
    assert len(list(plain)) == len(list(repeated)) == 9
    assert sorted(draw.tile for draw in repeated) == list(range(9))


def files(folder: Path, n: int, side: int = 3 * SIDE) -> ObjectSet:
    """Images of 3 x 3 tiles as files."""
    images = []
    for image in scenes(n, side=side).images:
        path = folder / f"{image.name}.png"
        Image.fromarray(np.moveaxis(image.picture.read(0, 0, side, side)[0], 0, -1)).save(path)
        images.append(replace(image, picture=FilePicture(path)))
    return ObjectSet.of(images, NAMES, oriented=False)


def room_for(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "_DECODED_BYTES", images * (3 * SIDE) ** 2 * 4)


NO_OVERLAP = replace(TILES, overlap=0.0)


@pytest.mark.parametrize("repeats", [None, np.tile([1.0, 1.0, 3.5], 15)], ids=["plain", "repeated"])
def test_files_are_decoded_once_an_epoch_where_memory_does_not_hold_the_tiles(
    repeats: np.ndarray | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = TrainTiles(ObjectTiles(files(tmp_path, 5), NO_OVERLAP), 0)
    tiles.fill(silent)
    room_for(2, monkeypatch)
    decoded: list[Path] = []

    def counted(path: Path, bands: Any = None) -> Any:
        decoded.append(path)
        return read_image(path, bands)

    monkeypatch.setattr(picture, "_decoded", picture._Decoded())
    monkeypatch.setattr(picture, "read_image", counted)
    order = Order(45, 0, True, repeats, tiles.reading())
    list(loader(tiles, 4, order))
    assert len(decoded) == len(set(decoded)) == 5


def test_tiles_of_as_many_images_as_are_kept_decoded_are_shuffled_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = TrainTiles(ObjectTiles(files(tmp_path, 6), NO_OVERLAP), 0)
    tiles.fill(silent)
    room_for(2, monkeypatch)
    order = Order(54, 3, True, None, tiles.reading())
    first, second = epochs_of(order, 2)
    assert epochs_of(Order(54, 3, True, None, tiles.reading()), 2) == [first, second]
    assert epochs_of(Order(54, 4, True, None, tiles.reading()), 1) != [first]
    assert [tiles.tiles.image_of(index) for index in range(54)] == [tiles[index].image_index for index in range(54)]
    pairs = []
    for epoch in (first, second):
        assert sorted(draw.tile for draw in epoch) == list(range(54))
        images = [tiles.tiles.image_of(draw.tile) for draw in epoch]
        windows = [images[start : start + 18] for start in (0, 18, 36)]
        assert all(len(set(window)) == 2 for window in windows)
        assert all(len(set(window[:9])) == 2 for window in windows), "shuffled within the window"
        pairs.append([frozenset(window) for window in windows])
    assert pairs[0] != pairs[1], "other images together in each epoch"


def test_repeated_tiles_come_more_often_from_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = TrainTiles(ObjectTiles(files(tmp_path, 2), NO_OVERLAP), 0)
    room_for(1, monkeypatch)
    repeats = np.array([1.0] * 16 + [2.5, 4.0])
    epochs = epochs_of(Order(18, 0, False, repeats, tiles.reading()), 400)
    often = np.bincount([draw.tile for epoch in epochs for draw in epoch], minlength=18) / 400
    np.testing.assert_allclose(often, repeats * 18 / repeats.sum(), rtol=0.15)


def test_tiles_that_memory_holds_or_that_are_read_by_windows_are_shuffled_as_one(tmp_path: Path) -> None:
    kept = TrainTiles(ObjectTiles(files(tmp_path, 2), NO_OVERLAP), 10)
    kept.fill(silent)
    assert kept.reading() is None
    windows = TrainTiles(ObjectTiles(scenes(30), TILES), 0)
    windows.fill(silent)
    plain, read = Order(30, 0, False), Order(30, 0, False, None, windows.reading())
    assert epochs_of(read, 2) == epochs_of(plain, 2)


class Counted(ArrayPicture):
    """Counts how often it is read."""

    reads = 0

    def read(self, *window: int) -> tuple[np.ndarray, np.ndarray]:
        self.reads += 1
        return super().read(*window)


@pytest.mark.parametrize(("cache_mb", "reads"), [(1, 1), (0, 6)])
def test_tiles_are_read_once_where_memory_allows(cache_mb: int, reads: int) -> None:
    objects = scenes(1)
    (image,) = objects.images
    pixels, _ = image.picture.read(0, 0, SIDE, SIDE)
    picture = Counted(pixels, bands=image.picture.bands)
    objects = replace(objects, images=(replace(image, picture=picture),))
    tiles = TrainTiles(ObjectTiles(objects, TILES), cache_mb)
    for _ in range(3):
        np.testing.assert_array_equal(tiles[0].image, pixels)
        assert tiles[0].valid.all()
    assert picture.reads == reads


def test_a_full_memory_keeps_what_it_has() -> None:
    objects = scenes(100)
    tiles = TrainTiles(ObjectTiles(objects, TILES), 1)  # a tile takes 12 KiB
    list(tiles[i] for i in range(100))
    assert 80 <= len(tiles._kept) <= 85
    for index in (0, 99):
        np.testing.assert_array_equal(tiles[index].image, objects.images[index].picture.read(0, 0, SIDE, SIDE)[0])


def test_a_batch_knows_its_tiles_and_their_objects() -> None:
    tiles = TrainTiles(ObjectTiles(scenes(5), TILES), 10)
    batches: list[Batch] = list(loader(tiles, 2, None))
    assert [batch.tiles.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    for batch in batches:
        assert batch.images.shape[1:] == (3, SIDE, SIDE)
        for index, objects, image in zip(batch.tiles.tolist(), batch.objects, batch.images, strict=True):
            np.testing.assert_array_equal(objects.boxes.numpy(), tiles[index].boxes)
            np.testing.assert_array_equal(image.numpy(), tiles[index].image)
    shuffled = [int(tile) for batch in loader(tiles, 2, Order(5, 0, augment=True)) for tile in batch.tiles]
    assert sorted(shuffled) == list(range(5))


class Broken(ArrayPicture):
    """Cannot be read."""

    def read(self, *window: int) -> tuple[np.ndarray, np.ndarray]:
        raise DataError("cannot be read")


def test_the_next_batch_is_read_while_one_is_used() -> None:
    objects = scenes(6)
    images = [replace(image, picture=Counted(image.picture.read(0, 0, SIDE, SIDE)[0])) for image in objects.images]
    tiles = TrainTiles(ObjectTiles(replace(objects, images=tuple(images)), TILES), 10)

    def reads() -> int:
        return sum(image.picture.reads for image in images)  # type: ignore[attr-defined]

    batches = iter(loader(tiles, 2, None))
    assert next(batches).tiles.tolist() == [0, 1]
    waited = 0
    while reads() < 4 and waited < 1000:
        time.sleep(0.01)
        waited += 1
    time.sleep(0.05)
    assert reads() == 4, "one batch ahead, and no more"
    assert [batch.tiles.tolist() for batch in batches] == [[2, 3], [4, 5]]
    assert list(loader(tiles, 2, None))  # and again from the start


def test_an_image_that_cannot_be_read_is_told_where_its_batch_is_due() -> None:
    objects = scenes(4)
    *whole, last = objects.images
    broken = replace(last, picture=Broken(last.picture.read(0, 0, SIDE, SIDE)[0]))
    tiles = TrainTiles(ObjectTiles(replace(objects, images=(*whole, broken)), TILES), 10)
    batches = iter(loader(tiles, 2, None))
    next(batches)
    with pytest.raises(DataError, match="cannot be read"):
        next(batches)


def test_groups_are_those_of_the_objects_that_are_taught() -> None:
    objects = scenes(4)
    assert objects.table.groups == ("head", "middle", "tail")
    *some, last = objects.images
    far = np.array([-900, -900, 900, 900])
    huge = [replace(image, boxes=image.boxes + far * (image.labels == 0)[:, None]) for image in some]
    lost = replace(objects, images=(*huge, last))
    taught = TrainTiles(ObjectTiles(lost, TILES), 1).taught()
    assert taught.counts == (2, 6, 2)
    assert taught.groups == ("middle", "head", "tail")
    given = replace(lost, table=replace(lost.table, groups=("tail", "head", "head")))
    assert TrainTiles(ObjectTiles(given, TILES), 1).taught().groups == ("tail", "head", "head")


def test_anything_that_matters_changes_the_fingerprint() -> None:
    def digest(objects: object = None, spec: object = TILES, **settings: int) -> str:
        tiles = ObjectTiles(objects or scenes(2), spec)  # type: ignore[arg-type]
        return fingerprint([settings, *TrainTiles(tiles, 1).pieces()])

    plain = scenes(2)
    first, second = plain.images
    pixels, _ = first.picture.read(0, 0, SIDE, SIDE)
    pixels[0, 0, 0] ^= 1
    black = np.where(np.arange(SIDE) > 5, pixels, 0).astype(np.uint8)
    mask = np.ones((SIDE, SIDE), bool)
    mask[:, :5] = False
    pictures = [ArrayPicture(pixels, bands=NAMES), ArrayPicture(black, bands=NAMES), ArrayPicture(black, mask, NAMES)]
    variants = [
        digest(),
        digest(lr=1),
        digest(spec=replace(TILES, min_visible=0.6)),
        digest(scenes(2, first=1)),
        digest(replace(plain, images=(replace(first, boxes=first.boxes + 1), second))),
        digest(replace(plain, images=(replace(first, labels=first.labels[::-1]), second))),
        digest(replace(plain, images=(replace(first, ignored=~first.ignored), second))),
        *(digest(replace(plain, images=(replace(first, picture=picture), second))) for picture in pictures),
    ]
    assert len(set(variants)) == len(variants)
    assert digest() == variants[0]
