"""The verbs for objects: training and scoring of detectors, boxes and masks on rasters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from torchgeo_debias.cli import show
from torchgeo_debias.cli.app import app, load
from torchgeo_debias.cli.options import (
    Area,
    Backbone,
    Backend,
    Bands,
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
from torchgeo_debias.errors import ConfigError

Data = Annotated[Path | None, typer.Option(help="Folder of images, with --format.")]
Form = Annotated[str | None, typer.Option("--format", help="Of the labels of --data: yolo, coco or dota.")]
Labels = Annotated[
    Path | None, typer.Option(help="Folder of label files, COCO file or, with --raster, vector layer of polygons.")
]
Names = Annotated[str | None, typer.Option(help="YOLO classes: a file with a name a line, a data.yaml, or a,b,c.")]
LabelledRasters = Annotated[
    list[Path] | None, typer.Option("--raster", help="Labelled raster; may be given several times.")
]
Block = Annotated[
    float | None, typer.Option(help="Split rasters into pieces of ground with this side, in units of their CRS.")
]
Overlap = Annotated[
    float, typer.Option(help="Share of a tile that the next one covers again, 0 to 0.9; objects should fit into it.")
]


@app.command()
def train_detector(
    out: ModelOut,
    data: Data = None,
    form: Form = None,
    labels: Labels = None,
    names: Names = None,
    raster: LabelledRasters = None,
    class_field: ClassField = None,
    area: LabelArea = None,
    block: Block = None,
    horizontal: Annotated[bool, typer.Option("--horizontal", help="Upright boxes instead of oriented ones.")] = False,
    method: Annotated[
        str | None,
        typer.Option(help="probe, lora, finetune, rfs, class-balanced, ecm, efl or deblora.", show_default="deblora"),
    ] = None,
    tile_size: Annotated[int, typer.Option(help="Side of the model's input, pixels.")] = 448,
    scale: Annotated[float, typer.Option(help="Model pixels per image pixel, where no resolution is known.")] = 1.0,
    gsd: Annotated[float | None, typer.Option(help="Metres per model pixel; default: that of the images.")] = None,
    hold_out: HoldOut = None,
    report: HeldReport = None,
    seed: Seed = None,
    epochs: Annotated[int | None, typer.Option(help="Of each stage.", show_default="24")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Tiles a training step.", show_default="8")] = None,
    backbone: Backbone = None,
    rank: Rank = None,
    stretch: Stretch = None,
    weights: Pretrained = None,
    precision: TrainPrecision = None,
    bands: Bands = None,
    nodata: Nodata = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with any fields of DetectConfig; options given here win over it.")
    ] = None,
    checkpoints: Checkpoints = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a detector on images, or on labelled rasters.

    Images are a folder (--data, --format); rasters (--raster) come with a layer of polygons (--labels, --class-field).
    """
    from torchgeo_debias.cli.inputs import read_config
    from torchgeo_debias.cli.objects import Labelled, held_out
    from torchgeo_debias.cli.reports import check_held_out, score_test
    from torchgeo_debias.data.objects import TileSpec
    from torchgeo_debias.inference.held_out import Split
    from torchgeo_debias.package import check_target
    from torchgeo_debias.training.detection import DetectConfig
    from torchgeo_debias.training.detection import train_detector as run

    settings = read_config(
        DetectConfig, config,
        method=method, seed=seed, weights=weights, precision=precision, epochs=epochs, batch_size=batch_size,
        backbone=backbone, stretch=stretch, adapter=None if rank is None else {"rank": rank},
        detector={"oriented": False} if horizontal else None,
    )  # fmt: skip
    tiles = TileSpec(tile_size, scale=scale, gsd=gsd)
    check_target(out)
    check_held_out(hold_out, report)
    labelled = Labelled(data, form, labels, names, raster, class_field, area, block, bands, nodata)
    with show.bar(quiet) as progress:
        objects = labelled.read(oriented=settings.detector.oriented, classes=None, progress=progress)
        facts: dict[str, Any] = {"data": labelled.title}
        held = None
        if hold_out is not None:
            objects, held, kept = held_out(objects, hold_out, settings.seed)
            facts |= kept
        trained = run(objects, tiles, settings, progress=progress, checkpoints=checkpoints, provenance=facts)
        trained.package.save(out)
        tested = None
        if hold_out is not None and held is not None:
            by = "images" if block is None else "blocks of ground"
            split = Split(hold_out, settings.seed, by, len(objects), len(held), shared=kept["shared_ground"])
            tested = score_test(trained.package, held, split, out, report, settings, progress)
    show.trained(out, trained.package.table, trained.seconds, tested, as_json)


