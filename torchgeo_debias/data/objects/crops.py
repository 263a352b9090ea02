"""Object chips for classification, cut from images with boxes."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from torchgeo_debias.boxes.convert import Floats, oriented_to_horizontal
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data._threads import one_torch_thread
from torchgeo_debias.data.chips import Chips, ChipSpec, resize
from torchgeo_debias.data.objects.objects import LabelledImage, ObjectSet
from torchgeo_debias.data.windows import cut_square, square_windows
from torchgeo_debias.errors import DataError
from torchgeo_debias.progress import ProgressCallback, silent, track

_log = logging.getLogger(__name__)


def chips_from_objects(
    objects: ObjectSet,
    spec: ChipSpec,
    *,
    tight: bool = False,
    ignored: bool = False,
    progress: ProgressCallback = silent,
) -> Chips:
    """Cut a chip around every object of a set.

    Images are decoded one after the other, each once, and only their crops are kept. The chips know the image that
    theirs was cut from as their source, so that a split by source keeps all crops of an image together.

    Args:
        objects: Images with boxes; of oriented ones the upright box around them counts.
        spec: How to cut squares, as around the features of a layer; see
            :func:`~torchgeo_debias.data.windows.square_windows`.
        tight: Cut the upright box itself instead, without context, to whole pixels and within the image, and resample
            it to a square whatever its shape; as the crops of DOTA in the released code of debLoRA were cut. Window and
            margin of ``spec`` have no meaning then.
        ignored: Whether objects marked as difficult, or as crowds, get a chip as well.
        progress: Told about the stage "cut chips".

    Returns:
        The chips in the order of the images and of the objects in each, with all classes of the set. Objects on nodata
        alone are left out and told to the log.

    Raises:
        DataError: If there is no object, or an image is damaged.
    """
    chosen = [np.flatnonzero(ignored | ~image.ignored) for image in objects.images]
    ends = np.cumsum([len(own) for own in chosen])
    n = int(ends[-1])
    if not n:
        raise DataError("There is no object to cut a chip around; label some.")
    size = spec.size
    images = np.empty((n, len(objects.bands), size, size), dtype=objects.dtype)
    valid = np.empty((n, size, size), dtype=bool)

    def cut(place: int) -> None:
        image, own = objects.images[place], chosen[place]
        bounds = _upright(image)[own]
        for at, window in enumerate(_windows(image, bounds, spec, tight), start=int(ends[place]) - len(own)):
            images[at], valid[at] = _cut(image, window, size)

    with one_torch_thread():
        pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        try:
            busy = [place for place, own in enumerate(chosen) if len(own)]
            for _ in track(pool.map(cut, busy), "cut chips", progress, len(busy)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
    labels = np.concatenate([image.labels[own] for image, own in zip(objects.images, chosen, strict=True)])
    sources = np.repeat([image.source for image in objects.images], [len(own) for own in chosen])
    if spec.gsd is None:
        spec = replace(spec, gsd=objects.gsd)
    if tight:
        spec = replace(spec, window=None, margin=0.0)
    table = ClassTable.from_labels(labels, objects.table.names)
    chips = Chips(images, valid, labels, sources, table, spec, objects.bands)
    seen = valid.any(axis=(1, 2))
    if not seen.all():
        _log.warning("Left out %d objects that lie on nodata alone.", int((~seen).sum()))
        chips = chips.subset(np.flatnonzero(seen))
    return chips


def _upright(image: LabelledImage) -> Floats:
    return oriented_to_horizontal(image.boxes) if image.boxes.shape[1] == 5 else image.boxes


def _windows(image: LabelledImage, bounds: Floats, spec: ChipSpec, tight: bool) -> npt.NDArray[np.int64]:
    """First column and row, width and height (N, 4) of what is cut."""
    if not tight:
        squares = square_windows(bounds, spec, image.picture.gsd)
        return squares[:, [0, 1, 2, 2]]
    edge = np.array([image.picture.width, image.picture.height])
    # A box that only touches the image from outside still shows one pixel of it.
    first = np.clip(np.floor(bounds[:, :2]), 0, edge - 1)
    last = np.clip(np.ceil(bounds[:, 2:]), first + 1, edge)
    return np.column_stack([first, last - first]).astype(np.int64)


def _cut(
    image: LabelledImage, window: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    column, row, width, height = (int(value) for value in window)
    if width == height:
        return cut_square(image.picture.read, np.array([column, row, width]), size)
    return resize(*image.picture.read(column, row, width, height), size)
