"""The ``torchgeo-debias`` command and its verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.options import (
    Area,
    Backbone,
    Backend,
    Bands,
    BatchSize,
    Checkpoints,
    ClassField,
    Crs,
    Engine,
    HeldReport,
    HoldOut,
    Json,
    LabelArea,
    LayerFormat,
    LayerOut,
    Limits,
    Model,
    ModelOut,
    Nodata,
    Precision,
    Pretrained,
    Quiet,
    Rank,
    Rasters,
    Readers,
    Report,
    Seed,
    Stretch,
    Threads,
    TileBatch,
    TorchPrecision,
    TrainPrecision,
    Views,
    Weights,
    Workers,
)
from torchgeo_debias.errors import Cancelled, ConfigError, DebiasError

# Without this, two runs that share a machine's cores wait for each other in busy loops (a training run beside one
# other process: 1.3 chips/s against 17 with it, two cores). Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without a network the hub's client would announce each of its retries before the one sentence that ends the run.
os.environ.setdefault("HF_HUB_VERBOSITY", "error")

app = typer.Typer(
    name="torchgeo-debias",
    help="Map the rare things in remote-sensing imagery: train a de-biased LoRA on your labels, map any raster.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What typer raises for wrong options; its module differs between versions of typer.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_INTERRUPTED = 130
_STOPPED = "Stopped; nothing was left half-written."


@app.command()
def train(
    out: ModelOut,
    data: Annotated[Path | None, typer.Option(help="Scene folder: <split>/<class>/* or <class>/*.")] = None,
    raster: Annotated[list[Path] | None, typer.Option(help="Raster with objects; may be given several times.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Vector layer of the labelled objects.")] = None,
    class_field: ClassField = None,
    method: Annotated[
        str | None,
        typer.Option(help="probe, lora, finetune or deblora.", show_default="deblora"),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Class loss of the network, such as ce or balanced-softmax.", show_default="ce")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="How the classifier is made in the end, such as own, ce or la.", show_default="auto"),
    ] = None,
    imbalance: Annotated[
        float | None, typer.Option(help="Subsample to a long tail: largest class over smallest.")
    ] = None,
    seed: Seed = None,
    chip_size: Annotated[int, typer.Option(help="Side of the model's input, pixels.")] = 112,
    window: Annotated[
        float | None, typer.Option(help="Side of the square cut around an object; default: fitted.")
    ] = None,
    window_unit: Annotated[str | None, typer.Option(help="Unit of --window: px or m.", show_default="px")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Context around a fitted object, share of its longest side.", show_default="0.25"),
    ] = None,
    background: Annotated[int, typer.Option(help="Chips of background to add to the labelled objects.", min=0)] = 0,
    area: LabelArea = None,
    crop: Annotated[int | None, typer.Option(help="Centre crop of scene images before resizing, pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each stage.", show_default="10")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Chips a training step.", show_default="16")] = None,
    backbone: Backbone = None,
    rank: Rank = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Symmetries of a chip that its feature is the mean of: 1 (fastest to map with), 4 or 8.",
            show_default="4",
        ),
    ] = None,
    start: Annotated[str | None, typer.Option(help="Model package whose adapter the training goes on from.")] = None,
    stretch: Stretch = None,
    weights: Pretrained = None,
    precision: TrainPrecision = None,
    bands: Annotated[
        str | None, typer.Option(help="Bands to read, by number or, with --raster, by name, for instance 1,2,3.")
    ] = None,
    nodata: Nodata = None,
    hold_out: HoldOut = None,
    report: HeldReport = None,
    groups: Annotated[
        Path | None, typer.Option(help="JSON file with head, middle or tail for each class; default: thirds by count.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with any fields of TrainConfig; options given here win over it.")
    ] = None,
    checkpoints: Checkpoints = None,
    keep_features: Annotated[
        Path | None, typer.Option(help="With deblora: folder for the features before, calibrated and after.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on images, or on labelled rasters.

    Images are a scene folder (--data); rasters (--raster) come with a layer of objects (--labels, --class-field).
    """
    from torchgeo_debias.cli.inputs import grouped, read_config, training_chips
    from torchgeo_debias.cli.reports import check_held_out, score_test
    from torchgeo_debias.inference.held_out import Split
    from torchgeo_debias.package import check_target
    from torchgeo_debias.training import TrainConfig
    from torchgeo_debias.training import train as run
    from torchgeo_debias.training.keeping import check_keeping
    from torchgeo_debias.training.starting import check_start

    settings = read_config(
        TrainConfig, config,
        method=method, loss=loss, head=head, seed=seed, weights=weights, precision=precision, epochs=epochs,
        batch_size=batch_size, backbone=backbone, views=views, stretch=stretch,
        adapter=None if rank is None else {"rank": rank},
        start=start,
    )  # fmt: skip
    check_target(out)
    check_held_out(hold_out, report)
    check_start(settings.start)
    check_keeping(settings, keep_features)
    with show.bar(quiet) as progress:
        part = training_chips(
            data=data, rasters=raster, labels=labels, class_field=class_field, imbalance=imbalance, seed=settings.seed,
            chip_size=chip_size, window=window, window_unit=window_unit, margin=margin, background=background,
            area=area, crop=crop, bands=bands, nodata=nodata, hold_out=hold_out, progress=progress,
        )  # fmt: skip
        trained = run(
            grouped(part.chips, groups), settings, progress=progress, checkpoints=checkpoints, provenance=part.facts,
            keep_features=keep_features,
        )  # fmt: skip
        trained.package.save(out)
        tested = None
        if hold_out is not None and part.held is not None:
            split = Split(hold_out, settings.seed, part.by, len(part.chips), len(part.held), part.left_out)
            tested = score_test(trained.package, part.held, split, out, report, settings, progress)
    show.trained(out, trained.package.table, trained.seconds, tested, as_json)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option(help="Scene folder: <split>/<class>/* or <class>/*.")],
    split: Annotated[str, typer.Option(help="train, test or all.")] = "test",
    report: Report = None,
    weights: Weights = "auto",
    precision: TorchPrecision = "auto",
    bands: Annotated[
        str | None,
        typer.Option(help="Bands to read, by number, for instance 1,2,3; default: those of the training."),
    ] = None,
    limits: Limits = True,
    views: Views = None,
    batch_size: BatchSize = 64,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a classifier on a scene folder.

    F1 per class and per group, on the full confusion matrix.
    """
    from torchgeo_debias.cli.inputs import evaluation_chips
    from torchgeo_debias.cli.reports import check_report
    from torchgeo_debias.inference.evaluation import evaluate_chips, write_evaluation

    check_report(report)
    predictor = load(model, weights, precision, limits=limits, views=views)
    with show.bar(quiet) as progress:
        chips = evaluation_chips(predictor.package, data, split, bands, progress)
        result = evaluate_chips(predictor, chips, batch_size=batch_size, progress=progress)
    if report is not None:
        write_evaluation(report, result, predictor.package, source=data.name, split=split)
    if as_json:
        show.as_json(result.to_json(predictor.package))
    else:
        show.scores(result.scores, result.raw)
        if result.decisions is not None:
            show.line(f"With the thresholds of the model: {result.decisions.sentence}")


@app.command()
def classify(
    rasters: Rasters,
    model: Model,
    out: LayerOut = None,
    map_path: Annotated[Path | None, typer.Option("--map", help="Class map as GeoTIFF.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Score of each pixel in percent, as GeoTIFF.")] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Map each raster on its own, into this folder.")] = None,
    write: Annotated[
        str | None, typer.Option(help="With --out-dir: any of layer,map,scores.", show_default="layer,map")
    ] = None,
    layer_format: LayerFormat = None,
    shape: Annotated[str, typer.Option(help="Features of the layer: tiles, points or regions.")] = "tiles",
    area: Area = None,
    overlap: Annotated[float, typer.Option(help="Share by which neighbouring tiles overlap, 0 to 0.9.")] = 0.0,
    min_score: Annotated[float, typer.Option(help="Leave out tiles below this score.")] = 0.0,
    keep_background: Annotated[bool, typer.Option(help="Write background features as well.")] = False,
    weights: Weights = "auto",
    precision: Precision = "auto",
    backend: Backend = "torch",
    limits: Limits = True,
    views: Views = None,
    bands: Bands = None,
    nodata: Nodata = None,
    crs: Crs = None,
    batch_size: TileBatch = None,
    workers: Workers = None,
    threads: Threads = None,
    readers: Readers = 1,
    engine: Engine = "local",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Map rasters of any size tile by tile.

    Run it again to go on where it stopped.
    """
    from torchgeo_debias.cli.mapping import map_options, output_formats, outputs, resources
    from torchgeo_debias.inference.rasters import classify_raster, classify_rasters

    options = map_options(
        overlap=overlap, min_score=min_score, keep_background=keep_background, bands=bands, nodata=nodata, crs=crs,
        area=area,
    )  # fmt: skip
    means = resources(engine, batch_size=batch_size, workers=workers, threads=threads, readers=readers)
    # What comes out is checked before the model is loaded.
    if out_dir is None:
        if (write, layer_format) != (None, None):
            raise ConfigError("--write and --format have no meaning without --out-dir: leave them out.")
        single = outputs(rasters, out=out, class_map=map_path, scores=scores, shape=shape)
        predictor = load(model, weights, precision, backend, limits, views)
        with show.bar(quiet) as progress:
            summary = classify_raster(rasters, predictor, single, options, resources=means, progress=progress)
    else:
        if (out, map_path, scores) != (None, None, None):
            raise ConfigError("With --out-dir, --write says what comes out: leave --out, --map and --scores away.")
        formats = output_formats(write, layer_format, shape)
        predictor = load(model, weights, precision, backend, limits, views)
        with show.bar(quiet) as progress:
            summary = classify_rasters(
                rasters, predictor, out_dir, formats, options, resources=means, progress=progress
            )
    show.summary(summary, as_json)


