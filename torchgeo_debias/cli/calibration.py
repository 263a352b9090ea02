"""The verb that finds the thresholds of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app
from torchgeo_debias.cli.detection import Block, Data, Form, LabelledRasters, Labels, Names
from torchgeo_debias.cli.options import (
    BatchSize,
    ClassField,
    Json,
    LabelArea,
    Model,
    Nodata,
    Quiet,
    TorchPrecision,
    Weights,
)
from torchgeo_debias.errors import ConfigError

if TYPE_CHECKING:
    from torchgeo_debias.evaluation import DecisionScores, FoundScores, Thresholds

_log = logging.getLogger(__name__)


@app.command()
def calibrate(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Write another package; default: into the model itself.")] = None,
    recall: Annotated[float, typer.Option(help="Share of each class that may not be missed, above 0, below 1.")] = 0.9,
    abstain: Annotated[
        str, typer.Option(help="What becomes of a chip like no class: never, omit or unknown.")
    ] = "never",
    data: Data = None,
    form: Form = None,
    labels: Labels = None,
    names: Names = None,
    raster: LabelledRasters = None,
    class_field: ClassField = None,
    area: LabelArea = None,
    block: Block = None,
    background: Annotated[int, typer.Option(help="Chips of background to add to labelled objects.", min=0)] = 0,
    split: Annotated[
        str | None,
        typer.Option(help="Of --data: train, test or all.", show_default="test; all of a detector"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    weights: Weights = "auto",
    precision: TorchPrecision = "auto",
    bands: Annotated[
        str | None, typer.Option(help="Bands to read, by number or, with --raster, by name, for instance 1,2,3.")
    ] = None,
    nodata: Nodata = None,
    batch_size: BatchSize = 64,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find score limits that miss few of any class.

    They are found on labels that it was not trained on, and go into its package; all verbs then obey them.
    """
    from torchgeo_debias.cli.inputs import labelled_chips
    from torchgeo_debias.cli.mapping import one_of
    from torchgeo_debias.cli.objects import Labelled, held_out_part
    from torchgeo_debias.evaluation.thresholds import Abstain, check_recall
    from torchgeo_debias.inference.calibration import calibrate_chips, calibrate_objects
    from torchgeo_debias.inference.classifier import PackagePredictor
    from torchgeo_debias.inference.detector import DetectorPredictor
    from torchgeo_debias.package import ModelPackage, check_target, load_package

    check_recall(recall)
    one_of("--abstain", abstain, get_args(Abstain))
    if split is not None and data is None:
        raise ConfigError("--split has no meaning with --raster: leave it out, and give labels not trained on.")
    target = out or model
    check_target(target)
    package: Any = replace(load_package(model), thresholds=None)
    found: Any
    with show.bar(quiet) as progress:
        if isinstance(package, ModelPackage):
            _refuse("a classifier", {"--format": form, "--names": names, "--block": block})
            split = split or ("test" if data is not None else "all")
            chips = labelled_chips(
                package, data=data, rasters=raster, labels=labels, class_field=class_field, split=split,
                bands=bands, nodata=nodata, area=area, background=background, seed=seed, progress=progress,
            )  # fmt: skip
            classifier = PackagePredictor(package, weights=weights, precision=cast(Any, precision))
            found = calibrate_chips(
                classifier, chips, recall=recall, abstain=cast(Any, abstain), seed=seed, batch_size=batch_size,
                progress=progress,
            )  # fmt: skip
        else:
            idle = {"--background": background or None, "--abstain": None if abstain == "never" else abstain}
            _refuse("a detector", idle)
            one_of("--split", split := split or "all", ("all", "test"))
            labelled = Labelled(data, form, labels, names, raster, class_field, area, block, bands, nodata)
            objects = labelled.read(oriented=package.detector.oriented, classes=package.table.names, progress=progress)
            if split == "test":
                objects = held_out_part(objects, package)
            detector = DetectorPredictor(package, weights=weights, precision=cast(Any, precision))
            found = calibrate_objects(detector, objects, recall=recall, progress=progress)
    source = data.name if data is not None else ", ".join(path.name for path in raster or ())
    shared = _trained_on(str(package.provenance.get("data", "")), source, raster or ())
    if split != "test" and shared:
        _log.warning(
            "The model was trained on %s too: unless these are other labels, its thresholds promise too much. Give "
            "labels that it has not seen, or --split test.",
            shared,
        )
    facts = {"data": source, "split": split, "seed": seed, **found.thresholds.facts}
    thresholds = replace(found.thresholds, facts=facts)
    replace(package, thresholds=thresholds).save(target)
    if as_json:
        show.as_json({"model": str(target), "thresholds": thresholds.to_json(), "scores": found.scores.to_json()})
    else:
        _show(thresholds, found.scores)
        show.line(f"Thresholds written to {target}")


def _trained_on(known: str, source: str, rasters: Sequence[Path]) -> str:
    """What of the data the model was trained on; packages name several rasters with commas between."""
    if source == known:
        return source
    return ", ".join(sorted({path.name for path in rasters} & set(known.split(", "))))


def _refuse(task: str, options: dict[str, Any]) -> None:
    odd = [flag for flag, value in options.items() if value is not None]
    if odd:
        raise ConfigError(f"{odd[0]} has no meaning for {task}: leave it out.")


def _show(thresholds: Thresholds, scores: DecisionScores | FoundScores) -> None:
    """The limit of each class, and what a reader should know of it."""
    from torchgeo_debias.evaluation.decisions import least_samples

    width = max(len(name) for name in thresholds.names)
    line = f"{'':<{width}}{'samples':>9}{'threshold':>11}{'recall':>8}{'precision':>11}"
    show.line(line)
    for name, one in zip(thresholds.names, thresholds.classes, strict=True):
        row = scores.per_class[name]
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in (row["recall"], row["precision"])]
        limit = f"{one.threshold:.4f}" if one.guaranteed else "-"
        show.line(f"{name:<{width}}{one.samples:>9}{limit:>11}{shown[0]:>8}{shown[1]:>11}")
    bare = [name for name, one in zip(thresholds.names, thresholds.classes, strict=True) if not one.guaranteed]
    if bare:
        show.line(
            f"No guarantee for {', '.join(bare)}: a recall of {thresholds.recall:g} needs "
            f"{least_samples(thresholds.recall)} samples of a class, and a model that finds enough of them."
        )
    ece = thresholds.facts.get("ece")
    if ece is not None:
        change = f"calibration error {100 * ece['before']:.1f} % before, {100 * ece['after']:.1f} % after"
        show.line(f"Temperature {thresholds.temperature:.3g}: {change}")
        show.line(cast(Any, scores).sentence)
    show.line("Recall and precision are those of the answers on these very samples.")
