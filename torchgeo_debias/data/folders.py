"""Chips from a folder of labelled images: one folder a class, whole images, one size."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data._threads import one_torch_thread
from torchgeo_debias.data.chips import Chips, ChipSpec, resize
from torchgeo_debias.data.images import ImageArray, read_image
from torchgeo_debias.data.splits import split_sources
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.progress import ProgressCallback, silent, track

Split = Literal["train", "test"]

TEST_SHARE = 0.2
"""Share of each class that is set aside in a folder without splits."""

_SPLITS = ("train", "val", "test")
_SIDECARS = (".aux.xml", ".csv", ".json", ".txt", ".xml", "thumbs.db")


def read_folder(
    root: Path,
    size: int,
    *,
    split: Split | None = None,
    bands: Sequence[int] | None = None,
    seed: int = 0,
    test_share: float = TEST_SHARE,
    classes: Sequence[str] | None = None,
    crop: int | None = None,
    progress: ProgressCallback = silent,
) -> Chips:
    """Read a scene folder: every image whole, resampled to a square.

    ``root`` is either ``<split>/<class>/*`` with the split folders ``train``, ``test`` and, if wanted, ``val``, or
    ``<class>/*``. The latter is split by ``seed``, class by class, image by image. Hidden files and side files
    (``.txt``, ``.csv``, ``.json``, ``.xml``, ``.aux.xml``, ``Thumbs.db``) are passed over.

    Images of several sensors or regions may lie in folders of their own within those of the classes,
    ``<class>/<domain>/*``: the names of these folders make the ``domains``.

    Args:
        root: The folder.
        size: Side of a chip, pixels.
        split: Which part to read; None reads all there is. (Read ``root / "val"`` as a folder of its own.)
        bands: Band numbers to read, counted from 1; all but alpha by default.
        seed: Of the split of a folder without split folders.
        test_share: Share of each class that such a split sets aside for testing.
        classes: Class names in the order of the ids, such as those of a trained model; some may be missing in the
            folder. By default the folder names of all splits, sorted.
        crop: Side of a central square taken before resampling, pixels. For sets such as MSTAR, in which the size
            of an image gives its class away.
        progress: Told about the stage "read images".

    Returns:
        Chips with ``spec.window`` the most common longest side of the images in pixels (after ``crop``),
        ``spec.gsd`` the median of the images with map coordinates, and ``sources`` the paths relative to ``root``.

    Raises:
        DataError: If the folder is missing, empty or oddly laid out, if a class folder is empty or not among
            ``classes``, or if an image is damaged or unlike the others.
        ConfigError: If a size or share is out of range.
    """
    spec = ChipSpec(size)
    if crop is not None and crop < 1:
        raise ConfigError(f"The central crop must be at least 1 pixel; received {crop}.")
    root = Path(root)
    files, names = _part(root, split, seed, test_share, classes)
    n = len(files)
    first, _ = _load(files[0][0], size, bands, crop)
    images = np.empty((n, *first.pixels.shape), dtype=first.pixels.dtype)
    valid = np.empty((n, size, size), dtype=bool)
    longest: Counter[int] = Counter()
    gsds: list[float] = []
    with one_torch_thread():
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            loaded = pool.map(lambda file: _load(file[0], size, bands, crop), files)
            for i, (image, side) in enumerate(track(loaded, "read images", progress, n)):
                if (len(image.bands), image.pixels.dtype) != (len(first.bands), first.pixels.dtype):
                    raise DataError(
                        f"All images must be alike, but {files[i][0]} has {len(image.bands)} bands of "
                        f"{image.pixels.dtype} and {files[0][0]} has {len(first.bands)} of {first.pixels.dtype}."
                    )
                images[i], valid[i] = image.pixels, image.valid
                longest[side] += 1
                if image.gsd is not None:
                    gsds.append(image.gsd)
        finally:
            pool.shutdown(cancel_futures=True)

    labels = np.asarray([names.index(name) for _, name in files], dtype=np.int64)
    spec = replace(spec, window=float(_mode(longest)), gsd=float(np.median(gsds)) if gsds else None)
    sources = np.asarray([_relative(path, root) for path, _ in files])
    return Chips(
        images, valid, labels, sources, ClassTable.from_labels(labels, names), spec, first.bands,
        domains=_domains(sources, 2 if has_splits(root) else 1),
    )  # fmt: skip


def list_sources(root: Path, split: Split | None = None, *, seed: int = 0, test_share: float = TEST_SHARE) -> list[str]:
    """What :func:`read_folder` would give as ``sources``, without reading an image."""
    files, _ = _part(Path(root), split, seed, test_share, None)
    return [_relative(path, Path(root)) for path, _ in files]


def centre_crop(image: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """The central square of an image.

    Args:
        image: (..., H, W).
        side: Side of the square, pixels; an axis that is shorter stays as it is.

    Returns:
        A view (..., min(H, side), min(W, side)).
    """
    height, width = image.shape[-2:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return image[..., top : top + side, left : left + side]


def _part(
    root: Path, split: Split | None, seed: int, test_share: float, classes: Sequence[str] | None
) -> tuple[list[tuple[Path, str]], list[str]]:
    files, names = _list_images(root, split, classes)
    if split is not None and not has_splits(root):
        label = np.asarray([names.index(name) for _, name in files], dtype=np.int64)
        held = split_sources(label, np.asarray([_relative(path, root) for path, _ in files]), test_share, seed)
        files = [file for file, out in zip(files, held, strict=True) if out == (split == "test")]
    if not files:
        raise DataError(f"No image is left in the {split} part of {root}: add images or raise the test share.")
    return files, list(names)


def _load(path: Path, size: int, bands: Sequence[int] | None, crop: int | None) -> tuple[ImageArray, int]:
    image = read_image(path, bands)
    pixels, valid = image.pixels, image.valid
    if crop is not None:
        pixels, valid = centre_crop(pixels, crop), centre_crop(valid, crop)
    longest = max(valid.shape)
    pixels, valid = resize(pixels, valid, size)
    return replace(image, pixels=pixels, valid=valid), longest


def _domains(sources: npt.NDArray[np.str_], depth: int) -> npt.NDArray[np.int64] | None:
    """Ids of the folders within those of the classes, at this depth, that images lie in; None where none does."""
    within = ["/".join(source.split("/")[depth:-1]) for source in sources.tolist()]
    return np.unique(within, return_inverse=True)[1] if any(within) else None


def _mode(counts: Counter[int]) -> int:
    return max(counts, key=lambda value: (counts[value], value))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def has_splits(root: Path) -> bool:
    """Whether a scene folder is laid out as ``<split>/<class>/*``."""
    # A class may be called "train" too: split folders are those that hold folders.
    return any(_subfolders(root / name) for name in ("train", "test") if (root / name).is_dir())


def _list_images(
    root: Path, split: Split | None, classes: Sequence[str] | None
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Image files with their class names, sorted, and all class names in the order of the ids."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}; give one with a folder of images for each class.")
    if has_splits(root):
        parts = {p.name: p for p in _subfolders(root)}
        if odd := sorted(set(parts) - set(_SPLITS)):
            raise DataError(
                f"{root} has split folders and also {', '.join(odd)}; beside train, val and test there may be no other."
            )
        if split is not None and split not in parts:
            raise DataError(f"{root} has no folder {split!r}, only {', '.join(sorted(parts))}.")
        wanted = [parts[name] for name in ([split] if split is not None else sorted(parts))]
        found = sorted({folder.name for part in parts.values() for folder in _subfolders(part)})
    else:
        wanted = [root]
        found = [folder.name for folder in _subfolders(root)]
    if not found:
        raise DataError(f"{root} has no class folders; lay it out as <class>/* or <split>/<class>/*.")
    names = list(classes) if classes is not None else found
    files = []
    for folder in (folder for part in wanted for folder in _subfolders(part)):
        if folder.name not in names:
            raise DataError(f"{folder} is none of the classes {', '.join(names)}; rename or remove it.")
        own = _images_of(folder)
        if not own:
            raise DataError(f"The class folder {folder} has no image; add some or remove it.")
        files += [(path, folder.name) for path in own]
    return files, names


def _images_of(folder: Path) -> list[Path]:
    return sorted(
        path
        for part in (folder, *_subfolders(folder))
        for path in part.iterdir()
        if path.is_file() and not path.name.startswith(".") and not path.name.lower().endswith(_SIDECARS)
    )
