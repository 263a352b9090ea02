"""The dry run of a recipe: what is there, what is missing, what is wrong, and what it would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torchgeo_debias.backbones import find_spec, find_weights
from torchgeo_debias.classes import ClassTable, Group
from torchgeo_debias.data.splits import MIN_TRAIN
from torchgeo_debias.errors import ConfigError, DebiasError, WeightsError
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.recipes.estimate import Estimate, estimate
from torchgeo_debias.recipes.parts import Found, folders_of, look
from torchgeo_debias.recipes.recipe import PARTS, Part, Recipe
from torchgeo_debias.training import TrainConfig
from torchgeo_debias.training.starting import check_start

_BANDS = {1: ("band_1",), 3: ("red", "green", "blue")}


@dataclass(frozen=True)
class PartPlan:
    """A part of the data, as expected and as found.

    Attributes:
        chips: How many there are; where it is not there, how many are expected; None if unknown. Where a validation
            part is held out of the training, about how many either of them gets.
        found: By class; null where the part is not there.
        expected: By class, as far as it is known.
    """

    chips: int | None
    found: dict[str, int] | None
    expected: dict[str, int] | None


@dataclass(frozen=True)
class Plan:
    """What a run of a recipe would do.

    Attributes:
        recipe: Its name.
        variant: Its name.
        config: Of the training, all fields.
        chip_size: Pixels.
        parts: Of the data.
        groups: Group of each class; None where it is not known before the data are there.
        weights: Where the backbone's would come from, and under which licence.
        estimate: What it would take; None where the configuration does not go with the data.
        notes: What differs from the recipe, without being wrong.
        missing: What is not there yet, and where to get it.
        problems: What is wrong: the run would fail.
    """

    recipe: str
    variant: str
    config: TrainConfig
    chip_size: int
    parts: dict[Part, PartPlan]
    groups: dict[str, Group] | None
    weights: dict[str, str]
    estimate: Estimate | None
    notes: list[str]
    missing: list[str]
    problems: list[str]

    @property
    def ready(self) -> bool:
        """Whether it can be run."""
        return not self.missing and not self.problems

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "config": self.config.to_json(), "ready": self.ready}


def plan_recipe(
    recipe: Recipe,
    variant: str,
    data: Path | None = None,
    given: Mapping[str, Any] | None = None,
    progress: ProgressCallback = silent,
) -> Plan:
    """Look at what a recipe needs, without decoding an image, loading a weight or writing a file.

    Args:
        recipe: What is to be run.
        variant: Its backbone.
        data: The folder of the data; None if they are not there yet, which is no mistake.
        given: Fields of the configuration that go before those of the recipe.
        progress: Told about what is read.

    Raises:
        ConfigError: If the configuration makes no sense, or there is no such variant.
    """
    config, chip_size = recipe.config(variant, given), recipe.variant(variant).chip_size
    faults = _Faults([], [], [])
    found = _look(recipe, data, faults, progress)
    spec = find_spec(config.backbone)
    where, sentence = find_weights(spec, config.weights)
    if where == "missing":
        faults.missing.append(f"The weights of {spec.name}: {sentence}")
    _check_start(recipe, variant, config, faults)
    parts = _parts(recipe, found)
    counted = None
    try:
        counted = _estimated(recipe, config, chip_size, parts, found)
    except WeightsError as error:  # the library of the backbone is not installed, which was said
        faults.notes.append(f"Nothing could be estimated: {error}")
    except DebiasError as error:
        faults.problems.append(str(error))
    return Plan(
        recipe.name, variant, config, chip_size, parts, _groups(recipe, found),
        {"availability": where, "where": sentence, "licence": spec.licence}, counted, *faults,
    )  # fmt: skip


def check_ready(plan: Plan) -> None:
    """Refuse to run a recipe that would fail.

    Raises:
        ConfigError: With the first thing that is wrong or missing.
    """
    if not plan.ready:
        faults = plan.problems + plan.missing
        more = f" (and {len(faults) - 1} more: see --dry-run)" if len(faults) > 1 else ""
        raise ConfigError(f"The recipe {plan.recipe}/{plan.variant} cannot be run{more}: {faults[0]}")


class _Faults(NamedTuple):
    notes: list[str]
    missing: list[str]
    problems: list[str]


def _look(recipe: Recipe, data: Path | None, faults: _Faults, progress: ProgressCallback) -> dict[Part, Found]:
    """What there is of each part."""
    facts, found = recipe.data, {}
    if data is None:
        faults.missing.append(f"The data {facts.name}: {facts.where} Lay them out as {facts.layout}, and give --data.")
        return {}
    for part in PARTS:
        folders = folders_of(facts, data, part)
        absent = [folder for folder in folders if not folder.is_dir()]
        if absent:
            faults.problems.append(f"There is no folder {absent[0]}: lay the data out as {facts.layout}.")
        elif folders:
            try:
                found[part] = look(facts, data, part, progress)
            except DebiasError as error:
                faults.problems.append(str(error))
    for part, seen in found.items():
        _compare(recipe, part, seen, faults)
    if len({(seen.bands, seen.dtype) for seen in found.values()}) > 1:
        kinds = ", ".join(f"{part}: {seen.bands} bands of {seen.dtype}" for part, seen in found.items())
        faults.problems.append(f"The parts of the data are not alike ({kinds}).")
    return found


def _check_start(recipe: Recipe, variant: str, config: TrainConfig, faults: _Faults) -> None:
    try:
        check_start(config.start)
    except DebiasError as error:
        faults.problems.append(f"The training cannot start from {config.start}: {error}")
    if config.start is None and recipe.after is not None:
        faults.missing.append(
            f"The model to start from: run the recipe {recipe.after}/{variant} first, and give it with --start."
        )


def _compare(recipe: Recipe, part: Part, seen: Found, faults: _Faults) -> None:
    facts = recipe.data
    for name, count in seen.counts.items():
        if part == "train" and count < MIN_TRAIN:
            faults.problems.append(f"The train part has {count or 'no'} {name}: each class needs {MIN_TRAIN} or more.")
        elif not count:
            faults.notes.append(f"The {part} part has no {name}.")
    if facts.bands is not None and seen.bands != len(facts.bands):
        faults.problems.append(f"The {part} part has {seen.bands} bands, but {len(facts.bands)} are expected.")
    if facts.dtype is not None and seen.dtype != facts.dtype:
        faults.problems.append(f"The {part} part holds {seen.dtype} pixels, but {facts.dtype} are expected.")
    expected: dict[str, int] = facts.counts.get(part, {})
    odd = [name for name, count in expected.items() if seen.counts.get(name, 0) != count]
    if odd:
        told = ", ".join(f"{name} {seen.counts.get(name, 0)}, not {expected[name]}" for name in odd)
        faults.notes.append(f"The {part} part has other counts than are known of {facts.name}: {told}.")


def _parts(recipe: Recipe, found: Mapping[Part, Found]) -> dict[Part, PartPlan]:
    facts = recipe.data
    parts: dict[Part, PartPlan] = {}
    for part in PARTS:
        expected = facts.counts.get(part)
        counts = found[part].counts if part in found else None
        known = counts or expected
        parts[part] = PartPlan(None if known is None else sum(known.values()), counts, expected)
    if "validation" not in facts.parts and (whole := parts["train"].chips) is not None:
        held = round(whole * facts.share)
        parts["validation"] = PartPlan(held, None, None)
        parts["train"] = PartPlan(whole - held, parts["train"].found, parts["train"].expected)
    return parts


def _groups(recipe: Recipe, found: Mapping[Part, Found]) -> dict[str, Group] | None:
    if recipe.data.grouped is not None:
        return recipe.data.grouped
    if "train" not in found:
        return None
    table = ClassTable.from_counts(found["train"].counts)
    return dict(zip(table.names, table.groups, strict=True))


def _estimated(
    recipe: Recipe, config: TrainConfig, chip_size: int, parts: Mapping[Part, PartPlan], found: Mapping[Part, Found]
) -> Estimate:
    seen, facts = next(iter(found.values()), None), recipe.data
    count = seen.bands if seen is not None else len(facts.bands or _BANDS[3])
    bands = facts.bands or _BANDS.get(count) or tuple(f"band_{i}" for i in range(1, count + 1))
    scored = [parts[part].chips for part in ("validation", "test")]
    known = [chips for chips in scored if chips is not None]
    return estimate(
        config, chip_size, bands, seen.dtype if seen is not None else facts.dtype or "uint8",
        parts["train"].chips, sum(known) if len(known) == len(scored) else None,
    )  # fmt: skip
