"""Tiles: images with objects cut to the one size that a detector is trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.convert import Floats, oriented_to_horizontal, to_corners
from torchgeo_debias.data.chips import LARGEST_SIZE, LARGEST_WINDOW
from torchgeo_debias.data.objects.objects import LabelledImage, ObjectSet, visible_share
from torchgeo_debias.data.windows import cut_square
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

_ROUNDING = 1e-6
"""By so much a share may miss what is asked for: that of a whole box need not come out as 1."""

_MIN_SIDE = 16
_MAX_SCALE = 16

_SAMPLES = (np.arange(16) + 0.5) / 16


@dataclass(frozen=True)
class TileSpec:
    """How tiles are cut.

    Attributes:
        size: Side of a tile as the model sees it, pixels.
        overlap: Least share of a tile's side that neighbours have in common.
        scale: Model pixels per image pixel, where ``gsd`` or that of the image is unknown.
        gsd: Metres per model pixel; None for the same scale everywhere.
        min_visible: Objects of which a smaller share of the area lies in a tile are ignored there.
    """

    size: int
    overlap: float = 0.25
    scale: float = 1.0
    gsd: float | None = None
    min_visible: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool):
            raise ConfigError(f"The size of tiles is a whole number of pixels; received {self.size!r}.")
        if not 8 <= self.size <= LARGEST_SIZE:
            raise ConfigError(f"Tiles must be 8 to {LARGEST_SIZE} pixels wide; received {self.size}.")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"The overlap of tiles is a share of their side below 1; received {self.overlap}.")
        if not 0 < self.scale < math.inf or (self.gsd is not None and not 0 < self.gsd < math.inf):
            raise ConfigError(f"Scale and resolution must be positive; received {self.scale} and {self.gsd}.")
        if not 0 < self.min_visible <= 1:
            raise ConfigError(f"The least visible share lies between 0 and 1; received {self.min_visible}.")

    def side(self, gsd: float | None) -> int:
        """Side of a tile in pixels of an image with ``gsd`` metres per pixel.

        A whole number, so that a tile begins and ends with a pixel; boxes are scaled by ``size / side`` exactly.

        Raises:
            ConfigError: If the image is so coarse that a tile would hold less than 16 of its pixels a side (or less
                than ``size``, where that is smaller), or show each one more than 16 times as large; or so fine that it
                would hold more than 32768.
        """
        scale = gsd / self.gsd if gsd and self.gsd else self.scale
        if self.size / scale > LARGEST_WINDOW:
            raise ConfigError(
                f"A tile of {self.size} pixels would show {self.size / scale:.3g} pixels of the image a side, at most "
                f"{LARGEST_WINDOW} can be read: choose a finer resolution for the tiles, or coarser images."
            )
        side = round(self.size / scale)
        if side < min(_MIN_SIDE, self.size) or scale > _MAX_SCALE:
            how = f"at {self.gsd:g} m per pixel of images of {gsd:g} m" if gsd and self.gsd else f"at scale {scale:g}"
            raise ConfigError(
                f"Tiles of {self.size} pixels {how} per pixel would show {self.size / scale:.3g} pixels of an image a "
                f"side, {scale:.3g} times as large; tiles must hold {_MIN_SIDE} or more, at most {_MAX_SCALE} times as "
                "large: choose a coarser resolution for the tiles, or finer images."
            )
        return side

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TileSpec:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


class Tile(NamedTuple):
    """A square cut from an image, with the objects that are seen in it.

    Attributes:
        image: (C, S, S) in the dtype of the image, 0 where not valid.
        valid: (S, S) bool, False on nodata and beyond the image.
        boxes: (N, 4) or (N, 5) float64 in pixels of the tile; whole boxes, which may stick out.
        labels: (N,) int64.
        ignored: (N,) bool, as in :class:`~torchgeo_debias.data.objects.objects.LabelledImage`; also where too little of
            an object is seen.
        image_index: Of the image in its set.
        window: First column, first row and side in pixels of the image.
    """

    image: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    boxes: Floats
    labels: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    image_index: int
    window: tuple[int, int, int]


class Shown(NamedTuple):
    """The objects that reach into a tile, in the order of its boxes.

    Attributes:
        objects: (n,) int64, their numbers, counted over all images of the set.
        share: (n,) how much of each lies in the tile, 0 to 1.
    """

    objects: npt.NDArray[np.int64]
    share: Floats


class _Cut(NamedTuple):
    """A tile before its pixels are read.

    Attributes:
        image_index: Of the image in its set.
        window: First column, first row and side, pixels of the image.
        items: (n,) positions in the image of the objects that reach into the tile.
        ignored: (n,) bool.
        share: (n,) how much of each object lies in the tile.
    """

    image_index: int
    window: tuple[int, int, int]
    items: npt.NDArray[np.intp]
    ignored: npt.NDArray[np.bool_]
    share: Floats


class ObjectTiles:
    """All tiles of a set, in the order of the images, from the top left to the bottom right; read when asked for.

    The tiles of an image cover each of its pixels and lie on a grid that its size and the spec decide; an image that
    fits into one tile is one tile, padded on the right and below. An object of which too little lies in a tile, or
    too little on valid pixels, is ignored there; one of which nothing does is not in the tile.
    """

    def __init__(self, objects: ObjectSet, spec: TileSpec, keep_empty: float = 1.0, seed: int = 0) -> None:
        """Lay the grids out; no pixel is read.

        Args:
            objects: What to cut.
            spec: How to cut.
            keep_empty: Share of the tiles without any object to teach that is kept.
            seed: Of the choice of these.

        Raises:
            ConfigError: If ``keep_empty`` is not between 0 and 1.
        """
        if not 0 <= keep_empty <= 1:
            raise ConfigError(f"The share of empty tiles to keep lies between 0 and 1; received {keep_empty}.")
        self.objects, self.spec = objects, spec
        cuts = [cut for i, image in enumerate(objects.images) for cut in _cuts(i, image, spec)]
        empty = np.flatnonzero([cut.ignored.all() for cut in cuts])
        dropped = np.random.default_rng(seed).permutation(empty)[round(keep_empty * len(empty)) :]
        self._cuts = [cuts[i] for i in np.setdiff1d(np.arange(len(cuts)), dropped)]
        self._before = np.cumsum([0, *(len(image.labels) for image in objects.images)])

    def __len__(self) -> int:
        return len(self._cuts)

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))

    def labels_of(self, index: int) -> npt.NDArray[np.int64]:
        """Class ids of the objects that the tile teaches, without reading it (and so without regard to nodata)."""
        cut = self._cuts[index]
        labels: npt.NDArray[np.int64] = self.objects.images[cut.image_index].labels[cut.items[~cut.ignored]]
        return labels

    def shown(self, index: int) -> Shown:
        """Which objects a tile shows, ignored ones too, without reading it."""
        cut = self._cuts[index]
        return Shown(self._before[cut.image_index] + cut.items, cut.share)

    def image_of(self, index: int) -> int:
        """Number of the image that the tile is cut from, without reading it."""
        image: int = self._cuts[index].image_index
        return image

    def untaught(self) -> npt.NDArray[np.int64]:
        """How many objects of each class (classes,) are to be taught, but are ignored in every tile.

        Those larger than the tiles are, for one. No pixel is read, so objects on nodata are not among them.
        """
        left = [~image.ignored for image in self.objects.images]
        for cut in self._cuts:
            left[cut.image_index][cut.items[~cut.ignored]] = False
        labels = [image.labels[own] for image, own in zip(self.objects.images, left, strict=True)]
        return np.bincount(np.concatenate(labels), minlength=len(self.objects.table.names)).astype(np.int64)

    def __getitem__(self, index: int) -> Tile:
        """Read one tile and nothing but its window.

        Raises:
            IndexError: If there is no such tile.
            DataError: If the image cannot be read.
        """
        cut = self._cuts[index]
        image = self.objects.images[cut.image_index]
        pixels, valid = cut_square(image.picture.read, np.asarray(cut.window), self.spec.size)
        boxes = _placed(image.boxes[cut.items], cut.window, self.spec.size)
        ignored = cut.ignored
        if not valid.all():
            seen = cut.share - _hidden(boxes, valid, _part(image, cut.window) * (self.spec.size / cut.window[2]))
            ignored = ignored | (seen < self.spec.min_visible - _ROUNDING)
        return Tile(pixels, valid, boxes, image.labels[cut.items], ignored, cut.image_index, cut.window)


def _starts(length: int, side: int, overlap: float) -> npt.NDArray[np.int64]:
    """Where tiles begin along one axis: evenly spread from end to end, none beyond the image unless it is the first."""
    if length <= side:
        return np.zeros(1, np.int64)
    # Of whole pixels, so that rounding down leaves no two neighbours further apart.
    step = max(math.floor(side * (1 - overlap) + 1e-9), 1)
    return np.linspace(0, length - side, math.ceil((length - side) / step) + 1).astype(np.int64)


def _cuts(index: int, image: LabelledImage, spec: TileSpec) -> Iterator[_Cut]:
    picture = image.picture
    side = spec.side(picture.gsd)
    columns, rows = _starts(picture.width, side, spec.overlap), _starts(picture.height, side, spec.overlap)
    bounds = oriented_to_horizontal(image.boxes) if image.boxes.shape[1] == 5 else image.boxes
    for row in rows.tolist():
        near = np.flatnonzero((bounds[:, 1] < row + side) & (bounds[:, 3] > row))
        for column in columns.tolist():
            items = near[(bounds[near, 0] < column + side) & (bounds[near, 2] > column)]
            window = column, row, side
            # What sticks out of the image cannot be seen in the padding either.
            here = np.array([[column, row, column, row]]) + np.concatenate([[0.0, 0.0], _part(image, window)])
            share = visible_share(image.boxes[items], here)
            items, share = items[share > 0], share[share > 0]
            yield _Cut(index, window, items, image.ignored[items] | (share < spec.min_visible - _ROUNDING), share)


def _part(image: LabelledImage, window: tuple[int, int, int]) -> Floats:
    """Width and height of the part of a window that lies on the image, pixels of the image."""
    column, row, side = window
    return np.array([min(image.picture.width - column, side), min(image.picture.height - row, side)], np.float64)


def _placed(boxes: Floats, window: tuple[int, int, int], size: int) -> Floats:
    """Boxes of an image in the pixels of a tile."""
    placed = boxes.copy()
    placed[:, :2] -= window[:2]
    if boxes.shape[1] == 4:
        placed[:, 2:4] -= window[:2]
    placed[:, :4] *= size / window[2]
    return placed


def _hidden(boxes: Floats, valid: npt.NDArray[np.bool_], part: Floats) -> Floats:
    """Share of each box that lies on pixels without data, by 256 points in it; those off the image do not count.

    Args:
        boxes: In pixels of the tile.
        valid: (S, S).
        part: Width and height of what the tile shows of the image, pixels of the tile.
    """
    corner, along, _, across = to_corners(boxes).swapaxes(0, 1)[:, :, None, None]
    u, v = _SAMPLES[:, None, None], _SAMPLES[None, :, None]
    points = corner + u * (along - corner) + v * (across - corner)
    inside = ((points >= 0) & (points < part)).all(axis=-1)
    x, y = np.clip(points, 0, len(valid) - 1).astype(np.int64).transpose(3, 0, 1, 2)
    hidden: Floats = (inside & ~valid[y, x]).mean(axis=(1, 2))
    return hidden
