"""A recipe from its data to a scored model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.evaluation import Evaluation, evaluate_chips
from torchgeo_debias.package import check_target
from torchgeo_debias.progress import ProgressCallback, silent
from torchgeo_debias.recipes.parts import read_parts
from torchgeo_debias.recipes.plan import Plan, check_ready, plan_recipe
from torchgeo_debias.recipes.recipe import PARTS, Part, Recipe
from torchgeo_debias.training import train
from torchgeo_debias.training.trainer import Trained


@dataclass(frozen=True)
class RecipeRun:
    """What running a recipe leaves.

    Attributes:
        plan: What was planned.
        trained: The model, whose metrics have the scores, and the time of each stage.
        scores: On the validation part, by which settings may be chosen, and on the test part, which is for reporting.
    """

    plan: Plan
    trained: Trained
    scores: dict[Part, Evaluation]


def run_recipe(
    recipe: Recipe,
    variant: str,
    data: Path,
    out: Path,
    given: Mapping[str, Any] | None = None,
    *,
    checkpoints: Path | None = None,
    progress: ProgressCallback = silent,
) -> RecipeRun:
    """Train the model of a recipe on the training part of its data, and score it on the other two.

    Names of classes and labels reach the heads, the losses and the calibration; features are made of pixels alone.

    Args:
        recipe: What is to be run.
        variant: Its backbone.
        data: The folder of the data.
        out: Where the model package goes: a folder, or a file ending in ``.tgd``.
        given: Fields of the configuration that go before those of the recipe.
        checkpoints: As in :func:`torchgeo_debias.training.train`.
        progress: Told about each step.

    Raises:
        ConfigError: If something is missing or wrong; see :func:`~torchgeo_debias.recipes.plan.plan_recipe`.
        DataError: If the data are damaged.
        OutputError: If the package cannot be written.
    """
    check_target(out)
    plan = plan_recipe(recipe, variant, data, given, progress)
    check_ready(plan)
    config = plan.config
    parts = read_parts(recipe.data, data, plan.chip_size, config.seed, progress)
    facts = {
        "data": recipe.data.name,
        "recipe": f"{recipe.name}/{variant}",
        "groups": recipe.data.groups,
        "validation_chips": len(parts["validation"]),
        "test_chips": len(parts["test"]),
    }
    trained = train(parts.pop("train"), config, progress=progress, checkpoints=checkpoints, provenance=facts)
    trained.package.save(out)
    predictor = PackagePredictor(trained.package, weights=config.weights, precision=config.precision)
    scores = {
        part: evaluate_chips(predictor, parts[part], progress=progress)
        for part in PARTS
        if part in parts and len(parts[part])
    }
    for part, found in scores.items():
        raw = None if found.raw is None else found.raw.to_json()
        trained.package.metrics[part] = {"scores": found.scores.to_json(), "raw": raw}
    trained.package.save(out)
    return RecipeRun(plan, trained, scores)
