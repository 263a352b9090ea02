"""From raster layers of QGIS to files that the worker can open."""

from __future__ import annotations

import math
import os
from typing import Any
from xml.etree import ElementTree  # nosec B405

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsRasterBlockFeedback,
    QgsRasterDataProvider,
    QgsRasterFileWriter,
    QgsRasterLayer,
    QgsRasterPipe,
    QgsRectangle,
)
from qgis.PyQt.QtCore import Qt

from .layers import known_crs

WEB_LIMIT = 64_000_000
"""Pixels of a map service that are asked for at most: its owner's machines make them."""

MARGIN = 256
"""Pixels around an area that are exported as well: models look at whole tiles."""

_ROUNDING = 1e-6
_PIXELS = "pixels.tif"

_GDAL_TYPES = {
    Qgis.DataType.Byte: "Byte",
    Qgis.DataType.Int8: "Int8",
    Qgis.DataType.UInt16: "UInt16",
    Qgis.DataType.Int16: "Int16",
    Qgis.DataType.UInt32: "UInt32",
    Qgis.DataType.Int32: "Int32",
    Qgis.DataType.Float32: "Float32",
    Qgis.DataType.Float64: "Float64",
}
_COLOURS = {
    Qgis.RasterColorInterpretation.AlphaBand: "Alpha",
    Qgis.RasterColorInterpretation.RedBand: "Red",
    Qgis.RasterColorInterpretation.GreenBand: "Green",
    Qgis.RasterColorInterpretation.BlueBand: "Blue",
    Qgis.RasterColorInterpretation.GrayIndex: "Gray",
}


