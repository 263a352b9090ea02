"""Images with boxes round their objects, and sets of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.convert import Floats, canonical, checked, horizontal_to_oriented, oriented_to_horizontal
from torchgeo_debias.boxes.overlap import area, intersection
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.objects.picture import Picture
from torchgeo_debias.data.splits import split_sources
from torchgeo_debias.errors import DataError

_NAMELESS = re.compile(r"band_\d+")

_DIGITS = 6

MIN_SIDE = 1e-6
"""Pixels: a box with a shorter side has no area."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with its objects.

    Attributes:
        name: Unique in its set.
        source: What it was cut from: images with equal sources stay together when a set is split.
        picture: The pixels.
        boxes: (N, 4) or (N, 5) float64, pixel frame of the picture, see :mod:`torchgeo_debias.boxes`; all of some
            area, oriented ones made canonical.
        labels: (N,) int64 class ids; 0 for ignored objects of no known class.
        ignored: (N,) bool, objects that are neither taught nor counted nor taken for background: difficult ones,
            crowds, remains of cut ones.
        ground: What it shows of the earth, a polygon in one CRS of all images of its set, see
            :func:`~torchgeo_debias.data.objects.ground.ground_of`; None where unknown.
    """

    name: str
    source: str
    picture: Picture
    boxes: Floats
    labels: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    ground: Any = None

    def __post_init__(self) -> None:
        boxes = checked(self.boxes)
        object.__setattr__(self, "boxes", canonical(boxes) if boxes.shape[1] == 5 else boxes)
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64))
        object.__setattr__(self, "ignored", np.asarray(self.ignored, np.bool_))
        n = len(self.boxes)
        if self.labels.shape != (n,) or self.ignored.shape != (n,):
            raise DataError(
                f"The objects of {self.name} do not belong together: {n} boxes, {len(self.labels)} labels and "
                f"{len(self.ignored)} flags."
            )
        if (flat := is_flat(self.boxes)).any():
            first = int(flat.argmax())
            raise DataError(f"Box {first} of {self.name} has no area: {self.boxes[first].tolist()}; remove it.")


@dataclass(frozen=True, eq=False)
class ObjectSet:
    """Images with objects of one table of classes.

    Attributes:
        images: At least one; equal in number and order of their bands and in dtype. Bands of other names are other
            bands; ``band_1`` and the like are no names.
        table: The classes with the counts of the objects that are not ignored.
        oriented: Whether boxes are oriented, (N, 5), or horizontal, (N, 4).
    """

    images: tuple[LabelledImage, ...]
    table: ClassTable
    oriented: bool

    def __post_init__(self) -> None:
        if not self.images:
            raise DataError("A set of objects needs at least one image.")
        names = [image.name for image in self.images]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"Images need names of their own, but {twice} stands more than once.")
        columns = 5 if self.oriented else 4
        named: dict[int, LabelledImage] = {}  # the first image that has a name for the band at a position
        for image in self.images:
            _check_alike(image, self.images[0])
            for position, band in enumerate(image.picture.bands):
                if not _NAMELESS.fullmatch(band):
                    _check_alike(image, named.setdefault(position, image))
            if image.boxes.shape[1] != columns:
                raise DataError(
                    f"The boxes of {image.name} have {image.boxes.shape[1]} numbers; "
                    f"{'oriented' if self.oriented else 'horizontal'} ones have {columns}."
                )
            if len(image.labels) and not 0 <= image.labels.min() <= image.labels.max() < len(self.table.names):
                raise DataError(
                    f"{image.name} has objects of class {image.labels.min()} to {image.labels.max()}, but there are "
                    f"{len(self.table.names)} classes, counted from 0."
                )

    @classmethod
    def of(cls, images: Sequence[LabelledImage], names: Sequence[str], *, oriented: bool) -> ObjectSet:
        """A set with the objects that are not ignored counted into a table of the classes ``names``.

        Raises:
            DataError: If the images do not go together, or a label is no class.
        """
        labels = _taught(images)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise DataError(
                f"There are objects of class {labels.min()} to {labels.max()}, but {len(names)} class names; ids count "
                "from 0."
            )
        return cls(tuple(images), ClassTable.from_labels(labels, names), oriented)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bands(self) -> tuple[str, ...]:
        """Name of each band."""
        return self.images[0].picture.bands

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.images[0].picture.dtype

    @property
    def gsd(self) -> float | None:
        """Metres per pixel, None where it is unknown of an image or they differ by more than 1 %."""
        known = [image.picture.gsd for image in self.images if image.picture.gsd is not None]
        if len(known) < len(self.images) or max(known) > 1.01 * min(known):
            return None
        return float(np.median(known))

    def subset(self, indices: npt.NDArray[np.intp] | Sequence[int]) -> ObjectSet:
        """The images at ``indices``; the table keeps its classes and counts the subset."""
        images = tuple(self.images[int(i)] for i in indices)
        return replace(self, images=images, table=self.table.with_counts(_taught(images)))

    def horizontal(self) -> ObjectSet:
        """The upright boxes round oriented ones; a set of horizontal boxes stays as it is."""
        if not self.oriented:
            return self
        images = tuple(replace(image, boxes=oriented_to_horizontal(image.boxes)) for image in self.images)
        return replace(self, images=images, oriented=False)

    def split(self, share: float, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Split into a training and a held-out part, whole sources at a time, objects of every class alike.

        Images without objects are shared out like a class of their own. See
        :func:`~torchgeo_debias.data.splits.split_sources`: a class that can spare no source stays whole in training.

        Args:
            share: Share of the objects of each class to hold out, ``0 < share < 1``.
            seed: Of the order in which sources are tried.

        Returns:
            Ascending indices of the images to train on and of those held out; each image is one or the other, and
            nothing is held out where no class can spare a source, as when all images come from one.

        Raises:
            ConfigError: If ``share`` is not between 0 and 1.
        """
        empty = np.array([len(self.table.names)], np.int64)
        taught = [image.labels[~image.ignored] for image in self.images]
        labels = [own if len(own) else empty for own in taught]
        owners = np.repeat(np.arange(len(self)), [len(own) for own in labels])
        sources = np.asarray([image.source for image in self.images])
        held = split_sources(np.concatenate(labels), sources[owners], share, seed)
        out = np.zeros(len(self), dtype=bool)
        out[owners] = held
        return np.flatnonzero(~out), np.flatnonzero(out)