@app.command()
def classify_features(
    raster: Annotated[Path, typer.Argument(help="The raster to look at.")],
    layer: Annotated[Path, typer.Argument(help="Vector layer of polygons or points to label.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Labelled features as .gpkg, .fgb, .parquet or .geojson.")],
    weights: Weights = "auto",
    precision: Precision = "auto",
    backend: Backend = "torch",
    limits: Limits = True,
    views: Views = None,
    bands: Bands = None,
    nodata: Nodata = None,
    crs: Crs = None,
    batch_size: BatchSize = 64,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label the polygons or points of an existing layer."""
    from torchgeo_debias.cli.bands import parse_bands
    from torchgeo_debias.inference.features import classify_features as run
    from torchgeo_debias.tiling.layers import check_layer_path

    check_layer_path(out)  # before the model is loaded
    predictor = load(model, weights, precision, backend, limits, views)
    with show.bar(quiet) as progress:
        summary = run(
            raster, layer, predictor, out, bands=parse_bands(bands), nodata=nodata, crs=crs,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
    show.summary(summary, as_json)


@app.command()
def export(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Write another package; default: into the model itself.")] = None,
    data: Annotated[Path | None, typer.Option(help="Scene folder on which backends are compared with torch.")] = None,
    split: Annotated[str, typer.Option(help="Of --data: train, test or all.")] = "test",
    weights: Weights = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prepare a classifier for ONNX Runtime and OpenVINO.

    How far they agree with torch is measured.
    """
    from torchgeo_debias.cli.inputs import evaluation_chips
    from torchgeo_debias.inference.export import export_package
    from torchgeo_debias.package import ModelPackage

    package = ModelPackage.load(model)
    with show.bar(quiet) as progress:
        chips = None if data is None else evaluation_chips(package, data, split, None, progress)
        exported = export_package(package, out or model, weights=weights, chips=chips, progress=progress)
    if as_json:
        show.as_json(exported.exports)
    else:
        show.agreement(exported.exports)


@app.command()
def info(model: Annotated[Path, typer.Argument(help="Model package.")], as_json: Json = False) -> None:
    """Show what a model package is, and check it."""
    from torchgeo_debias.package import load_package

    package = load_package(model)
    if as_json:
        show.as_json(package.to_json())
    else:
        show.package(package)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for scene, model, maps and report.")] = Path("demo_out"),
    data: Annotated[Path | None, typer.Option(help="A real scene folder instead of the synthetic scene.")] = None,
    imbalance: Annotated[
        float | None, typer.Option(help="Subsample --data to a long tail: largest class over smallest.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each stage.", show_default="8; with --data 10")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the main job on a scene with rare objects.

    Trains LoRA and debLoRA, maps the unseen half, writes a report.
    """
    from torchgeo_debias.demo import run_demo

    with show.bar(quiet) as progress:
        result = run_demo(out, data=data, imbalance=imbalance, epochs=epochs, seed=seed, progress=progress)
    if as_json:
        show.as_json(result.to_json())
    else:
        show.scores(result.after, result.before)
        for name, path in result.files.items():
            show.line(f"{name:<12} {path}")


def load(
    model: Path, weights: str, precision: str, backend: str = "torch", limits: bool = True, views: int | None = None
) -> Any:  # noqa: ANN401 (torch comes late)
    """A classifier's package, made ready to predict."""
    from torchgeo_debias.inference.backends import load_predictor

    # Unknown names are refused there.
    known: dict[str, Any] = {"precision": precision, "backend": backend}
    return load_predictor(model, weights=weights, thresholds=limits, views=views, **known)


def _repeated(arguments: list[str], option: str) -> list[str]:
    """Let ``option`` take several values at once, as in ``--raster a.tif b.tif``: put it before each of them."""
    result: list[str] = []
    taking = False
    for argument in arguments:
        if argument.startswith("-"):
            taking = argument == option
        elif taking and result[-1] != option:
            result.append(option)
        result.append(argument)
    return result


def verbs() -> list[str]:
    """The names of all verbs, as one writes them."""
    return list(cast(Any, typer.main.get_command(app)).commands)


def run(arguments: Sequence[str]) -> None:
    """Run a verb in this process, and let through what it raises.

    Args:
        arguments: As a shell would give them, without the name of the program; none ask for help.

    Raises:
        DebiasError: If an option is wrong or the verb refuses its input.
        Cancelled: If the run was stopped, with Ctrl+C too.
    """
    given = _repeated([*arguments], "--raster") or ["--help"]
    try:
        code = app(given, prog_name="torchgeo-debias", standalone_mode=False)
    except _USAGE_ERROR as error:
        raise ConfigError(error.format_message()) from error
    except KeyboardInterrupt as error:
        raise Cancelled(_STOPPED) from error
    except typer.Abort as error:  # what typer makes of EOFError, meant for prompts: no verb has any
        raise (error.__cause__ or error) from None
    if code == _INTERRUPTED:  # what newer versions of typer make of Ctrl+C
        raise Cancelled(_STOPPED)


def main() -> None:
    """Entry point: run a verb; refused input ends with one sentence on stderr and exit code 2."""
    show.plain_logging()
    try:
        run(sys.argv[1:])
    except Cancelled:
        show.error(_STOPPED)
        sys.exit(_INTERRUPTED)
    except DebiasError as error:
        show.error(str(error))
        sys.exit(2)
