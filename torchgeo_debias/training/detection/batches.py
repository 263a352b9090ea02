"""From tiles to batches: which tiles in which order, turned how, and kept in memory where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from torchgeo_debias.backbones import pick_device
from torchgeo_debias.boxes.convert import Floats, transformed
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.objects import ObjectTiles, Picture, Tile
from torchgeo_debias.data.objects.picture import decoded_together
from torchgeo_debias.detection import Objects
from torchgeo_debias.progress import ProgressCallback, track
from torchgeo_debias.training.ahead import Ahead

Affine = tuple[float, float, float, float, float, float]


class Draw(NamedTuple):
    """One tile of an epoch.

    Attributes:
        tile: Its number.
        symmetry: 0..7, see :func:`turned`; 0 leaves it as it is.
    """

    tile: int
    symmetry: int = 0


class Reading(NamedTuple):
    """What tiles are read from.

    Attributes:
        images: (N,) number of the image of each tile.
        pictures: Of each image.
    """

    images: npt.NDArray[np.int64]
    pictures: Sequence[Picture]


class Batch(NamedTuple):
    """B tiles and their objects.

    Attributes:
        images: (B, C, S, S), raw units.
        valid: (B, S, S) bool.
        objects: Of each tile.
        tiles: (B,) int64, the number of each tile.
        symmetries: (B,) int64, how each was turned.
    """

    images: Tensor
    valid: Tensor
    objects: list[Objects]
    tiles: Tensor
    symmetries: Tensor

    def draws(self) -> list[Draw]:
        """What they were drawn as."""
        return [Draw(*pair) for pair in zip(self.tiles.tolist(), self.symmetries.tolist(), strict=True)]


class TrainTiles(Dataset[Tile]):
    """Tiles that are decoded once, as far as memory allows."""

    def __init__(self, tiles: ObjectTiles, cache_mb: int) -> None:
        """Nothing is read yet.

        Args:
            tiles: What to read.
            cache_mb: Memory for tiles, MiB.
        """
        self.tiles = tiles
        self._kept: dict[int, Tile] = {}
        self._room = cache_mb * 2**20
        self._filled = False

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Tile:
        """One tile, whose arrays are not to be changed."""
        if index in self._kept:
            return self._kept[index]
        tile = self.tiles[index]
        if tile.valid.all():  # as most are: one byte stands for all
            tile = tile._replace(valid=np.broadcast_to(np.True_, tile.valid.shape))
        self._room -= tile.image.nbytes + tile.valid.strides[0] * len(tile.valid)
        if self._room >= 0:  # once there was no room for one, there is none for any other
            self._kept[index] = tile
        return tile

    def fill(self, progress: ProgressCallback) -> None:
        """Read tiles in their order until memory is full, so that each image is decoded once and not in every epoch.

        The second time there is nothing left to do.
        """
        if self._filled:
            return
        self._filled = True
        for index in track(range(len(self)), "read tiles", progress):
            if self._room < 0:
                return
            self[index]

    def reading(self) -> Reading | None:
        """What the tiles are read from in each epoch, None where memory holds them all; known once it is filled."""
        if len(self._kept) == len(self):
            return None
        images = np.array([self.tiles.image_of(index) for index in range(len(self))])
        return Reading(images, [image.picture for image in self.tiles.objects.images])

    def taught(self) -> ClassTable:
        """The classes, with the number of objects that are taught in one tile at least, and groups by these."""
        table = self.tiles.objects.table
        counts = np.array(table.counts) - self.tiles.untaught()
        return table.with_counts(np.repeat(np.arange(len(counts)), counts))

    def classes_of(self, index: int) -> npt.NDArray[np.int64]:
        """The distinct classes that a tile teaches."""
        return np.unique(self.tiles.labels_of(index))

    def pieces(self) -> Iterator[object]:
        """What :func:`~torchgeo_debias.training.checkpoints.fingerprint` takes of them.

        Of pixels and masks, at most 256 tiles spread evenly speak for all.
        """
        objects, spec = self.tiles.objects, self.tiles.spec
        yield [spec.to_json(), objects.table.to_json(), list(objects.bands), objects.oriented, len(self)]
        for image in objects.images:
            yield [image.name, image.source, image.picture.width, image.picture.height]
            yield from (image.boxes, image.labels, image.ignored)
        for index in spread(len(self), 256):
            tile = self[index]
            yield from (tile.image, tile.valid)


class Order(Sampler[Draw]):
    """The tiles of an epoch, which depend on the seed and the number of the epoch alone.

    They are shuffled. Those that are read from files are shuffled twice, since a file is decoded as a whole: their
    images, and the tiles of as many images as are kept decoded at once. So each image is decoded once in an epoch.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        augment: bool,
        repeats: npt.NDArray[np.float64] | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Set it up.

        Args:
            n: Number of tiles, which is also that of an epoch.
            seed: Of the order and the symmetries.
            augment: Whether tiles are turned.
            repeats: (n,) how often each tile is wanted, at least 1; fractions are rounded at random, and of the
                shuffled result the first n are taken, so that an epoch is as long as any. None for once each.
            reading: What the tiles are read from; None where memory holds them.
        """
        self._n, self._seed, self._augment, self._repeats, self._reading = n, seed, augment, repeats, reading
        self._epoch = 0

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self._seed, self._epoch])
        indices = np.arange(self._n)
        if self._repeats is not None:
            whole = np.floor(self._repeats)
            indices = np.repeat(indices, (whole + (rng.random(self._n) < self._repeats - whole)).astype(np.int64))
        order = rng.permutation(indices)[: self._n]
        if self._reading is not None:
            order = _by_image(order, self._reading, rng)
        symmetries = rng.integers(8, size=self._n) if self._augment else np.zeros(self._n, np.int64)
        return (Draw(index, symmetry) for index, symmetry in zip(order.tolist(), symmetries.tolist(), strict=True))

    def set_epoch(self, epoch: int) -> None:
        """Lightning tells the number of the epoch."""
        self._epoch = epoch


def _by_image(order: npt.NDArray[np.int64], reading: Reading, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Shuffled tiles, brought together where their images, in random order, are kept decoded at once."""
    own = reading.images[order]
    shown = rng.permutation(np.unique(own))
    group = np.zeros(len(reading.pictures), np.int64)
    group[shown] = decoded_together([reading.pictures[image] for image in shown.tolist()])
    return order[np.argsort(group[own], kind="stable")]


