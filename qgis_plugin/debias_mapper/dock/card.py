"""The card of a model: what it knows, what it needs and what it was trained on."""

from __future__ import annotations

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QFormLayout,
    QHeaderView,
    QLabel,
    QSizePolicy,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from .model import Model

ROWS = 6
"""Classes that are seen without scrolling."""


class ModelCard(QWidget):
    """Shows one model, or one sentence."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.sentence = QLabel()
        self.sentence.setTextFormat(Qt.TextFormat.PlainText)  # names in a package are not to be markup
        self.sentence.setWordWrap(True)
        self._facts = QWidget()
        self._form = QFormLayout(self._facts)
        self._form.setContentsMargins(0, 0, 0, 0)
        self._form.setVerticalSpacing(2)
        self.classes = QTreeWidget()
        self.classes.setRootIsDecorated(False)
        self.classes.setHeaderLabels(["Class", "Examples", "Group"])
        self.classes.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.classes.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.classes.setAlternatingRowColors(True)
        self.classes.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        header = self.classes.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in (1, 2):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.sentence, self._facts, self.classes):
            layout.addWidget(widget)
        self.say("Choose a model package to see what it knows.")

    def say(self, sentence: str) -> None:
        """Show a sentence in place of a model."""
        self.sentence.setText(sentence)
        self.sentence.show()
        self._facts.hide()
        self.classes.hide()

    def show_model(self, model: Model) -> None:
        """Show a model."""
        while self._form.rowCount():
            self._form.removeRow(0)
        for name, text in model.facts:
            value = QLabel(text)
            value.setTextFormat(Qt.TextFormat.PlainText)
            value.setWordWrap(True)
            value.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            self._form.addRow(f"{name}:", value)
        self.classes.clear()
        for entry in sorted(model.classes, key=lambda entry: -entry.count):
            item = QTreeWidgetItem([entry.name, f"{entry.count:n}", entry.group])
            item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight)
            self.classes.addTopLevelItem(item)
        rows = min(len(model.classes), ROWS)
        row = self.classes.sizeHintForRow(0) if rows else 0
        frame = 2 * self.classes.frameWidth()
        self.classes.setFixedHeight(self.classes.header().sizeHint().height() + rows * row + frame)
        self.sentence.hide()
        self._facts.show()
        self.classes.show()