@app.command()
def evaluate_detector(
    model: Model,
    data: Data = None,
    form: Form = None,
    labels: Labels = None,
    names: Names = None,
    raster: LabelledRasters = None,
    class_field: ClassField = None,
    area: LabelArea = None,
    block: Block = None,
    split: Annotated[str, typer.Option(help="all, or test: what --hold-out kept when the model was trained.")] = "all",
    metric: Annotated[str, typer.Option(help="How precision is averaged: coco, voc07 or area.")] = "coco",
    report: Report = None,
    weights: Weights = "auto",
    precision: TorchPrecision = "auto",
    limits: Limits = True,
    bands: Bands = None,
    nodata: Nodata = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a detector on images, or on labelled rasters.

    Average precision per class and per group.
    """
    from torchgeo_debias.cli.mapping import one_of
    from torchgeo_debias.cli.objects import Labelled, held_out_part
    from torchgeo_debias.cli.reports import check_report
    from torchgeo_debias.evaluation.detection import Form
    from torchgeo_debias.inference.classifier import decided
    from torchgeo_debias.inference.detection_evaluation import evaluate_package as run
    from torchgeo_debias.inference.detection_evaluation import write_evaluation
    from torchgeo_debias.package import DetectorPackage

    if split not in ("all", "test"):
        raise ConfigError(f"--split must be all or test; received {split!r}.")
    one_of("--metric", metric, get_args(Form))
    check_report(report)
    package = decided(DetectorPackage.load(model), limits)
    labelled = Labelled(data, form, labels, names, raster, class_field, area, block, bands, nodata)
    with show.bar(quiet) as progress:
        objects = labelled.read(oriented=package.detector.oriented, classes=package.table.names, progress=progress)
        if split == "test":
            objects = held_out_part(objects, package)
        result = run(
            package, objects, weights=weights, precision=cast(Any, precision), form=cast(Any, metric), progress=progress
        )
    if report is not None:
        write_evaluation(report, result, package, source=labelled.title, split=split)
    if as_json:
        show.as_json(result.to_json())
    else:
        show.average_precision(result.scores, result.raw, package.twin_name)
        if result.found is not None:
            show.found(result.found)


@app.command()
def detect(
    rasters: Rasters,
    model: Model,
    out: LayerOut = None,
    out_dir: Annotated[Path | None, typer.Option(help="Search each raster on its own, into this folder.")] = None,
    layer_format: LayerFormat = None,
    shape: Annotated[str, typer.Option(help="Features of the layer: boxes or points.")] = "boxes",
    area: Area = None,
    overlap: Overlap = 0.25,
    min_score: Annotated[
        float, typer.Option(help="Leave out objects below this score, but for classes with a threshold.")
    ] = 0.3,
    suppression: Annotated[float, typer.Option(help="Overlap above which the weaker of two boxes goes.")] = 0.5,
    agnostic: Annotated[bool, typer.Option("--agnostic", help="Take boxes of two classes for one object too.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Use the twin kept for comparison.")] = False,
    weights: Weights = "auto",
    precision: TorchPrecision = "auto",
    limits: Limits = True,
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
    """Find the objects in rasters of any size.

    Run it again to go on where it stopped.
    """
    from torchgeo_debias.cli.bands import parse_bands
    from torchgeo_debias.cli.mapping import one_of, output_formats, outputs, parse_area, resources
    from torchgeo_debias.inference.detections import DetectOptions, detect_raster, detect_rasters
    from torchgeo_debias.inference.detector import DetectorPredictor
    from torchgeo_debias.inference.mapping import DETECT_SHAPES

    options = DetectOptions(
        overlap=overlap, min_score=min_score, bands=parse_bands(bands), nodata=nodata, crs=crs, area=parse_area(area),
        suppression=suppression, agnostic=agnostic,
    )  # fmt: skip
    means = resources(engine, batch_size=batch_size, workers=workers, threads=threads, readers=readers)
    # What comes out is checked before the model is loaded.
    one_of("--shape", shape, DETECT_SHAPES)
    if out_dir is None:
        if layer_format is not None:
            raise ConfigError("--format has no meaning without --out-dir: leave it out.")
        single = outputs(rasters, out=out, class_map=None, scores=None, shape=shape)
    else:
        if out is not None:
            raise ConfigError("With --out-dir each raster gets a layer of its name: leave --out away.")
        formats = output_formats("layer", layer_format, shape, DETECT_SHAPES)
    predictor = DetectorPredictor.load(
        model, weights=weights, precision=cast(Any, precision), raw=raw, thresholds=limits
    )
    with show.bar(quiet) as progress:
        if out_dir is None:
            summary = detect_raster(rasters, predictor, single, options, resources=means, progress=progress)
        else:
            summary = detect_rasters(rasters, predictor, out_dir, formats, options, resources=means, progress=progress)
    show.summary(summary, as_json)


@app.command()
def segment(
    rasters: Rasters,
    sam_checkpoint: Annotated[Path, typer.Option(help="Weights of SAM (ViT-B, -L or -H) or MobileSAM, a local file.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="Model package of 'train' that labels the outlines; with --boxes it may be left out."
        ),
    ] = None,
    out: LayerOut = None,
    out_dir: Annotated[Path | None, typer.Option(help="Outline each raster on its own, into this folder.")] = None,
    layer_format: LayerFormat = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Layer of boxes, such as 'detect' writes: outline what is in each.")
    ] = None,
    tile_size: Annotated[int, typer.Option(help="Side of the tiles that SAM looks at, pixels.", min=1)] = 1024,
    points: Annotated[int, typer.Option(help="Points along the side of a tile at which SAM looks.", min=1)] = 32,
    rgb: Annotated[str | None, typer.Option(help="The bands that SAM sees as red, green and blue.")] = None,
    stretch: Annotated[str | None, typer.Option(help="Values that are black and white for SAM: low,high.")] = None,
    area: Area = None,
    overlap: Overlap = 0.25,
    min_score: Annotated[float, typer.Option(help="Leave out objects whose class is less sure.")] = 0.0,
    min_pixels: Annotated[int, typer.Option(help="Leave out masks of fewer pixels.", min=1)] = 16,
    max_pixels: Annotated[int, typer.Option(help="Leave out objects of more pixels, put together.", min=1)] = 2**24,
    max_share: Annotated[
        float, typer.Option(help="Leave out objects that cover a larger share of the raster, as backgrounds do.")
    ] = 0.75,
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
    """Outline objects with Segment Anything and label each.

    Run it again to go on where it stopped; with --boxes it starts anew.
    """
    from torchgeo_debias.cli.bands import parse_bands
    from torchgeo_debias.cli.mapping import layer_ending, parse_area, parse_stretch, resources
    from torchgeo_debias.inference.masks.prompts import segment_boxes
    from torchgeo_debias.inference.masks.sam import SamMasks, SamSettings
    from torchgeo_debias.inference.masks.segment import SegmentOptions, segment_raster, segment_rasters
    from torchgeo_debias.tiling.layers import check_layer_path

    if (out is None) == (out_dir is None):
        raise ConfigError("Give --out for one layer, or --out-dir for one a raster.")
    if boxes is not None:
        if out is None:
            raise ConfigError("--boxes gives one layer: use --out.")
        idle = {
            "--area": area is not None, "--overlap": overlap != 0.25, "--min-score": min_score > 0,
            "--min-pixels": min_pixels != 16, "--max-pixels": max_pixels != 2**24, "--max-share": max_share != 0.75,
            "--points": points != 32, "--batch-size": batch_size is not None, "--workers": workers is not None,
            "--threads": threads is not None, "--readers": readers != 1, "--engine": engine != "local",
        }  # fmt: skip
        odd = [flag for flag, given in idle.items() if given]
        if odd:
            raise ConfigError(f"{odd[0]} has no meaning with --boxes: leave it out.")
    if boxes is None and model is None:
        raise ConfigError("Masks have no classes of their own: give --model to label them, or --boxes with classes.")
    view: dict[str, Any] = {"rgb": parse_bands(rgb), "stretch": parse_stretch(stretch)}
    read: dict[str, Any] = {"bands": parse_bands(bands), "nodata": nodata, "crs": crs}
    options = SegmentOptions(
        overlap=overlap, min_score=min_score, area=parse_area(area), min_pixels=min_pixels, max_pixels=max_pixels,
        max_share=max_share, **view, **read,
    )  # fmt: skip
    means = resources(engine, batch_size=batch_size, workers=workers, threads=threads, readers=readers)
    if out_dir is None and layer_format is not None:
        raise ConfigError("--format has no meaning without --out-dir: leave it out.")
    ending = layer_ending(layer_format)
    if out is not None:
        check_layer_path(out)  # before any model is loaded
    masks = SamMasks(sam_checkpoint, size=tile_size, settings=SamSettings(points_per_side=points))
    chips: Any = None if model is None else load(model, weights, precision, backend, limits, views)
    with show.bar(quiet) as progress:
        if boxes is not None:
            summary = segment_boxes(rasters, boxes, masks, cast(Path, out), chips, progress=progress, **view, **read)
        elif out is not None:
            summary = segment_raster(rasters, masks, chips, out, options, resources=means, progress=progress)
        else:
            summary = segment_rasters(
                rasters, masks, chips, cast(Path, out_dir), ending, options, resources=means, progress=progress
            )
    show.summary(summary, as_json)
