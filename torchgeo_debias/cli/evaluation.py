"""The verb that compares layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app
from torchgeo_debias.cli.options import Json, Quiet, Report
from torchgeo_debias.errors import ConfigError

if TYPE_CHECKING:
    from torchgeo_debias.evaluation.found import FoundScores
    from torchgeo_debias.inference.layer_evaluation import LayerEvaluation

_TWIN = "twin"  # a layer does not tell what it is, the plain LoRA or a control


@app.command()
def evaluate_layer(
    predictions: Annotated[Path, typer.Argument(help="Layer of predictions, of any verb or of another program.")],
    reference: Annotated[Path, typer.Argument(help="Layer with the true classes, in any CRS.")],
    class_field: Annotated[str, typer.Option(help="Field of the reference that names the class.")],
    predicted_field: Annotated[str, typer.Option(help="Field of the predictions that names the class.")] = "class",
    score_field: Annotated[
        str | None, typer.Option(help="Field of the predictions with their score.", show_default="score")
    ] = None,
    how: Annotated[str, typer.Option(help="features: the class on each reference feature; objects: boxes.")] = (
        "features"
    ),
    min_score: Annotated[
        float | None,
        typer.Option(help="Lowest score that counts; average precision takes all of them.", show_default="all count"),
    ] = None,
    iou: Annotated[
        float | None, typer.Option(help="Overlap from which an object counts as found.", show_default="0.5")
    ] = None,
    area: Annotated[
        str | None, typer.Option(help="Where the reference is complete: polygon layer, or bounds in its CRS.")
    ] = None,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a layer of predictions against a reference.

    No model and no raster are needed.
    """
    from torchgeo_debias.cli.mapping import one_of, parse_area
    from torchgeo_debias.cli.reports import check_report
    from torchgeo_debias.inference.layer_evaluation import IOU, How
    from torchgeo_debias.inference.layer_evaluation import evaluate_layer as run

    one_of("--how", how, get_args(How))
    if iou is not None and how == "features":
        raise ConfigError("--iou has no meaning with --how features: leave it out.")
    check_report(report)
    with show.bar(quiet) as progress:
        result = run(
            predictions, reference, class_field, predicted_field=predicted_field, score_field=score_field,
            how=cast(Any, how), min_score=min_score, iou=IOU if iou is None else iou, area=parse_area(area),
            progress=progress,
        )  # fmt: skip
    if report is not None:
        result.write_report(report)
    if as_json:
        show.as_json(result.to_json())
    else:
        _show(result)


def _show(result: LayerEvaluation) -> None:
    """Scores of the groups, and what a reader should know of them."""
    from torchgeo_debias.inference.layer_evaluation import ObjectScores

    after, before = result.scores, result.raw
    if isinstance(after, ObjectScores):
        twin = before if isinstance(before, ObjectScores) else None
        show.average_precision(after.average, None if twin is None else twin.average, _TWIN)
        _found(after.found)
    else:
        show.scores(after, cast(Any, before), _TWIN)
    for note in (*result.facts.notes, result.facts.groups):
        show.line(note)


def _found(found: FoundScores) -> None:
    """Precision, recall and F1 of what counts."""
    which = "All predictions" if found.min_score is None else f"From the score {found.min_score:g} on"
    show.line(f"{which}, at the overlap {found.iou:g}:")
    show.line(f"{'':<8}{'precision':>11}{'recall':>8}{'F1':>8}")
    for key in found.means["f1"]:
        cells = [found.means[measure][key] for measure in ("precision", "recall", "f1")]
        shown = ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in cells]
        show.line(f"{key:<8}{shown[0]:>11}{shown[1]:>8}{shown[2]:>8}")
