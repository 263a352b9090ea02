"""From options to images with labelled objects, and to what a detector is trained with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.cli.bands import parse_bands
from torchgeo_debias.cli.mapping import parse_area
from torchgeo_debias.data.objects import ObjectSet, objects_from_layer, read_coco, read_dota, read_yolo
from torchgeo_debias.data.objects.ground import sharing
from torchgeo_debias.errors import ConfigError, DataError, LabelError, PackageError
from torchgeo_debias.package import DetectorPackage
from torchgeo_debias.progress import ProgressCallback
from torchgeo_debias.tiling.area import area_around
from torchgeo_debias.tiling.source import RasterSource

FORMATS = ("yolo", "coco", "dota")


@dataclass(frozen=True)
class Labelled:
    """Where images and the boxes on them are: a folder with labels in one of :data:`FORMATS`, or rasters with a layer.

    Attributes:
        data: Folder of images.
        form: How its labels are written.
        labels: Folder or file of the labels; the layer where there are rasters.
        names: Of YOLO classes: a file, or names with commas between.
        rasters: In place of ``data``.
        class_field: Of the layer.
        area: Polygon layer, or bounds in the CRS of the first raster, that say where the labels are complete.
        block: Side of the pieces of ground that rasters are split by, in units of their CRS.
        bands: Bands of the rasters.
        nodata: Of the rasters.
    """

    data: Path | None
    form: str | None
    labels: Path | None
    names: str | None
    rasters: Sequence[Path] | None
    class_field: str | None
    area: str | None = None
    block: float | None = None
    bands: str | None = None
    nodata: float | None = None

    def read(self, *, oriented: bool, classes: Sequence[str] | None, progress: ProgressCallback) -> ObjectSet:
        """Read them.

        Args:
            oriented: Whether boxes drawn round polygons are to be oriented; files say it themselves.
            classes: Names in the order of a trained model, None in the order of the data.
            progress: Told about what is read.

        Raises:
            ConfigError: If options are missing or do not go together.
        """
        if (self.data is None) == (not self.rasters):
            raise ConfigError(
                "Give either --data FOLDER with --format, or --raster FILE with --labels LAYER and --class-field FIELD."
            )
        if self.data is not None:
            return self._read_folder(self.data, classes, progress)
        self._refuse("--raster", {"--format": self.form, "--names": self.names})
        if self.labels is None or self.class_field is None:
            raise ConfigError("--raster needs --labels LAYER and --class-field FIELD beside it.")
        rasters = list(self.rasters or ())
        return objects_from_layer(
            rasters, self.labels, self.class_field, oriented=oriented, bands=parse_bands(self.bands),
            nodata=self.nodata, block=self.block, area=outline(self.area, rasters), names=classes,
            progress=progress,
        )  # fmt: skip

    @property
    def title(self) -> str:
        """What reports call the data."""
        return self.data.name if self.data is not None else ", ".join(path.name for path in self.rasters or ())

    def _read_folder(self, folder: Path, classes: Sequence[str] | None, progress: ProgressCallback) -> ObjectSet:
        only_rasters = {
            "--class-field": self.class_field, "--area": self.area, "--block": self.block, "--bands": self.bands,
            "--nodata": self.nodata,
        }  # fmt: skip
        self._refuse("--data", only_rasters)
        if self.form not in FORMATS:
            raise ConfigError(f"--data needs --format with one of {', '.join(FORMATS)}; received {self.form!r}.")
        if self.form != "yolo":
            self._refuse(f"--format {self.form}", {"--names": self.names})
            if self.labels is None:
                raise ConfigError(f"--format {self.form} needs --labels.")
            read = read_coco if self.form == "coco" else read_dota
            return read(folder, self.labels, names=classes, progress=progress)
        names = _names(self.names) if self.names is not None else classes
        if names is None:
            raise ConfigError("--format yolo needs --names: a file with a name a line, a data.yaml, or names a,b,c.")
        return read_yolo(folder, self.labels, names, progress=progress)

    @staticmethod
    def _refuse(beside: str, options: dict[str, Any]) -> None:
        odd = [flag for flag, value in options.items() if value is not None]
        if odd:
            raise ConfigError(f"{odd[0]} has no meaning with {beside}: leave it out.")


def held_out(objects: ObjectSet, share: float, seed: int) -> tuple[ObjectSet, ObjectSet, dict[str, Any]]:
    """The objects to train on and those kept for a test, and what the package should remember of it.

    ``shared_ground`` of that is how many images of the test show ground that the training shows as well.

    Raises:
        DataError: If nothing can be held out.
    """
    kept, held = objects.split(share, seed)
    if not len(held):
        raise DataError(
            "No image can be held out, since all come from one source or a class would lose its objects: give "
            "--block to split rasters by pieces of ground, or more images."
        )
    train, test = objects.subset(kept), objects.subset(held)
    shared = sharing(*([image.ground for image in part.images] for part in (test, train)))[0]
    facts = {
        "hold_out": share,
        "split_seed": seed,
        "images": _digest(objects, kept),
        "shared_ground": len(np.unique(shared)),
    }
    return train, test, facts


def held_out_part(objects: ObjectSet, package: DetectorPackage) -> ObjectSet:
    """The images that were held out when the model was trained.

    Raises:
        DataError: If none were, or the images are others than those there were.
        PackageError: If the package is damaged.
    """
    known = package.provenance
    if "hold_out" not in known:
        raise DataError("The model was trained without --hold-out, so no part of the data is a test: give --split all.")
    try:
        share, seed, images = float(known["hold_out"]), int(known["split_seed"]), known["images"]
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError("The model package does not tell which images were held out; give --split all.") from error
    kept, held = objects.split(share, seed)
    if _digest(objects, kept) != images:
        raise DataError("These are not the images of the training, so their test part is not known: give --split all.")
    return objects.subset(held)


def _digest(objects: ObjectSet, indices: npt.NDArray[np.intp]) -> str:
    names = sorted(objects.images[index].name for index in indices.tolist())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _names(text: str) -> Path | list[str]:
    if os.path.isfile(text):
        return Path(text)
    if text.endswith((".txt", ".yaml", ".yml", ".names")):
        raise ConfigError(f"There is no file {text}; --names takes a file, or names with commas between them.")
    return [name.strip() for name in text.split(",")]


def outline(area: str | None, rasters: Sequence[Path]) -> shapely.Geometry | None:
    """The area of the labels around the rasters, in the CRS of the first of them.

    Raises:
        LabelError: If it lies nowhere near a raster.
    """
    wanted = parse_area(area)
    if wanted is None:
        return None
    grids = []
    for raster in rasters:
        with RasterSource(raster) as source:
            grids.append(source.grid)
    around: shapely.Geometry = area_around(wanted, grids)
    if shapely.is_empty(around):
        raise LabelError(f"The area {area} touches none of the rasters; see that it is of the same place.")
    return around
