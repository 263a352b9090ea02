"""From options to configuration and chips."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.cli.bands import band_numbers, parse_bands
from torchgeo_debias.cli.objects import outline
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.folders import TEST_SHARE, has_splits, list_sources, read_folder
from torchgeo_debias.data.layers import chips_from_layer
from torchgeo_debias.data.longtail import long_tail
from torchgeo_debias.data.splits import split_apart
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.progress import ProgressCallback
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.detection import DetectConfig

Config = TypeVar("Config", TrainConfig, DetectConfig)


def read_config(kind: type[Config], path: Path | None, **options: Any) -> Config:  # noqa: ANN401 (fields of it)
    """A configuration from an optional JSON file; options that are not None go before it."""
    values: dict[str, Any] = kind().to_json()
    if path is not None:
        _put(values, read_object(path, "configuration", f"fields of {kind.__name__}"))
    _put(values, {name: value for name, value in options.items() if value is not None})
    return kind.from_json(values)


def read_object(path: Path, what: str, content: str) -> dict[str, Any]:
    """A JSON file with one object.

    Args:
        path: The file.
        what: What it is, for sentences.
        content: What is in it.

    Raises:
        ConfigError: If it is no such file.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"Cannot read the {what} {path}: {error}.") from error
    if not isinstance(given, dict):
        raise ConfigError(f"The {what} {path} must be one JSON object with {content}.")
    return given


def grouped(chips: Chips, path: Path | None) -> Chips:
    """Chips with the groups that a JSON file gives to their classes; with their own where there is none.

    Raises:
        ConfigError: If the file is none, misses a class or has an unknown one, or there is no such group.
    """
    if path is None:
        return chips
    groups = read_object(path, "groups", "head, middle or tail for each class")
    return replace(chips, table=chips.table.with_groups(groups))