def is_flat(boxes: Floats) -> npt.NDArray[np.bool_]:
    """Which boxes (N, 4) or (N, 5) have no area, (N,)."""
    sides = boxes[:, 2:4] - boxes[:, :2] if boxes.shape[1] == 4 else boxes[:, 2:4]
    flat: npt.NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) <= MIN_SIDE
    return flat


def first_of_each(boxes: Floats, labels: npt.NDArray[np.int64], ignored: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Objects of an image without those that stand twice, with equal boxes and labels.

    Args:
        boxes: (N, 4) or canonical (N, 5), pixels.
        labels: (N,) class ids.
        ignored: (N,); of an object that stands twice the one that is not ignored stays.

    Returns:
        Ascending positions of those to keep.
    """
    order = np.argsort(ignored, kind="stable")
    rows = np.column_stack([boxes.round(_DIGITS), labels])[order]
    return np.sort(order[np.unique(rows, axis=0, return_index=True)[1]])


def visible_share(boxes: Floats, windows: Floats) -> Floats:
    """How much of each box lies in a window, as a share of the area of the box, exactly.

    Args:
        boxes: (N, 4) or (N, 5), all of some area.
        windows: Upright rectangles, (N, 4) or (1, 4), in the same frame.

    Returns:
        (N,), 0 to 1.
    """
    frames = windows if boxes.shape[1] == 4 else horizontal_to_oriented(windows)
    share: Floats = np.clip(intersection(boxes, frames) / area(boxes), 0.0, 1.0)
    return share


def _check_alike(image: LabelledImage, other: LabelledImage) -> None:
    """Refuse images whose pixels do not mean the same, as far as is known."""
    one, two = image.picture, other.picture
    alike = len(one.bands) == len(two.bands) and one.dtype == two.dtype
    turned = one.bands != two.bands and sorted(one.bands) == sorted(two.bands)
    if alike and not turned and all(map(_same_band, one.bands, two.bands)):
        return
    raise DataError(
        f"All images must be alike, but {image.name} has the bands {', '.join(one.bands)} of {one.dtype} and "
        f"{other.name} has {', '.join(two.bands)} of {two.dtype}; choose those that all have with bands=, or leave "
        "out the images that differ."
    )


def _same_band(one: str, other: str) -> bool:
    return one.lower() == other.lower() or any(_NAMELESS.fullmatch(name) for name in (one, other))


def _taught(images: Sequence[LabelledImage]) -> npt.NDArray[np.int64]:
    """Class ids of all objects that are not ignored."""
    labels = [image.labels[~image.ignored] for image in images]
    return np.concatenate(labels) if labels else np.zeros(0, np.int64)
