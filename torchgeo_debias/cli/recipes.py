"""The verb ``recipe``: published experiments that come with the package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app
from torchgeo_debias.cli.options import Checkpoints, Json, Pretrained, Quiet, TrainPrecision
from torchgeo_debias.errors import ConfigError

if TYPE_CHECKING:
    from torchgeo_debias.recipes import Plan, Recipe, RecipeRun
    from torchgeo_debias.recipes.estimate import Estimate


@app.command()
def recipe(
    name: Annotated[
        str | None, typer.Argument(help="RECIPE/VARIANT, or a recipe for its first variant; none: list all.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data, laid out as the recipe says.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the model package goes: a folder, or a file ending in .tgd.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what it would take; the data may be missing.")
    ] = False,
    weights: Pretrained = None,
    start: Annotated[Path | None, typer.Option(help="Model package whose adapter the training starts from.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="the recipe's")] = None,
    precision: TrainPrecision = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of TrainConfig that go before the recipe's.")
    ] = None,
    checkpoints: Checkpoints = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a published experiment, or see what it needs.

    Its validation part is for choosing settings, its test part is scored for reporting.
    """
    from torchgeo_debias.cli.inputs import read_object
    from torchgeo_debias.recipes import find_recipe, list_recipes, plan_recipe, run_recipe

    if name is None:
        if data is not None or out is not None or dry_run:
            raise ConfigError("Name the recipe: 'torchgeo-debias recipe' alone lists all.")
        _show_all(list_recipes(), as_json)
        return
    options = {"weights": weights, "start": start and str(start), "seed": seed, "precision": precision}
    given = {} if config is None else read_object(config, "configuration", "fields of TrainConfig")
    given |= {key: value for key, value in options.items() if value is not None}
    chosen, variant = find_recipe(name)
    if dry_run:
        with show.bar(quiet) as progress:
            plan = plan_recipe(chosen, variant, data, given, progress)
        _show_plan(chosen, plan, as_json)
        if plan.problems:
            raise ConfigError(f"The recipe cannot be run: {plan.problems[0]}")
        return
    if data is None or out is None:
        raise ConfigError("Give --data FOLDER and --out MODEL to run a recipe, or --dry-run to see what it needs.")
    with show.bar(quiet) as progress:
        result = run_recipe(chosen, variant, data, out, given, checkpoints=checkpoints, progress=progress)
    _show_run(out, result, as_json)


def _show_all(recipes: list[Recipe], machine: bool) -> None:
    if machine:
        show.as_json(
            {one.name: {"title": one.title, "data": one.data.name, "variants": [*one.variants]} for one in recipes}
        )
        return
    for one in recipes:
        show.line(f"{one.name:<16}{one.title}")
        show.line(f"{'':<16}{', '.join(one.variants)}")


def _show_plan(chosen: Recipe, plan: Plan, machine: bool) -> None:
    if machine:
        show.as_json(plan.to_json())
        return
    config = plan.config
    facts = {
        "recipe": f"{plan.recipe}/{plan.variant}: {chosen.title}",
        "status": chosen.status,
        "data": f"{chosen.data.name} (licence: {chosen.data.licence})",
        "groups": chosen.data.groups,
        "backbone": f"{config.backbone} ({plan.weights['licence']})",
        "note": chosen.variant(plan.variant).note,
        "weights": plan.weights["where"],
        "training": f"{config.method}, {config.epochs} epochs, batch {config.batch_size}, rate {config.lr:g}, "
        f"{config.adapter.kind} of rank {config.adapter.rank}, seed {config.seed}",
        **({} if plan.estimate is None else _estimate(plan.estimate, plan.chip_size)),
    }
    for name, value in facts.items():
        if value:
            show.line(f"{name:<12}{value}")
    _show_classes(plan)
    for kind in ("notes", "missing", "problems"):
        for sentence in getattr(plan, kind):
            show.line(f"{kind:<12}{sentence}")
    show.line("It can be run." if plan.ready else "It cannot be run yet.")


def _estimate(found: Estimate, chip_size: int) -> dict[str, str]:
    size = found.size
    numbers = "unknown before the data are there"
    if found.steps is not None:
        numbers = f"{found.steps:,} steps, {found.trained_images:,} images forth and back, {found.passed_images:,} once"
    chips = "unknown" if found.chips_bytes is None else _gib(found.chips_bytes)
    return {
        "network": f"{size.parameters:,} parameters, {size.trained:,} of them trained, chips of {chip_size} pixels",
        "steps": numbers,
        "memory": f"chips {chips} in main memory; model {_gib(found.model_bytes)} and a step {_gib(found.step_bytes)} "
        "at most, in 32 bits",
    }


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{math.ceil(size / 2**20)} MiB"


def _show_classes(plan: Plan) -> None:
    """How many chips each part has, then group and counts of each class: those found, else those expected."""
    for part, facts in plan.parts.items():
        counts = facts.found or facts.expected
        remarks = [] if facts.found or not facts.expected else ["expected"]
        if facts.chips is not None and not counts:
            remarks.append("about, held out of the training part")
        elif counts and facts.chips != sum(counts.values()):
            remarks.append(f"about, of the {sum(counts.values()):,} below")
        told = f" ({'; '.join(remarks)})" if remarks else ""
        show.line(f"{part:<12}{'unknown' if facts.chips is None else f'{facts.chips:,} chips{told}'}")
    for name, group in (plan.groups or {}).items():
        cells = []
        for facts in plan.parts.values():
            shown: dict[str, Any] = facts.found or facts.expected or {}
            cells.append(f"{shown.get(name, ''):>8}")
        show.line(f"  {name:<20}{group:<8}{''.join(cells)}".rstrip())


def _show_run(out: Path, result: RecipeRun, machine: bool) -> None:
    table = result.trained.package.table
    if machine:
        parts = {
            part: {"scores": found.scores.to_json(), "raw": None if found.raw is None else found.raw.to_json()}
            for part, found in result.scores.items()
        }
        show.as_json(
            {"model": str(out), "classes": table.to_json(), "seconds": result.trained.seconds, "scores": parts}
        )
        return
    show.class_counts(table)
    for part, found in result.scores.items():
        show.line(f"{part} part")
        show.scores(found.scores, found.raw)
    show.line(f"Model written to {out}")
