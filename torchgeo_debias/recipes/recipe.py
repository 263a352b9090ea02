"""What a recipe is: the data of an experiment, the fields of its training, and the backbones it is done with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from os.path import normpath
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from torchgeo_debias.classes import GROUPS, Group
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields
from torchgeo_debias.training import TrainConfig

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class DataFacts:
    """What data a recipe takes, and what they must be like.

    Attributes:
        name: Of the data set.
        where: Where to get it.
        licence: Of the data.
        form: ``scenes``: folders ``<class>/*`` of images; ``dota``: images with label files in DOTA's form, whose
            objects are cut out.
        layout: How the folder must look, for people.
        parts: Where each of :data:`PARTS` lies within the folder: a path, with the form ``dota`` an object with
            ``images`` and ``labels``. Without ``validation``, a share of the training part is held out, by source.
        share: That share.
        classes: Group of each class, in the order of the class ids; null where any classes will do, in thirds.
        groups: Where these groups are from.
        counts: Chips of each class by part, as far as they are known.
        bands: Names of the bands in their order, null for any.
        dtype: Of the pixels, null for any.
        source: Regular expression of a file name whose first group is what must not be torn apart, such as the place of
            several images; null where every file is on its own.
        tight: With the form ``dota``, see :func:`~torchgeo_debias.data.objects.crops.chips_from_objects`.
        difficult: With the form ``dota``, whether difficult objects count.
    """

    name: str
    where: str
    licence: str
    form: Literal["scenes", "dota"]
    layout: str
    parts: dict[str, Any]
    groups: str
    classes: dict[str, Any] | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    share: float = 0.1
    bands: tuple[str, ...] | None = None
    dtype: str | None = None
    source: str | None = None
    tight: bool = True
    difficult: bool = True

    def __post_init__(self) -> None:
        if not {"train", "test"} <= set(self.parts) <= set(PARTS):
            raise ConfigError(f"data.parts must have train and test, and may have validation; has {[*self.parts]}.")
        keys = {"images", "labels"}
        for name, place in self.parts.items():
            if not (
                isinstance(place, str) if self.form == "scenes" else isinstance(place, dict) and set(place) == keys
            ):
                raise ConfigError(f"data.parts.{name} must be a path, or images and labels with the form dota.")
        folders = [_normal(place) for place in self.parts.values()]
        if len(set(folders)) < len(folders):
            raise ConfigError("Two of data.parts are the same: what is tested on must not have been chosen by.")
        if self.form == "dota" and self.classes is None:
            raise ConfigError("data.classes must name the classes with the form dota.")
        if not 0 < self.share < 1:
            raise ConfigError(f"data.share must lie between 0 and 1; received {self.share}.")
        if self.classes == {}:
            raise ConfigError("data.classes must name at least one class, or be null for any classes.")
        odd = {str(group) for group in (self.classes or {}).values()} - set(GROUPS)
        if odd:
            raise ConfigError(f"data.classes must put each class into one of {', '.join(GROUPS)}; found {min(odd)}.")
        self._check_counts()
        if self.dtype is not None and not _is_dtype(self.dtype):
            raise ConfigError(f"data.dtype must be a type of pixels such as uint8; received {self.dtype!r}.")
        if self.bands is not None and not 0 < len(set(self.bands)) == len(self.bands):
            raise ConfigError(f"data.bands must be null or unique names; received {[*self.bands]}.")
        if self.source is not None and not _groups_of(self.source):
            raise ConfigError(f"data.source must be a regular expression with a group; received {self.source!r}.")

    def _check_counts(self) -> None:
        if odd := set(self.counts) - set(PARTS):
            raise ConfigError(f"data.counts must have the parts {', '.join(PARTS)}; has {min(odd)!r}.")
        for part, known in self.counts.items():
            if not isinstance(known, dict) or not all(type(count) is int and count >= 0 for count in known.values()):
                raise ConfigError(f"data.counts.{part} must have a whole number for each class; received {known!r}.")
            if self.classes is not None and set(known) != set(self.classes):
                raise ConfigError("data.counts must count every class of data.classes.")

    @property
    def grouped(self) -> dict[str, Group] | None:
        """Group of each class, None where they are thirds."""
        return cast("dict[str, Group] | None", self.classes)


@dataclass(frozen=True)
class Variant:
    """A recipe with one backbone.

    Attributes:
        chip_size: Side of the model's input, pixels.
        training: Fields of :class:`~torchgeo_debias.training.TrainConfig` that go before those of the recipe.
        note: For people.
    """

    chip_size: int
    training: dict[str, Any]
    note: str = ""

    def __post_init__(self) -> None:
        ChipSpec(self.chip_size)  # which refuses sizes that make no sense


@dataclass(frozen=True)
class Recipe:
    """An experiment as a file.

    Attributes:
        name: Of the recipe; its file is ``<name>.json``.
        title: In a few words.
        status: What of it is verified, and what is reconstructed.
        data: What it takes.
        training: Fields of :class:`~torchgeo_debias.training.TrainConfig`.
        variants: By name, see :class:`Variant`.
        after: Name of the recipe whose model the training starts from, if any.
    """

    name: str
    title: str
    status: str
    data: DataFacts
    training: dict[str, Any]
    variants: dict[str, Any]
    after: str | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise ConfigError(f"The recipe {self.name} has no variants: it needs at least one backbone.")
        for name in self.variants:
            self.config(name)

    def variant(self, name: str) -> Variant:
        """One of the variants.

        Raises:
            ConfigError: If there is none of that name.
        """
        if name not in self.variants:
            raise ConfigError(
                f"The recipe {self.name} has no variant {name!r}: choose one of {', '.join(self.variants)}."
            )
        return read_fields(Variant, self.variants[name], f"variants.{name}.")

    def config(self, variant: str, given: Mapping[str, Any] | None = None) -> TrainConfig:
        """The configuration of the training; fields that are ``given`` go before those of the recipe.

        Raises:
            ConfigError: If a field is unknown or its value makes no sense.
        """
        fields: dict[str, Any] = {}
        for values in (self.training, self.variant(variant).training, given or {}):
            for name, value in values.items():
                both = isinstance(value, dict) and isinstance(fields.get(name), dict)
                fields[name] = {**fields[name], **value} if both else value
        return TrainConfig.from_json(fields)


def list_recipes() -> list[Recipe]:
    """All recipes that come with the package, by name."""
    found = [entry for entry in files(__package__).iterdir() if entry.name.endswith(".json")]
    return [_parse(entry.read_text(encoding="utf-8"), entry.name) for entry in sorted(found, key=lambda e: e.name)]


def find_recipe(name: str) -> tuple[Recipe, str]:
    """A recipe and the name of one of its variants.

    Args:
        name: ``<recipe>/<variant>``, or the recipe alone for its first variant; in place of the recipe, the path of a
            file ending in ``.json``.

    Raises:
        ConfigError: If there is none, or the file is none.
    """
    stem, _, last = name.rpartition("/")
    path, variant = (stem, last) if stem.endswith(".json") else (name, "")
    if path.endswith(".json"):
        try:
            recipe = _parse(Path(path).read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the recipe {path}: {error}.") from error
    else:
        wanted, _, variant = name.partition("/")
        known = {recipe.name: recipe for recipe in list_recipes()}
        if wanted not in known:
            raise ConfigError(f"There is no recipe {wanted!r}: choose one of {', '.join(known)}, or give a .json file.")
        recipe = known[wanted]
    variant = variant or next(iter(recipe.variants))
    recipe.variant(variant)
    return recipe, variant


def _parse(text: str, where: str) -> Recipe:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The recipe {where} is no JSON: {error}.") from error
    try:
        return read_fields(Recipe, values)
    except ConfigError as error:
        raise ConfigError(f"The recipe {where} is not right: {error}") from error


def _normal(place: Any) -> str:  # noqa: ANN401 (a path, or an object of paths)
    """The same text for the same folders, however they are written."""
    return normpath(place) if isinstance(place, str) else normpath(str(place["images"]))


def _is_dtype(name: str) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return False
    return True


def _groups_of(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error:
        return 0