class Raster:
    """A raster layer as it is now.

    Files of GDAL are read where they are. Anything else (a map service, a virtual or temporary layer, a part of
    another file, a file in an archive, open options, a CRS that was changed in QGIS) is exported first.

    Attributes:
        name: Of the layer.
        crs: Of the layer.
        extent: Of the layer, in this CRS.
    """

    def __init__(self, layer: QgsRasterLayer) -> None:
        """Take what is needed, in the main thread; the layer may be removed afterwards.

        Raises:
            QgsProcessingException: If the layer has no CRS, or its source cannot be read.
        """
        provider = layer.dataProvider()
        if not layer.isValid() or provider is None:
            raise QgsProcessingException(f"The raster layer {layer.name()} cannot be read: repair its source.")
        self.name = layer.name()
        self.crs = known_crs(layer)
        self.extent = layer.extent()
        local = layer.providerType() == "gdal" and os.path.exists(layer.source())
        self._file = layer.source() if local and provider.crs() == self.crs else None
        self._provider: Any = None if self._file is not None else provider.clone()

    @property
    def is_file(self) -> bool:
        """Whether it is read where it is, and not exported."""
        return self._file is not None

    def path(
        self,
        folder: str,
        bounds: QgsRectangle | None,
        pixel_size: float | None,
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> str:
        """A file with its pixels, made in the thread of the algorithm where there is none.

        Args:
            folder: Takes the export.
            bounds: The part that is wanted, in the layer's CRS; all of it where left out.
            pixel_size: Units of the CRS; for layers that have no pixels of their own.
            context: For the transformations of the project.
            feedback: Told about the export; may cancel.

        Raises:
            QgsProcessingException: If there is nothing to export, it is too much, or the export fails.
        """
        if self._file is not None:
            return self._file
        feedback.pushInfo(f"The layer {self.name} is not a file of its own: its pixels are exported first.")
        feedback.setProgressText("Export of the raster")
        rendered = self._provider.dataType(1) in (Qgis.DataType.ARGB32, Qgis.DataType.ARGB32_Premultiplied)
        window, size = self._window(bounds, pixel_size)
        if rendered and size[0] * size[1] > WEB_LIMIT:
            raise QgsProcessingException(
                f"{size[0]} x {size[1]} pixels of the map service {self.name} are too many: choose a smaller area or "
                "larger pixels."
            )
        pixels, described = os.path.join(folder, _PIXELS), os.path.join(folder, "raster.vrt")
        if not rendered:
            _describe(self._provider, described, window, size, self.crs)
        _export(self._provider.clone(), pixels, window, size, self.crs, context, feedback)
        return pixels if rendered else described

    def _window(self, bounds: QgsRectangle | None, pixel_size: float | None) -> tuple[QgsRectangle, tuple[int, int]]:
        """The part to export, on the layer's own pixels where it has some, with its columns and rows."""
        extent = self._provider.extent()
        if self._provider.xSize() > 0:
            across, down = extent.width() / self._provider.xSize(), extent.height() / self._provider.ySize()
        elif pixel_size is None or bounds is None:
            raise QgsProcessingException(
                f"The layer {self.name} has no end and no pixels of its own: give an area, and the pixel size under "
                "the advanced parameters."
            )
        else:
            across = down = pixel_size
        wanted = extent if bounds is None else bounds.intersect(extent)
        if wanted.isEmpty():
            raise QgsProcessingException(f"The area does not touch the layer {self.name}.")
        wanted = QgsRectangle(wanted)
        wanted.grow(MARGIN * max(across, down))
        wanted = wanted.intersect(extent)
        left = math.floor((wanted.xMinimum() - extent.xMinimum()) / across + _ROUNDING)
        right = math.ceil((wanted.xMaximum() - extent.xMinimum()) / across - _ROUNDING)
        top = math.floor((extent.yMaximum() - wanted.yMaximum()) / down + _ROUNDING)
        bottom = math.ceil((extent.yMaximum() - wanted.yMinimum()) / down - _ROUNDING)
        window = QgsRectangle(
            extent.xMinimum() + left * across,
            extent.yMaximum() - bottom * down,
            extent.xMinimum() + right * across,
            extent.yMaximum() - top * down,
        )
        return window, (right - left, bottom - top)


def _export(
    provider: QgsRasterDataProvider,
    path: str,
    window: QgsRectangle,
    size: tuple[int, int],
    crs: QgsCoordinateReferenceSystem,
    context: QgsProcessingContext,
    feedback: QgsProcessingFeedback,
) -> None:
    """Write pixels as they are, those of a map service as red, green, blue and alpha; consumes the provider."""
    pipe = QgsRasterPipe()
    if not pipe.set(provider):
        raise QgsProcessingException("The raster cannot be exported: its source gives no pixels.")
    progress = QgsRasterBlockFeedback()
    # Direct connections: this thread has no event loop that would deliver others.
    feedback.canceled.connect(progress.cancel, Qt.ConnectionType.DirectConnection)
    progress.progressChanged.connect(feedback.setProgress, Qt.ConnectionType.DirectConnection)
    writer = QgsRasterFileWriter(path)
    writer.setOutputFormat("GTiff")
    writer.setCreateOptions(["TILED=YES", "COMPRESS=DEFLATE", "BIGTIFF=IF_SAFER"])
    result = writer.writeRaster(pipe, *size, window, crs, context.transformContext(), progress)
    if feedback.isCanceled():
        return
    problems = "; ".join(progress.errors())
    if result != Qgis.RasterFileWriterResult.Success or problems:
        raise QgsProcessingException(f"The raster cannot be exported: {problems or 'QGIS gives no reason'}.")


def _describe(
    provider: QgsRasterDataProvider,
    path: str,
    window: QgsRectangle,
    size: tuple[int, int],
    crs: QgsCoordinateReferenceSystem,
) -> None:
    """Write a virtual raster around pixels to be exported that knows what QGIS does not export: alpha and band names.

    https://gdal.org/drivers/raster/vrt.html
    """
    columns, rows = map(str, size)
    root = ElementTree.Element("VRTDataset", rasterXSize=columns, rasterYSize=rows)
    ElementTree.SubElement(root, "SRS").text = crs.toWkt(Qgis.CrsWktVariant.PreferredGdal)
    across, down = window.width() / size[0], window.height() / size[1]
    corner = (window.xMinimum(), across, 0.0, window.yMaximum(), 0.0, -down)
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, corner))
    for number in range(1, provider.bandCount() + 1):
        kind = _GDAL_TYPES.get(provider.sourceDataType(number), "Float64")
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType=kind, band=str(number))
        colour = _COLOURS.get(provider.colorInterpretation(number))
        name = provider.bandDescription(number)
        nodata = repr(provider.sourceNoDataValue(number)) if provider.sourceHasNoDataValue(number) else None
        for tag, text in (("Description", name), ("ColorInterp", colour), ("NoDataValue", nodata)):
            if text:
                ElementTree.SubElement(band, tag).text = text
        source = ElementTree.SubElement(band, "SimpleSource")
        ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1").text = _PIXELS
        ElementTree.SubElement(source, "SourceBand").text = str(number)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")
