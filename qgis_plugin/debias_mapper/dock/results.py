"""What came out: a threshold that only filters, de-biased against plain LoRA, counts per class and group."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qgis.core import Qgis, QgsCategorizedSymbolRenderer, QgsMapLayer, QgsProject, QgsVectorLayer
from qgis.gui import QgsMapLayerComboBox
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt, QTimer, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QButtonGroup,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QRadioButton,
    QSizePolicy,
    QSlider,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from .counting import Counts, Line, Side, SideReader, table
from .tasks import Background, BackgroundTask, Outcome

PLAIN_LAYER = "debias/plain"
"""Custom property of a detector's result: id of the layer with the objects of the plain LoRA."""
DEBOUNCE = 150
"""Milliseconds that the slider must rest before the layer is filtered."""

_SIGNALS = {
    "editingStarted": "_draw",
    "editingStopped": "_draw",
    "subsetStringChanged": "_refiltered",
    "afterCommitChanges": "_count",
}
"""Of the layers that are shown: what may happen to them elsewhere, and what this panel does then."""
_OURS = re.compile(r'^"(score|score_raw)" >= ([0-9.]+)$')


def sides(layer: QgsVectorLayer) -> list[Side]:
    """The de-biased result of a layer and, where there is one, that of the plain LoRA."""
    found = [Side(layer)]
    twin = Side(layer, "class_raw", "score_raw")
    if twin.fits():
        found.append(twin)
    else:
        plain = QgsProject.instance().mapLayer(str(layer.customProperty(PLAIN_LAYER, "")))
        if isinstance(plain, QgsVectorLayer) and Side(plain).fits():
            found.append(Side(plain))
    return found


def is_result(layer: QgsMapLayer) -> bool:
    """Whether a layer has classes with scores."""
    return isinstance(layer, QgsVectorLayer) and Side(layer).fits()


def expression(side: Side, threshold: float) -> str:
    """The filter of a layer."""
    return f'"{side.score_field}" >= {threshold:g}' if threshold > 0 else ""


