"""How many features of each class a threshold leaves."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qgis.core import Qgis, QgsFeatureRequest, QgsVectorLayer, QgsVectorLayerFeatureSource

GROUPS = ("head", "middle", "tail", "background")
GROUP_FIELD = "group"
GROUPS_PROPERTY = "debias/groups"
"""Custom property of a result: groups of the model's classes, as JSON; features do not tell that of every class."""

Row = Sequence[object]
"""Class, score and group of a feature."""


@dataclass(frozen=True)
class Side:
    """One of the two results that a model gives: the de-biased one, or that of the plain LoRA.

    Attributes:
        layer: The layer that holds it.
        class_field: The field with its class.
        score_field: The field with its score.
    """

    layer: QgsVectorLayer
    class_field: str = "class"
    score_field: str = "score"

    def fits(self) -> bool:
        """Whether the layer has these fields."""
        fields = self.layer.fields()
        return min(fields.lookupField(self.class_field), fields.lookupField(self.score_field)) >= 0


@dataclass
class Counts:
    """The scores of one side's features.

    Attributes:
        scores: Class to its features' scores, ascending.
        groups: Class to ``head``, ``middle``, ``tail`` or ``background``.
        total: Features with a class.
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    total: int = 0

    @classmethod
    def of(cls, rows: Iterable[Row], is_cancelled: Callable[[], bool] = lambda: False) -> Counts:
        """Count rows; those without class or score (features outside the image) are left out."""
        counts = cls()
        for name, score, group in rows:
            if not (isinstance(name, str) and isinstance(score, (int, float))):
                continue
            counts.scores.setdefault(name, []).append(float(score))
            if isinstance(group, str):
                counts.groups[name] = group
            counts.total += 1
            if counts.total % 1000 == 0 and is_cancelled():
                break
        for scores in counts.scores.values():
            scores.sort()
        return counts

    def above(self, threshold: float) -> dict[str, int]:
        """Class to the number of its features with at least this score."""
        return {name: len(scores) - bisect_left(scores, threshold) for name, scores in self.scores.items()}


class SideReader:
    """The features of a side without the filter of its layer; made in the main thread, read in another one.

    Files are opened where they are read, which takes seconds for some formats.
    """

    def __init__(self, side: Side) -> None:
        layer = side.layer
        self.groups = groups_of(layer)
        group = GROUP_FIELD if side.class_field == "class" else ""  # a group belongs to the de-biased class
        self._names = (side.class_field, side.score_field, group)
        self._place = layer.source(), layer.name(), layer.providerType()
        self._memory: QgsVectorLayerFeatureSource | None = None
        if layer.providerType() == "memory":  # its features are nowhere else
            if layer.subsetString():
                layer = layer.clone()  # the layer itself keeps its filter
                layer.setSubsetString("")
            self._memory = QgsVectorLayerFeatureSource(layer)

    def read(self, is_cancelled: Callable[[], bool]) -> Counts:
        """Count them.

        Raises:
            ValueError: The layer cannot be opened.
        """
        counts = Counts.of(self.rows(), is_cancelled)
        counts.groups = {**self.groups, **counts.groups}
        return counts

    def rows(self) -> Iterable[Row]:
        """Class, score and group of each feature."""
        source = self._memory or self._open()
        columns = [source.fields().lookupField(name) for name in self._names]
        request = QgsFeatureRequest().setFlags(Qgis.FeatureRequestFlag.NoGeometry)
        request.setSubsetOfAttributes([column for column in columns if column >= 0])
        for feature in source.getFeatures(request):
            values = feature.attributes()
            yield [values[column] if column >= 0 else None for column in columns]

    def _open(self) -> QgsVectorLayer:
        """The layer once more, for this thread alone."""
        options = QgsVectorLayer.LayerOptions(False)
        options.skipCrsValidation = True  # it would ask the user
        layer = QgsVectorLayer(*self._place, options)
        if not layer.isValid() or not layer.setSubsetString(""):
            raise ValueError(f"the layer {self._place[1]} cannot be opened once more.")
        return layer


def groups_of(layer: QgsVectorLayer) -> dict[str, str]:
    """The groups that a layer's custom property names; what is no such property counts as none."""
    try:
        named = json.loads(layer.customProperty(GROUPS_PROPERTY, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    items = named.items() if isinstance(named, dict) else ()
    return {name: group for name, group in items if isinstance(group, str)}


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        name: Of a class.
        group: Its group; empty if unknown.
        counts: Its features on each side.
    """

    name: str
    group: str
    counts: tuple[int, ...]


def table(sides: Sequence[Counts], threshold: float) -> list[Line]:
    """Count all classes on all sides; groups in their order, classes from frequent to rare within."""
    groups: dict[str, str] = {}
    for counts in sides:
        groups.update(counts.groups)
    numbers = [counts.above(threshold) for counts in sides]
    names = {name for counts in sides for name in counts.scores}
    lines = [Line(name, groups.get(name, ""), tuple(n.get(name, 0) for n in numbers)) for name in names]

    def order(line: Line) -> tuple[int, int, str]:
        group = GROUPS.index(line.group) if line.group in GROUPS else len(GROUPS)
        most = max(len(counts.scores.get(line.name, ())) for counts in sides)
        return group, -most, line.name

    return sorted(lines, key=order)
