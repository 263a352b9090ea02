"""The data of a recipe: what is there, looked at without decoding a pixel, and the chips of each part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.folders import list_sources, read_folder
from torchgeo_debias.data.images import read_header
from torchgeo_debias.data.objects.crops import chips_from_objects
from torchgeo_debias.data.objects.dota import read_dota
from torchgeo_debias.data.objects.objects import ObjectSet
from torchgeo_debias.data.splits import split_sources
from torchgeo_debias.errors import DataError
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.recipes.recipe import DataFacts, Part


@dataclass(frozen=True)
class Found:
    """What a part holds.

    Attributes:
        counts: Chips of each class.
        bands: How many bands the images have.
        dtype: Of their pixels.
        sources: How many images, or places, chips come from.
    """

    counts: dict[str, int]
    bands: int
    dtype: str
    sources: int


def folders_of(facts: DataFacts, root: Path, part: Part) -> list[Path]:
    """The folders in which a part lies; none where it is held out of the training part."""
    place: Any = facts.parts.get(part)
    if place is None:
        return []
    return [root / place] if isinstance(place, str) else [root / place["images"], root / place["labels"]]


def look(facts: DataFacts, root: Path, part: Part, progress: ProgressCallback = silent) -> Found:
    """What a part holds, by its file names, label files and the headers of images.

    Raises:
        DataError: If it is missing, empty, damaged or has other classes.
    """
    if facts.form == "dota":
        objects = _objects(facts, root, part, progress)
        taken = [image.labels[facts.difficult | ~image.ignored] for image in objects.images]
        table = ClassTable.from_labels(np.concatenate(taken), objects.table.names)
        counts = dict(zip(table.names, table.counts, strict=True))
        sources = {image.source for image in objects.images}
        return Found(counts, len(objects.bands), str(objects.dtype), len(sources))
    (folder,) = folders_of(facts, root, part)
    files = list_sources(folder)
    names = [file.split("/")[0] for file in files]
    counted = Counter(names)
    _check_known(facts, folder, counted)
    first = {name: file for name, file in zip(reversed(names), reversed(files), strict=True)}
    headers = [read_header(folder / file) for file in first.values()]
    kinds = {(len(header.bands), str(header.dtype)) for header in headers}
    if len(kinds) > 1:
        raise DataError(f"Images in {folder} are not alike: some have {min(kinds)}, others {max(kinds)}.")
    ((bands, dtype),) = kinds
    wanted = list(facts.classes or sorted(counted))
    return Found({name: counted[name] for name in wanted}, bands, dtype, len(set(_sources(facts, files))))


def read_parts(
    facts: DataFacts, root: Path, size: int, seed: int, progress: ProgressCallback = silent
) -> dict[Part, Chips]:
    """The chips of all parts, with the classes and groups of the recipe.

    No source, see :class:`~torchgeo_debias.recipes.recipe.DataFacts`, is in two of the parts that were split here.

    Args:
        facts: Of the recipe.
        root: The folder of the data.
        size: Side of a chip, pixels.
        seed: Of the validation part that is held out, where there is none.
        progress: Told about what is read.

    Raises:
        DataError: If a part is missing or not what it should be.
    """
    read = _dota_parts if facts.form == "dota" else _scene_parts
    parts = read(facts, root, size, seed, progress)
    names = parts["train"].table.names
    for part, chips in parts.items():
        if facts.bands is not None and len(chips.bands) != len(facts.bands):
            raise DataError(
                f"The {part} part of {facts.name} must have the {len(facts.bands)} bands {', '.join(facts.bands)}, but "
                f"it has {len(chips.bands)}."
            )
        table = ClassTable.from_labels(chips.labels, names)
        parts[part] = replace(
            chips,
            bands=facts.bands or chips.bands,
            table=table if facts.grouped is None else table.with_groups(facts.grouped),
        )
    return parts


def _scene_parts(facts: DataFacts, root: Path, size: int, seed: int, progress: ProgressCallback) -> dict[Part, Chips]:
    classes: Sequence[str] | None = None if facts.classes is None else list(facts.classes)
    parts: dict[Part, Chips] = {}
    for part in ("train", "validation", "test"):
        for folder in folders_of(facts, root, part):
            chips = read_folder(folder, size, classes=classes, progress=progress)
            parts[part] = replace(chips, sources=np.asarray(_sources(facts, chips.sources.tolist())))
            classes = chips.table.names
    if "validation" not in parts:
        chips = parts["train"]
        held = split_sources(chips.labels, chips.sources, facts.share, seed)
        parts["validation"] = chips.subset(np.flatnonzero(held))
        parts["train"] = chips.subset(np.flatnonzero(~held))
    return parts


def _dota_parts(facts: DataFacts, root: Path, size: int, seed: int, progress: ProgressCallback) -> dict[Part, Chips]:
    parts: dict[Part, ObjectSet] = {
        part: _objects(facts, root, part, progress) for part in ("train", "validation", "test") if part in facts.parts
    }
    if "validation" not in parts:
        # Before anything is cut, so that no chip is in memory twice.
        kept, held = parts["train"].split(facts.share, seed)
        parts["validation"], parts["train"] = parts["train"].subset(held), parts["train"].subset(kept)
    return {
        part: chips_from_objects(objects, ChipSpec(size), tight=facts.tight, ignored=facts.difficult, progress=progress)
        for part, objects in parts.items()
    }


def _objects(facts: DataFacts, root: Path, part: Part, progress: ProgressCallback) -> ObjectSet:
    images, labels = folders_of(facts, root, part)
    names = None if facts.classes is None else list(facts.classes)
    return read_dota(images, labels, names=names, progress=progress)


def _check_known(facts: DataFacts, folder: Path, counted: Counter[str]) -> None:
    foreign = sorted(set(counted) - set(facts.classes or counted))
    if foreign:
        raise DataError(f"{folder} has the class {foreign[0]!r}, which is none of {', '.join(facts.classes or ())}.")


def _sources(facts: DataFacts, files: Sequence[str]) -> list[str]:
    """What each file must stay together with."""
    if facts.source is None:
        return list(files)
    pattern = re.compile(facts.source)
    found = [pattern.fullmatch(Path(file).name) for file in files]
    return [
        f"{file.split('/')[0]}/{match[1]}" if match and match[1] is not None else file
        for file, match in zip(files, found, strict=True)
    ]
