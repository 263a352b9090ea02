"""What to run: an image, an area, a model, and the few options that matter; the toolbox has all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterDefinition,
    QgsProject,
    QgsReferencedRectangle,
)
from qgis.gui import QgsCollapsibleGroupBox, QgsFileWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QFrame,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from .. import settings
from .model import CLASSIFICATION, DETECTION, Model
from .picker import ModelPicker
from .tasks import BackgroundTask

PROVIDER = "debias"
WHOLE, VISIBLE, POLYGONS = range(3)
DEVICES = (("auto", "Automatic"), ("cpu", "Processor (CPU)"), ("cuda:0", "Graphics card (CUDA)"))


@dataclass(frozen=True)
class Task:
    """Something a model can do.

    Attributes:
        title: For the list.
        name: Of the algorithm in the toolbox.
        ending: Of the file, for the dialog that asks for one.
    """

    title: str
    name: str
    ending: str = "GeoPackage (*.gpkg)"

    @property
    def algorithm(self) -> str:
        """Its id in the toolbox."""
        return f"{PROVIDER}:{self.name}"

    def has(self, parameter: str) -> bool:
        """Whether the algorithm takes this parameter."""
        return self._definition(parameter) is not None

    def usual(self, parameter: str) -> Any:  # noqa: ANN401 - of any type
        """The value of a parameter unless another one is given."""
        definition = self._definition(parameter)
        return None if definition is None else definition.defaultValue()

    def _definition(self, parameter: str) -> QgsProcessingParameterDefinition | None:
        algorithm = QgsApplication.processingRegistry().algorithmById(self.algorithm)
        return None if algorithm is None else algorithm.parameterDefinition(parameter)


TASKS = {
    DETECTION: (Task("Find the objects", "detect"),),
    CLASSIFICATION: (
        Task("Classify tiles", "classify_tiles"),
        Task("Make a class map", "classify_pixels", "GeoTIFF (*.tif)"),
        Task("Name the features of a layer", "classify_features"),
    ),
}


class RunPanel(QScrollArea):
    """The tab that says what to run.

    Args:
        visible: Gives the part of the world that the map shows.
        parent: Of the widget.
    """

    changed = pyqtSignal()
    """Something else would run now."""
    moreWanted = pyqtSignal()
    """The user asks for the toolbox's dialog with what is chosen here."""

    def __init__(self, visible: Callable[[], QgsReferencedRectangle], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._visible = visible
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        inside = QWidget()
        layout = QVBoxLayout(inside)
        self._form = QFormLayout()
        self._form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        layout.addLayout(self._form)
        self._build_inputs()
        self._about = QgsCollapsibleGroupBox("About the model")
        QVBoxLayout(self._about).addWidget(self.picker.card)
        layout.addWidget(self._about)
        layout.addWidget(self._build_options())
        layout.addStretch(1)
        self.setWidget(inside)
        self.picker.modelChanged.connect(self._take_model)
        self._take_model(None)

    def _build_inputs(self) -> None:
        self.image = QgsMapLayerComboBox()
        self.image.setFilters(Qgis.LayerFilters(Qgis.LayerFilter.RasterLayer))
        self.area = QComboBox()
        self.area.addItems(["Whole image", "What the map shows", "Polygons of a layer"])
        self.polygons = QgsMapLayerComboBox()
        self.polygons.setFilters(Qgis.LayerFilters(Qgis.LayerFilter.PolygonLayer))
        self.picker = ModelPicker()
        self.task = QComboBox()
        self.features = QgsMapLayerComboBox()
        self.features.setFilters(Qgis.LayerFilters(Qgis.LayerFilter.PolygonLayer | Qgis.LayerFilter.PointLayer))
        _wide(self.image, self.area, self.polygons, self.task, self.features)
        for name, widget in (
            ("Image", self.image), ("Area", self.area), ("Polygons", self.polygons), ("Model", self.picker),
            ("Task", self.task), ("Features", self.features),
        ):  # fmt: skip
            self._form.addRow(name, widget)
        self.image.layerChanged.connect(self.changed)
        self.area.currentIndexChanged.connect(self._adapt)
        self.polygons.layerChanged.connect(self.changed)
        self.task.currentIndexChanged.connect(self._take_task)
        self.features.layerChanged.connect(self.changed)

    def _build_options(self) -> QWidget:
        box = QgsCollapsibleGroupBox("Options")
        box.setCollapsed(True)
        self._options = QFormLayout(box)
        self._options.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self.score, self.overlap = QDoubleSpinBox(), QDoubleSpinBox()
        for spin, most in ((self.score, 1.0), (self.overlap, 0.9)):
            spin.setRange(0, most)
            spin.setSingleStep(0.05)
        self.score.setToolTip("What scores less is not written. Keep it low: the result can be filtered afterwards.")
        self.overlap.setToolTip("Share of a tile that the next one covers again")
        self.device = QComboBox()
        for name, title in DEVICES:
            self.device.addItem(title, name)
        self.device.setCurrentIndex(max(0, self.device.findData(settings.device())))
        self.device.currentIndexChanged.connect(lambda: settings.set_device(self.device.currentData()))
        self.weights = QgsFileWidget()
        self.weights.setFilter("Weights (*.safetensors *.pth *.pt)")
        self.weights.lineEdit().setPlaceholderText("Found by the library")
        self.weights.setToolTip("File with the weights of the backbone, where the library cannot find or download them")
        self.file = QgsFileWidget()
        self.file.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.file.lineEdit().setPlaceholderText("Temporary layer")
        _wide(self.device)
        for name, widget in (
            ("Least score", self.score), ("Overlap", self.overlap), ("Compute on", self.device),
            ("Weights", self.weights), ("Save to", self.file),
        ):  # fmt: skip
            self._options.addRow(name, widget)
        self.more = QPushButton("All options…")
        self.more.setToolTip("Open the toolbox's dialog with what is chosen here")
        self.more.clicked.connect(self.moreWanted)
        self._options.addRow("", self.more)
        return box

    @property
    def chosen(self) -> Task | None:
        """What the model is to do."""
        task = self.task.currentData()
        return task if isinstance(task, Task) else None

    @property
    def model(self) -> Model | None:
        """The model, once it has been read."""
        return self.picker.model

    def missing(self) -> str:
        """What is left to choose before a run; empty if nothing is."""
        if self.image.currentLayer() is None:
            return "Add a raster layer to begin."
        if self.model is None or self.chosen is None:
            return "Choose a model."
        if self.chosen.has("FEATURES") and self.features.currentLayer() is None:
            return "Add the layer whose features are to be named."
        if self._wants_polygons() and self.polygons.currentLayer() is None:
            return "Add a polygon layer of the area, or choose another area."
        return ""

    def parameters(self) -> dict[str, Any]:
        """Parameters of the algorithm, as the toolbox takes them."""
        chosen, model, image = self.chosen, self.model, self.image.currentLayer()
        if chosen is None or model is None or image is None:
            return {}
        parameters: dict[str, Any] = {
            "INPUT": image.id(),
            "MODEL": model.path,
            "DEVICE": self.device.currentData(),
            "OUTPUT": destination(self.file.filePath()),
        }
        if self.weights.filePath():
            parameters["WEIGHTS"] = self.weights.filePath()
        if chosen.has("FEATURES"):
            parameters["FEATURES"] = _id(self.features)
        if chosen.has("MIN_SCORE"):
            parameters["MIN_SCORE"] = self.score.value()
        if chosen.has("OVERLAP"):
            parameters["OVERLAP"] = self.overlap.value()
        if self.area.currentIndex() == VISIBLE:
            parameters["EXTENT"] = self._visible()
        if self._wants_polygons():
            parameters["AREA"] = _id(self.polygons)
        return parameters

    def close_down(self) -> list[BackgroundTask]:
        """Cancel what runs; gives the tasks to wait for."""
        return self.picker.close_down()

    def _wants_polygons(self) -> bool:
        return bool(self.area.currentIndex() == POLYGONS)

    def _take_model(self, model: Model | None) -> None:
        """Offer what the model can do."""
        before = self.chosen
        self.task.blockSignals(True)
        self.task.clear()
        for task in TASKS.get(model.task, ()) if model is not None else ():
            self.task.addItem(task.title, task)
        self.task.setCurrentIndex(max(0, self.task.findData(before)) if self.task.count() else -1)
        self.task.blockSignals(False)
        self.task.setEnabled(self.task.count() > 1)
        self._take_task()

    def _take_task(self) -> None:
        """Begin with the usual options of the task."""
        chosen = self.chosen
        if chosen is not None:
            self.score.setValue(chosen.usual("MIN_SCORE") or 0.0)
            self.overlap.setValue(chosen.usual("OVERLAP") or 0.0)
            self.file.setFilter(chosen.ending)
            self.file.setFilePath("")
        self._adapt()

    def _adapt(self) -> None:
        """Show the rows that mean something."""
        chosen = self.chosen
        _show(self._form, self.polygons, self._wants_polygons())
        _show(self._form, self.features, chosen is not None and chosen.has("FEATURES"))
        _show(self._options, self.score, chosen is not None and chosen.has("MIN_SCORE"))
        _show(self._options, self.overlap, chosen is not None and chosen.has("OVERLAP"))
        self.changed.emit()


def destination(path: str = "") -> QgsProcessingOutputLayerDefinition:
    """Where a result goes: a file or a temporary layer, and into the project."""
    return QgsProcessingOutputLayerDefinition(path or QgsProcessing.TEMPORARY_OUTPUT, QgsProject.instance())


def _wide(*combos: QComboBox) -> None:
    """Let combos take the room there is, whatever their texts."""
    for combo in combos:
        combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        combo.setMinimumContentsLength(8)
        combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)


def _show(form: QFormLayout, widget: QWidget, shown: bool) -> None:
    label = form.labelForField(widget)
    if isinstance(label, QLabel):
        label.setVisible(shown)
    widget.setVisible(shown)


def _id(combo: QgsMapLayerComboBox) -> str:
    layer: QgsMapLayer | None = combo.currentLayer()
    return "" if layer is None else layer.id()