class ResultsPanel(QWidget):
    """The tab that looks at a result layer."""

    plainWanted = pyqtSignal(QgsVectorLayer)
    """The user asks for the plain LoRA's objects beside those of this layer."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._background = Background()
        self._task: BackgroundTask | None = None
        self._sides: list[Side] = []
        self._ids: set[str] = set()
        self._heard: list[QgsVectorLayer] = []
        self._filtering = False
        self._counts: list[Counts] = []
        self._can_run_plain: Callable[[QgsVectorLayer], bool] = lambda layer: False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DEBOUNCE)
        self._timer.timeout.connect(self._filter)
        self._build()
        project = QgsProject.instance()
        project.layersAdded.connect(self._offer)
        project.layersRemoved.connect(self._removed)
        self.layers.layerChanged.connect(self._open)
        self._offer()

    @property
    def threshold(self) -> float:
        """The least score that is shown."""
        return float(self.spin.value())

    def set_plain_check(self, check: Callable[[QgsVectorLayer], bool]) -> None:
        """Say for which layers the plain LoRA can be run again."""
        self._can_run_plain = check

    def show_layer(self, layer: QgsVectorLayer) -> None:
        """Look at this layer."""
        self._offer()
        if self.layers.currentLayer() is layer:
            self._open(layer)
        self.layers.setLayer(layer)

    def close_down(self) -> list[BackgroundTask]:
        """Let go of the project and cancel what runs; gives the tasks to wait for."""
        self._timer.stop()
        project = QgsProject.instance()
        project.layersAdded.disconnect(self._offer)
        project.layersRemoved.disconnect(self._removed)
        self._listen([])
        return self._background.stop()

    def _build(self) -> None:
        self.layers = QgsMapLayerComboBox()
        self.layers.setFilters(Qgis.LayerFilters(Qgis.LayerFilter.VectorLayer))
        self.layers.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

        self.debiased, self.plain = QRadioButton("De-biased"), QRadioButton("Plain LoRA")
        self.debiased.setChecked(True)
        self.plain.setToolTip("The same model without de-biasing, as it was kept for comparison")
        self._choice = QButtonGroup(self)
        self._choice.addButton(self.debiased, 0)
        self._choice.addButton(self.plain, 1)
        self._choice.idToggled.connect(self._toggle)
        self.run_plain = QPushButton("Run the plain LoRA too")
        self.run_plain.setToolTip("Find the objects of the plain LoRA as well, as a second layer to compare with")
        self.run_plain.clicked.connect(lambda: self.plainWanted.emit(self._sides[0].layer))
        choice = QHBoxLayout()
        for widget in (self.debiased, self.plain):
            choice.addWidget(widget)
        choice.addStretch()

        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, 100)
        self.spin = QDoubleSpinBox()
        self.spin.setRange(0, 1)
        self.spin.setSingleStep(0.01)
        self.slider.valueChanged.connect(lambda value: self.spin.setValue(value / 100))
        self.spin.valueChanged.connect(self._moved)
        score = QHBoxLayout()
        score.addWidget(self.slider, 1)
        score.addWidget(self.spin)

        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Result", self.layers)
        form.addRow("Show", choice)
        form.addRow("", self.run_plain)
        form.addRow("Least score", score)

        self.hint = QLabel()
        self.hint.setTextFormat(Qt.TextFormat.PlainText)
        self.hint.setWordWrap(True)
        self.table = QTreeWidget()
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.table.setAlternatingRowColors(True)
        self.table.setHeaderLabels(["Class", "De-biased", "Plain LoRA"])
        header = self.table.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in (1, 2):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
            self.table.headerItem().setTextAlignment(column, Qt.AlignmentFlag.AlignRight)

        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.hint)
        layout.addWidget(self.table, 1)

    def _offer(self, *_: object) -> None:
        """Leave out of the list what is no result."""
        layers = QgsProject.instance().mapLayers().values()
        companions = {str(layer.customProperty(PLAIN_LAYER, "")) for layer in layers}
        hidden = [layer for layer in layers if not is_result(layer) or layer.id() in companions]
        self.layers.setExceptedLayerList(hidden)

    def _removed(self, ids: Sequence[str]) -> None:
        """One of two layers that are compared may have gone."""
        self._offer()
        if self._ids.intersection(ids):
            self._open(self.layers.currentLayer())

    def _open(self, layer: QgsMapLayer | None) -> None:
        """Begin to look at a layer: its filter and side as they are, its features counted in the background."""
        self._timer.stop()
        self._sides = sides(layer) if isinstance(layer, QgsVectorLayer) else []
        self._ids = {side.layer.id() for side in self._sides}
        self._listen([side.layer for side in self._sides])
        self._read_state()
        self._count()

    def _listen(self, layers: Sequence[QgsVectorLayer]) -> None:
        """Follow what happens to these layers, and to no others."""
        for layer in self._heard:
            if not sip.isdeleted(layer):
                for signal, slot in _SIGNALS.items():
                    getattr(layer, signal).disconnect(getattr(self, slot))
        self._heard = [layer for number, layer in enumerate(layers) if layer not in layers[:number]]
        for layer in self._heard:
            for signal, slot in _SIGNALS.items():
                getattr(layer, signal).connect(getattr(self, slot))

    def _refiltered(self) -> None:
        """The filter of a layer was changed, perhaps by somebody else."""
        if not self._filtering:
            self._timer.stop()
            self._read_state()
            self._draw()

    def _count(self) -> None:
        """Count the features in the background."""
        if self._task is not None:
            self._task.forget()
        self._counts = []
        self._draw()
        if self._sides:
            readers = [SideReader(side) for side in self._sides]
            self._task = self._background.start(
                "Count the classes", lambda task: [reader.read(task.isCanceled) for reader in readers], self._counted
            )

    def _read_state(self) -> None:
        """Put the controls where the layer is."""
        threshold, plain = 0.0, False
        if self._sides:
            own = _OURS.match(self._sides[0].layer.subsetString())
            threshold = float(own[2]) if own else 0.0
            # Both results in one layer: its filter tells which one was looked at, whatever the user's style shows.
            both_in_one = len(self._sides) == 2 and len(self._ids) == 1
            plain = own[1] == self._sides[1].score_field if own and both_in_one else self._plain_is_shown()
        for widget in (self.spin, self.slider, self._choice):
            widget.blockSignals(True)
        self.spin.setValue(threshold)
        self.slider.setValue(round(100 * threshold))
        (self.plain if plain else self.debiased).setChecked(True)
        for widget in (self.spin, self.slider, self._choice):
            widget.blockSignals(False)

    def _plain_is_shown(self) -> bool:
        if len(self._sides) < 2:
            return False
        first, second = self._sides
        if first.layer is second.layer:
            renderer = first.layer.renderer()
            return isinstance(renderer, QgsCategorizedSymbolRenderer) and (
                renderer.classAttribute() == second.class_field
            )
        node = QgsProject.instance().layerTreeRoot().findLayer(first.layer.id())
        return node is not None and not node.itemVisibilityChecked()

    def _counted(self, outcome: Outcome) -> None:
        if outcome.sentence:
            self.hint.setText(f"The features could not be counted: {outcome.sentence}")
        elif not outcome.cancelled:
            self._counts = outcome.value
            self._draw()

    def _moved(self, value: float) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(round(100 * value))
        self.slider.blockSignals(False)
        self._draw()
        self._timer.start()

    def _toggle(self, _: int, checked: bool) -> None:
        if checked and len(self._sides) == 2:
            shown = self._sides[self._choice.checkedId()]
            if self._sides[0].layer is self._sides[1].layer:
                show_class(shown.layer, shown.class_field)
            else:
                root = QgsProject.instance().layerTreeRoot()
                for side in self._sides:
                    node = root.findLayer(side.layer.id())
                    if node is not None:
                        node.setItemVisibilityChecked(side is shown)
            self._filter()
            self._draw()

    def _filter(self) -> None:
        """Let the layers show what the controls say."""
        if not self._sides or self._reason() != "":
            return
        both_in_one = len({side.layer.id() for side in self._sides}) == 1
        for side in [self._sides[self._choice.checkedId()]] if both_in_one else self._sides:
            wanted = expression(side, self.threshold)
            if side.layer.subsetString() != wanted:
                self._filtering = True
                side.layer.setSubsetString(wanted)
                self._filtering = False

    def _reason(self) -> str:
        """Why the slider cannot filter; empty if it can."""
        for side in self._sides:
            if side.layer.isEditable():
                return "The layer is being edited: end that to filter it."
            if side.layer.subsetString() and not _OURS.match(side.layer.subsetString()):
                return "The layer has a filter of its own: remove that to use this one."
        return ""

    def _draw(self) -> None:
        """Show counts and state."""
        here, two, reason = bool(self._sides), len(self._sides) == 2, self._reason()
        for widget in (self.slider, self.spin):
            widget.setEnabled(here and reason == "")
        self.debiased.setEnabled(here)
        self.plain.setEnabled(two)
        self.run_plain.setVisible(here and not two and self._can_run_plain(self._sides[0].layer))
        self.table.setColumnHidden(2, not two)
        self.table.headerItem().setText(1, "De-biased" if two else "Features")
        self.table.clear()
        self.hint.setVisible(here)
        if not self._counts:
            self.hint.setText(reason or "Counting…")
            return
        lines = table(self._counts, self.threshold)
        shown = self._choice.checkedId() if two else 0
        number = sum(line.counts[shown] for line in lines)
        self.hint.setText(reason or f"{number:n} of {self._counts[shown].total:n} features shown")
        fill(self.table, lines, shown)


def show_class(layer: QgsVectorLayer, name: str) -> None:
    """Colour a layer by another class field; styles that show something else are left alone."""
    shown = layer.renderer()
    if isinstance(shown, QgsCategorizedSymbolRenderer) and shown.classAttribute() in ("class", "class_raw"):
        renderer = shown.clone()
        renderer.setClassAttribute(name)
        layer.setRenderer(renderer)
        layer.triggerRepaint()


def fill(tree: QTreeWidget, lines: Sequence[Line], shown: int) -> None:
    """Write the counts into the tree: groups with sums, their classes below; the shown side in bold."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    for group, members in groups.items():
        sums = [sum(column) for column in zip(*(line.counts for line in members))]
        top = _item([group.capitalize() or "Group unknown", *sums], shown)
        tree.addTopLevelItem(top)
        for line in members:
            top.addChild(_item([line.name, *line.counts], shown))
        top.setExpanded(True)


def _item(values: Sequence[object], shown: int) -> QTreeWidgetItem:
    item = QTreeWidgetItem([f"{value:n}" if isinstance(value, int) else str(value) for value in values])
    for column in range(1, len(values)):
        item.setTextAlignment(column, Qt.AlignmentFlag.AlignRight)
    font = item.font(shown + 1)
    font.setBold(True)
    item.setFont(shown + 1, font)
    return item