def repeat_factors(classes: Sequence[npt.NDArray[np.int64]], n_classes: int, threshold: float) -> Floats:
    """How often each tile is repeated (Gupta et al. 2019, LVIS).

    ``r(c) = max(1, sqrt(t / f(c)))`` with ``f(c)`` the share of tiles that hold class c; a tile is repeated as often as
    the class in it that asks for most. Tiles without objects stand once.

    Args:
        classes: The distinct classes of each of N tiles.
        n_classes: Number of classes.
        threshold: The t.

    Returns:
        (N,), at least 1.
    """
    held = np.bincount(np.concatenate([np.zeros(0, np.int64), *classes]), minlength=n_classes) / max(len(classes), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / np.maximum(held, 1e-12)))
    factors: Floats = np.array([of_class[own].max(initial=1.0) for own in classes])
    return factors


def turned(tile: Tile, symmetry: int) -> Tile:
    """A tile under one of the eight symmetries of the square, its boxes with it.

    Args:
        tile: Square.
        symmetry: ``k % 4`` quarter turns from x towards -y (counter-clockwise on the screen), then from ``k = 4`` on
            left and right are exchanged.
    """
    if symmetry == 0:
        return tile
    image, valid = (np.rot90(array, symmetry % 4, axes=(-2, -1)) for array in (tile.image, tile.valid))
    if symmetry >= 4:
        image, valid = image[..., ::-1], valid[..., ::-1]
    return tile._replace(image=image, valid=valid, boxes=transformed(tile.boxes, _affine(symmetry, image.shape[-1])))


def _affine(symmetry: int, side: int) -> Affine:
    """Where :func:`turned` puts points of the pixel frame: x' = a x + b y + c, y' = d x + e y + f."""
    quarter: Affine = (0.0, 1.0, 0.0, -1.0, 0.0, float(side))
    mirror: Affine = (-1.0, 0.0, float(side), 0.0, 1.0, 0.0)
    result: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    for step in [quarter] * (symmetry % 4) + [mirror] * (symmetry >= 4):
        result = _after(step, result)
    return result


def _after(second: Affine, first: Affine) -> Affine:
    a, b, c, d, e, f = second
    g, h, i, j, k, m = first
    return a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f


def loader(tiles: TrainTiles, batch_size: int, order: Order | None) -> DataLoader[Any]:
    """Batches in ``order``, or of all tiles one after the other and as they are."""
    draws: Any = order or [Draw(index) for index in range(len(tiles))]
    return Ahead(
        _Turned(tiles),
        batch_size=batch_size,
        sampler=draws,
        collate_fn=_collate,
        pin_memory=pick_device().type == "cuda",
        # Each pass draws a number that nobody needs. From the common generator it would shift what the stage draws, and
        # in another way where a run goes on from a checkpoint.
        generator=torch.Generator(),
    )


class _Turned(Dataset[tuple[Draw, Tile]]):
    """Tiles as an :class:`Order` wants them."""

    def __init__(self, tiles: TrainTiles) -> None:
        self._tiles = tiles

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, draw: Draw) -> tuple[Draw, Tile]:
        return draw, turned(self._tiles[draw.tile], draw.symmetry)


def _collate(parts: list[tuple[Draw, Tile]]) -> Batch:
    images = np.stack([tile.image for _, tile in parts])
    if images.dtype == np.uint16:  # torch has few uint16 kernels
        images = images.astype(np.int32)
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(np.stack([tile.valid for _, tile in parts])),
        [_objects(tile) for _, tile in parts],
        torch.tensor([draw.tile for draw, _ in parts]),
        torch.tensor([draw.symmetry for draw, _ in parts]),
    )


def _objects(tile: Tile) -> Objects:
    return Objects(
        torch.from_numpy(tile.boxes.astype(np.float32)), torch.from_numpy(tile.labels), torch.from_numpy(tile.ignored)
    )


def spread(n: int, most: int) -> list[int]:
    """At most so many of ``n`` numbers, evenly spaced."""
    return [int(each) for each in np.linspace(0, n - 1, min(n, most)).round()]