def _put(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Put what is given in place, within objects field by field."""
    for name, value in given.items():
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if both else value


class TrainingChips(NamedTuple):
    """What a training takes.

    Attributes:
        chips: To train on.
        facts: What the package should remember of them.
        held: Held out for a test, None where nothing is.
        by: What stayed together there.
        left_out: How many are in neither part, see :func:`~torchgeo_debias.data.splits.split_apart`.
    """

    chips: Chips
    facts: dict[str, Any]
    held: Chips | None = None
    by: str = "images"
    left_out: int = 0


def training_chips(
    *,
    data: Path | None,
    rasters: Sequence[Path] | None,
    labels: Path | None,
    class_field: str | None,
    imbalance: float | None,
    seed: int,
    chip_size: int,
    window: float | None,
    window_unit: str | None,
    margin: float | None,
    background: int,
    area: str | None,
    crop: int | None,
    bands: str | None,
    nodata: float | None,
    hold_out: float | None,
    progress: ProgressCallback,
) -> TrainingChips:
    """Chips of a scene folder or of rasters with a layer."""
    if (data is None) == (not rasters):
        raise ConfigError("Give either --data DIR, or --raster FILE with --labels LAYER and --class-field FIELD.")
    ignored: dict[str, Any] = (
        {"--crop": crop}
        if data is None
        else {
            "--labels": labels,
            "--class-field": class_field,
            "--window": window,
            "--window-unit": window_unit,
            "--margin": margin,
            "--background": background or None,
            "--area": area,
            "--nodata": nodata,
        }
    )
    odd = [flag for flag, value in ignored.items() if value is not None]
    if odd:
        raise ConfigError(f"{odd[0]} has no meaning with {'--raster' if data is None else '--data'}: leave it out.")
    if data is not None:
        part = _of_folder(data, chip_size, hold_out, bands=band_numbers(bands), seed=seed, crop=crop, progress=progress)
    else:
        if labels is None or class_field is None:
            raise ConfigError("--raster needs --labels LAYER and --class-field FIELD beside it.")
        if window_unit not in (None, "px", "m"):
            raise ConfigError(f"--window-unit must be px or m; received {window_unit!r}.")
        spec = ChipSpec(chip_size, window, cast(Literal["px", "m"], window_unit or "px"))
        if margin is not None:
            spec = replace(spec, margin=margin)
        chips = chips_from_layer(
            list(rasters or ()), labels, class_field, spec,
            bands=parse_bands(bands), nodata=nodata, background=background, seed=seed,
            area=outline(area, list(rasters or ())), progress=progress,
        )  # fmt: skip
        facts = {"data": ", ".join(path.name for path in rasters or ()), "labels": labels.name}
        part = _apart(TrainingChips(chips, facts), hold_out, seed)
    if imbalance is not None:
        part = part._replace(chips=long_tail(part.chips, imbalance, seed))
        part.facts["imbalance"] = imbalance
    if hold_out is not None:
        part.facts.update(hold_out=hold_out, split_seed=seed)
    return part


def _of_folder(
    data: Path,
    size: int,
    hold_out: float | None,
    *,
    bands: Sequence[int] | None,
    seed: int,
    crop: int | None,
    progress: ProgressCallback,
) -> TrainingChips:
    """The training part of a scene folder, and its test part where one is asked for."""
    if hold_out is not None and has_splits(data):
        raise ConfigError(
            f"{data} has train and test already: leave --hold-out out, and score its test part with evaluate."
        )
    read = partial(
        read_folder, data, size, bands=bands, seed=seed, crop=crop, progress=progress,
        test_share=TEST_SHARE if hold_out is None else hold_out,
    )  # fmt: skip
    chips = read(split="train")
    # What evaluate needs in order to read its images alike, and to know those of the training.
    facts = {
        "data": data.name,
        "crop": crop,
        "bands": bands,
        "split_seed": seed,
        "sources": _digest(chips.sources.tolist()),
    }
    held = None if hold_out is None else read(split="test", classes=chips.table.names)
    return TrainingChips(chips, facts, held)


def _apart(part: TrainingChips, share: float | None, seed: int) -> TrainingChips:
    """Chips of rasters with a share of them held out, block by block of the ground."""
    if share is None:
        return part
    split = split_apart(part.chips, share, seed)
    if not len(split.held):
        raise DataError(
            "No chip can be held out without taking a class its last ones or sharing ground with the training: label "
            "objects further apart, or leave --hold-out out."
        )
    chips = part.chips
    by = f"blocks of ground, {split.windows} chip windows wide"
    return TrainingChips(chips.subset(split.kept), part.facts, chips.subset(split.held), by, len(split.left_out))


def _digest(sources: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(sources)).encode()).hexdigest()[:16]


def _held_apart(data: Path, seed: int, share: float, known: Mapping[str, Any]) -> bool:
    """Whether splitting the folder again gives the training images of a model; other folders hold none of them."""
    if data.name != known["data"] or (data / "test").is_dir():
        return True
    return bool(_digest(list_sources(data, "train", seed=seed, test_share=share)) == known["sources"])


def evaluation_chips(
    package: ModelPackage, data: Path, split: str, bands: str | None, progress: ProgressCallback
) -> Chips:
    """Chips of a scene folder, read as the model's training chips were; splits by the model's own seed."""
    if split not in ("train", "test", "all"):
        raise ConfigError(f"--split must be train, test or all; received {split!r}.")
    known = package.provenance
    seed = int(known.get("split_seed", known["seed"]))
    share = float(known.get("hold_out", TEST_SHARE)) if "sources" in known else TEST_SHARE
    if split != "all" and "sources" in known and not _held_apart(data, seed, share, known):
        raise DataError(
            f"The test part of {data} cannot be told from the images of the training, since its files are not those "
            "that were there then; sort them into the folders train and test, or give --split all."
        )
    chips = read_folder(
        data,
        package.spec.size,
        split=None if split == "all" else cast(Literal["train", "test"], split),
        bands=band_numbers(bands) or known.get("bands"),
        seed=seed,
        test_share=share,
        classes=package.table.names,
        crop=known.get("crop"),
        progress=progress,
    )
    _check_input(chips, package, f"The images in {data}")
    return chips


def labelled_chips(
    package: ModelPackage,
    *,
    data: Path | None,
    rasters: Sequence[Path] | None,
    labels: Path | None,
    class_field: str | None,
    split: str,
    bands: str | None,
    nodata: float | None,
    area: str | None,
    background: int,
    seed: int,
    progress: ProgressCallback,
) -> Chips:
    """Chips of a scene folder, or of rasters with a layer, cut as those of a model were and with its classes.

    Raises:
        ConfigError: If options are missing or do not go together, or the pixels are others than the model takes.
        DataError: If the layer has classes that the model does not know.
    """
    if (data is None) == (not rasters):
        raise ConfigError("Give either --data DIR, or --raster FILE with --labels LAYER and --class-field FIELD.")
    if data is not None:
        idle = {"--labels": labels, "--class-field": class_field, "--area": area, "--nodata": nodata}
        odd = [flag for flag, value in {**idle, "--background": background or None}.items() if value is not None]
        if odd:
            raise ConfigError(f"{odd[0]} has no meaning with --data: leave it out.")
        return evaluation_chips(package, data, split, bands, progress)
    if labels is None or class_field is None:
        raise ConfigError("--raster needs --labels LAYER and --class-field FIELD beside it.")
    paths = list(rasters or ())
    chips = chips_from_layer(
        paths, labels, class_field, package.spec, bands=parse_bands(bands), nodata=nodata, background=background,
        seed=seed, area=outline(area, paths), progress=progress,
    )  # fmt: skip
    _check_input(chips, package, "The rasters")
    known = package.table.names
    foreign = [name for name in chips.table.names if name not in known]
    if foreign:
        raise DataError(
            f"The model does not know the class {foreign[0]!r} of {labels}, only {', '.join(known)}; name another "
            "field or another layer."
        )
    ids = np.array([known.index(name) for name in chips.table.names])[chips.labels]
    none = None if package.table.background is None else known[package.table.background]
    return replace(chips, labels=ids, table=ClassTable.from_labels(ids, known, none))


def _check_input(chips: Chips, package: ModelPackage, what: str) -> None:
    """Refuse chips of other pixels than the model takes."""
    if len(chips.bands) != len(package.bands) or (
        chips.bands != package.bands and set(chips.bands) == set(package.bands)
    ):
        raise ConfigError(
            f"{what} give the bands {', '.join(chips.bands)} but the model takes "
            f"{', '.join(package.bands)}; choose them in this order with --bands."
        )
    if chips.images.dtype != package.dtype:
        raise ConfigError(
            f"{what} hold {chips.images.dtype} values but the model was trained on {package.dtype}; "
            "give images of the same type and scaling."
        )
