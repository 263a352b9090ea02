"""What all algorithms have in common."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any, ClassVar

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureSink,
    QgsFields,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
)
from qgis.core import QgsProcessingParameterDefinition as Parameter
from qgis.PyQt.QtGui import QIcon

from .. import jobs, settings
from ..icons import icon
from ..layers import Area, Features, list_argument
from ..outputs import Dress, Origin, Result, all_fields, fill, remove_half, unwritable
from ..rasters import Raster
from ..runtime.commands import Command, option
from . import parameters as p
from .run import Run

COUNT = "COUNT"
COUNTS = "COUNTS"

Values = dict[str, Any]


class DebiasAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that runs one verb of the library in the worker.

    A subclass says what it is in the class attributes below, declares its parameters in ``initAlgorithm``, and gives
    :meth:`command` and :meth:`results`. Layers are read in ``prepareAlgorithm``, in the main thread; nothing touches
    one later, so that it may be renamed or removed while the algorithm runs.

    Attributes:
        NAME: In the id, such as ``debias:detect``.
        TITLE: In the toolbox.
        GROUP: In the toolbox: Train, Map or Check.
        SUMMARY: One sentence.
        ABOUT: Paragraphs of the help.
        EXAMPLE: Parameters of the help's example, by name.
        TAGS: Words to find it by.
    """

    NAME: ClassVar[str]
    TITLE: ClassVar[str]
    GROUP: ClassVar[str]
    SUMMARY: ClassVar[str]
    ABOUT: ClassVar[tuple[str, ...]] = ()
    EXAMPLE: ClassVar[dict[str, str]] = {}
    TAGS: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.raster: Raster | None = None
        self.area = Area()

    # What QGIS asks.

    def name(self) -> str:
        """In the id."""
        return self.NAME

    def displayName(self) -> str:
        """In the toolbox."""
        return self.TITLE

    def group(self) -> str:
        """In the toolbox."""
        return self.GROUP

    def groupId(self) -> str:
        """Of the group."""
        return self.GROUP.lower()

    def tags(self) -> list[str]:
        """Words to find it by."""
        return ["debias", "rare", "deep learning", "remote sensing", *self.TAGS]

    def icon(self) -> QIcon:
        """Of the group."""
        return icon(self.groupId())

    def shortDescription(self) -> str:
        """One sentence."""
        return self.SUMMARY

    def shortHelpString(self) -> str:
        """The summary, what there is to know, every parameter, and an example."""
        paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in (self.SUMMARY, *self.ABOUT))
        rows = "".join(
            f"<p><b>{html.escape(each.description())}</b><br/>{html.escape(each.help())}</p>"
            for each in self.parameterDefinitions()
            if each.help()
        )
        words = "".join(f" {name}={value}" for name, value in self.EXAMPLE.items())
        example = html.escape(f"qgis_process run debias:{self.NAME}{words and ' --' + words}")
        return f"{paragraphs}<h3>Parameters</h3>{rows}<h3>Example</h3><p><code>{example}</code></p>"

    def createInstance(self) -> DebiasAlgorithm:
        """A fresh one for each run."""
        return type(self)()

    def checkParameterValues(self, parameters: Values, context: QgsProcessingContext) -> tuple[bool, str]:
        """Refuse to run without an environment, with a sentence that says what to do."""
        accepted, reason = self.check_destinations(parameters, context)
        if accepted and settings.python_path() is None:
            return False, jobs.NO_ENVIRONMENT
        if accepted and parameters.get(p.EXTENT) and parameters.get(p.AREA):
            return False, "There are two areas: give an extent or a layer of polygons, not both."
        return accepted, reason

    def check_destinations(self, parameters: Values, context: QgsProcessingContext) -> tuple[bool, str]:
        """QGIS's own checks, and whether the folders of the outputs can take them: a run may last for hours."""
        accepted, reason = super().checkParameterValues(parameters, context)
        for definition in self.destinationParameterDefinitions() if accepted else ():
            problem = unwritable(parameters.get(definition.name(), definition.defaultValue()))
            if problem is not None:
                return False, f"{definition.description()}: {problem}"
        return accepted, reason

    def prepareAlgorithm(
        self, parameters: Values, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Take what is needed of the layers, in the main thread."""
        if self.parameterDefinition(p.INPUT) is not None:
            layer = self.parameterAsRasterLayer(parameters, p.INPUT, context)
            if layer is None:
                raise QgsProcessingException(self.invalidRasterError(parameters, p.INPUT))
            self.raster = Raster(layer)
        if self.parameterDefinition(p.AREA) is not None:
            self.area = self._area(parameters, context)
        self.prepare(parameters, context)
        return True

    def processAlgorithm(
        self, parameters: Values, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Values:
        """Run the verb and hand its results over; nothing stays of a run that was cancelled or failed."""
        with Run.of(self, parameters, context, feedback) as run:
            command = self.command(run)
            if feedback.isCanceled():
                return {}
            facts = jobs.run_command(command, feedback, device=run.value(p.DEVICE) or "auto")
            if feedback.isCanceled():
                return {}
            for note in facts.get("notes", ()):
                feedback.pushInfo(note)
            return self.results(run, command, facts)

    # What a subclass says.

    def prepare(self, parameters: Values, context: QgsProcessingContext) -> None:
        """Take what else is needed of layers, in the main thread."""

    def command(self, run: Run) -> Command:
        """What the worker runs."""
        raise NotImplementedError

    def results(self, run: Run, command: Command, facts: Values) -> Values:
        """The outputs of the algorithm.

        Args:
            run: Whose folder has the files of the worker.
            command: What the worker ran.
            facts: What it said.
        """
        raise NotImplementedError

    # What subclasses share.

    def add(self, definitions: Iterable[Parameter]) -> None:
        """Declare parameters."""
        for definition in definitions:
            self.addParameter(definition)

    def add_counts(self, what: str) -> None:
        """Declare the outputs that count."""
        self.addOutput(QgsProcessingOutputNumber(COUNT, f"Number of {what}"))
        self.addOutput(QgsProcessingOutputString(COUNTS, f"Number of {what} by class, as JSON"))

    def counts(self, facts: Values) -> Values:
        """Values of these outputs."""
        by_class = facts.get("counts", {})
        return {COUNT: sum(by_class.values()), COUNTS: json.dumps(by_class)}

    def raster_words(self, run: Run, *, with_area: bool = True) -> tuple[str, list[str]]:
        """The path of the raster, and the words of ``--area``, ``--bands`` and ``--nodata``.

        Args:
            run: Whose parameters are taken.
            with_area: Whether the verb has ``--area``.
        """
        if self.raster is None:
            raise QgsProcessingException(self.invalidRasterError(dict(run.parameters), p.INPUT))
        wanted = None if self.raster.is_file else self.area.geometry(self.raster, run.context)
        bounds = None if wanted is None else wanted.boundingBox()
        path = self.raster.path(run.folder, bounds, run.value(p.PIXEL_SIZE), run.context, run.feedback)
        area = None
        if with_area:
            area = self.area.argument(self.raster.crs, run.path("area.gpkg"), run.context, run.feedback)
        bands = list_argument(self.parameterAsInts(dict(run.parameters), p.BANDS, run.context))
        return path, [*option("--area", area), *option("--bands", bands), *run.options({p.NODATA: "--nodata"})]

    def hand_over(self, run: Run, path: str, origin: Origin) -> str:
        """Copy a layer of the worker into the sink ``OUTPUT``; gives the sink's destination."""
        result = Result.read(path)
        features = map(result.copy, result.layer.getFeatures())
        return self.fill_sink(
            run, features, all_fields(result.fields), result.layer.wkbType(), result.layer.crs(), result, origin
        )

    def fill_sink(
        self,
        run: Run,
        features: Iterable[QgsFeature],
        fields: QgsFields,
        wkb_type: Any,  # noqa: ANN401 - Qgis.WkbType
        crs: QgsCoordinateReferenceSystem,
        result: Result,
        origin: Origin,
    ) -> str:
        """Put features into the sink ``OUTPUT``, styled as the result is; gives the sink's destination."""
        # Keys of a copy need not be those of the layer, whose field may even hold one twice.
        keys = QgsFeatureSink.SinkFlag.RegeneratePrimaryKey
        sink, destination = self.parameterAsSink(
            dict(run.parameters), p.OUTPUT, run.context, fields, wkb_type, crs, keys
        )
        if sink is None:
            raise QgsProcessingException(self.invalidSinkError(dict(run.parameters), p.OUTPUT))
        problem = fill(sink, features, result.layer.featureCount(), run.feedback)
        del sink  # closes the file
        if problem is not None:
            remove_half(destination)
            raise QgsProcessingException(f"The features cannot be written to {destination}: {problem}")
        self.dress(run.context, Dress(destination, result.qml, origin.metadata()))
        return destination

    def dress(self, context: QgsProcessingContext, dress: Dress) -> None:
        """Style an output when it is loaded, and where it is a file, for good."""
        dress.when_loaded(context)
        dress.store()

    def _area(self, parameters: Values, context: QgsProcessingContext) -> Area:
        polygons = Features.of(self, parameters, p.AREA, context)
        if polygons is not None:
            return Area(polygons=polygons)
        extent = self.parameterAsExtent(parameters, p.EXTENT, context)
        if extent.isEmpty():
            return Area()
        crs = self.parameterAsExtentCrs(parameters, p.EXTENT, context)
        return Area(extent, crs if crs.isValid() or self.raster is None else self.raster.crs)
