"""A layer of predictions and a reference layer, laid into one frame in which areas can be measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import CRS
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion
from pyproj.exceptions import ProjError

from torchgeo_debias.boxes.convert import Floats
from torchgeo_debias.classes import GROUPS, ClassTable, Group
from torchgeo_debias.data._layer_io import open_layer, with_class
from torchgeo_debias.errors import LabelError
from torchgeo_debias.tiling.area import AreaLike, read_area
from torchgeo_debias.tiling.source import extent

LayerLike: TypeAlias = Path | str | gpd.GeoDataFrame
"""A file of vector features, or a frame of them."""

_BACKGROUND: Group = "background"  # what layers of labels call it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """What one model says about the features of the layer of predictions.

    Attributes:
        ids: (M,) class ids, -1 where it says nothing.
        scores: (M,), nan where there is none.
    """

    ids: npt.NDArray[np.int64]
    scores: Floats


@dataclass(frozen=True)
class LayerPair:
    """The two layers; geometries are valid points or polygons in ``crs``, moved so that the origin lies among them.

    Attributes:
        names: Of the reference layer and of the predictions, for sentences.
        extents: Where they lie, likewise.
        crs: In which areas and overlaps are measured.
        reference: (N,) geometries.
        labels: (N,) class ids.
        inside: (N,) whether a point of the reference feature that represents it lies in the area of interest.
        predictions: (M,) geometries.
        reached: (M,) whether such a point of the prediction lies there.
        answers: Of the model.
        raw: Of its plain twin, None where the layer holds none.
        scored: Whether the predictions have scores.
        table: The classes, the most frequent in the reference first, with counts of the reference within the area.
        grouped: One sentence on where the groups come from.
        silent: Classes of the reference that no prediction names.
    """

    names: tuple[str, str]
    extents: tuple[str, str]
    crs: CRS
    reference: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    inside: npt.NDArray[np.bool_]
    predictions: npt.NDArray[Any]
    reached: npt.NDArray[np.bool_]
    answers: Answers
    raw: Answers | None
    scored: bool
    table: ClassTable
    grouped: str
    silent: tuple[str, ...]

    def refuse_apart(self, meetings: int) -> None:
        """Refuse layers none of whose features meet.

        Raises:
            LabelError: If there are no meetings.
        """
        if not meetings:
            raise LabelError(
                f"No prediction of {self.names[1]} overlaps a feature of {self.names[0]}: they span {self.extents[1]} "
                f"and {self.extents[0]}; see that both are of the same place."
            )


def read_pair(
    predictions: LayerLike,
    reference: LayerLike,
    class_field: str,
    *,
    predicted_field: str = "class",
    score_field: str | None = None,
    area: AreaLike | None = None,
    parts: bool = False,
) -> LayerPair:
    """Read the two layers and lay them into one frame.

    Areas are measured in the CRS of the predictions or, where that is geographic, in that of the reference; where both
    are, in a Lambert azimuthal equal-area projection about the middle of the reference.

    Args:
        predictions: Any layer with a class.
        reference: Any layer with the true class, in any CRS.
        class_field: Field of the true class.
        predicted_field: Field of the predicted class; ``<predicted_field>_raw``, where there is one, is the twin's.
        score_field: Field of the score, ``score`` where there is one if left out; likewise with ``_raw``.
        area: Where the reference is complete: polygons, or bounds in the CRS of the reference.
        parts: Whether each part of a multi-part feature stands for itself, as in the training of detectors.

    Raises:
        LabelError: If a layer cannot be used, has no such field, or has lines; or if the area holds no reference.
        ConfigError: If bounds of the area are no bounds.
    """
    truth_name, truth = _opened(reference, parts)
    guess_name, guess = _opened(predictions, parts)
    given, crs = truth.crs, _measuring_crs(guess.geometry, truth.geometry)
    truth, guess = _placed(truth_name, truth, crs), _placed(guess_name, guess, crs)
    shapes, others = truth.geometry.to_numpy(), guess.geometry.to_numpy()
    true_names = _classes(truth_name, truth, class_field)
    said = _said(guess_name, guess, predicted_field, score_field)
    said_raw = _said_raw(guess_name, guess, predicted_field, score_field or "score", said)

    inside, reached = np.ones(len(shapes), np.bool_), np.ones(len(others), np.bool_)
    if area is not None:
        outline, own = read_area(area, "reference")
        inside, reached = (_within(each, crs, outline, given if own is None else own) for each in (shapes, others))
    usable = true_names.notna().to_numpy()
    if not (inside & usable).any():
        raise LabelError(f"No feature of {truth_name} lies in the area; the layer spans {_extent(truth)}.")
    true_names, shapes, inside = true_names[usable], shapes[usable], inside[usable]

    named, groups = set(true_names), _given_groups(said.names, guess)
    table, silent = _table(true_names, inside, [one.names for one in (said, said_raw) if one is not None], groups)
    ids = {name: i for i, name in enumerate(table.names)}
    origin = np.asarray(shapely.total_bounds(shapes)).reshape(2, 2).mean(axis=0)
    pair = LayerPair(
        (truth_name, guess_name),
        (_extent(truth), _extent(guess)),
        crs,
        shapely.transform(shapes, lambda points: points - origin),
        _ids(true_names, ids),
        inside,
        shapely.transform(others, lambda points: points - origin),
        reached,
        Answers(_ids(said.names, ids), said.scores),
        None if said_raw is None else Answers(_ids(said_raw.names, ids), said_raw.scores),
        scored=said.scored,
        table=table,
        grouped=_grouped(groups, [name for name in table.names if name in named]),
        silent=silent,
    )
    _warn_of_classes(pair)
    return pair


def _opened(layer: LayerLike, parts: bool) -> tuple[str, gpd.GeoDataFrame]:
    name, frame = open_layer(layer if isinstance(layer, gpd.GeoDataFrame) else Path(layer))
    return name, frame.explode(ignore_index=True) if parts else frame.reset_index(drop=True)


def _classes(name: str, frame: gpd.GeoDataFrame, field: str) -> pd.Series:
    return with_class(name, frame, field)[field].reindex(frame.index)


class _Said(NamedTuple):
    """Class names (M,) and scores (M,), missing where there are none."""

    names: pd.Series
    scores: Floats

    @property
    def scored(self) -> bool:
        return bool(np.isfinite(self.scores).any())


def _said(name: str, frame: gpd.GeoDataFrame, class_field: str, score_field: str | None) -> _Said:
    if score_field is not None and score_field not in frame:
        fields = ", ".join(str(column) for column in frame.columns if column != frame.active_geometry_name)
        raise LabelError(f"{name} has no field {score_field!r} with scores; its fields are: {fields}.")
    return _Said(_classes(name, frame, class_field), _numbers(name, frame, score_field or "score"))


def _said_raw(name: str, frame: gpd.GeoDataFrame, class_field: str, score_field: str, said: _Said) -> _Said | None:
    """What the twin says; None where nothing, or where it has no scores beside a model that has."""
    field = f"{class_field}_raw"
    if field not in frame or not frame[field].notna().any():
        return None
    raw = _Said(_classes(name, frame, field), _numbers(name, frame, f"{score_field}_raw"))
    return raw if raw.scored or not said.scored else None


def _numbers(name: str, frame: gpd.GeoDataFrame, field: str) -> Floats:
    if field not in frame:
        return np.full(len(frame), np.nan)
    try:
        values: Floats = pd.to_numeric(frame[field]).to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise LabelError(f"The field {field!r} of {name} must hold numbers, the scores; {error}.") from error
    return values


def _measuring_crs(predictions: gpd.GeoSeries, reference: gpd.GeoSeries) -> CRS:
    for crs in (predictions.crs, reference.crs):
        if crs.is_projected:
            return CRS(crs)
    points = gpd.GeoSeries(reference.representative_point(), crs=reference.crs).to_crs(4326)
    longitude, latitude = np.radians(points.x.to_numpy()), np.radians(points.y.to_numpy())
    # The mean on the sphere knows no seam at 180 degrees.
    x, y = (np.cos(latitude) * turn(longitude) for turn in (np.cos, np.sin))
    east, north, up = x.mean(), y.mean(), np.sin(latitude).mean()
    middle = np.degrees([np.arctan2(north, east), np.arctan2(up, np.hypot(east, north))])
    name = f"Lambert azimuthal equal-area about {middle[0]:.2f}, {middle[1]:.2f} degrees"
    return ProjectedCRS(LambertAzimuthalEqualAreaConversion(middle[1], middle[0]), name)


def _placed(name: str, frame: gpd.GeoDataFrame, crs: CRS) -> gpd.GeoDataFrame:
    """The features in ``crs``, valid and flat, without those that have no place or no area; refuses lines."""
    lines = int((shapely.get_dimensions(frame.geometry.to_numpy()) == 1).sum())
    if lines:
        raise LabelError(
            f"{name} has {lines} lines, which have neither a place inside nor an area; give points or polygons."
        )
    shapes = shapely.force_2d(frame.geometry.to_crs(crs).to_numpy())
    placed = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    if not placed.all():
        _log.warning("%s: left out %d features that have no place in %s.", name, int((~placed).sum()), crs.name)
    broken = placed & ~shapely.is_valid(shapes)
    shapes[broken] = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
    collapsed = placed & shapely.is_empty(shapes)
    if collapsed.any():
        _log.warning("%s: left out %d polygons without area.", name, int(collapsed.sum()))
    kept = placed & ~collapsed
    if not kept.any():
        raise LabelError(f"{name} has no feature with a place in {crs.name} and an area; redraw them.")
    return (
        frame[kept].set_geometry(gpd.GeoSeries(shapes[kept], index=frame.index[kept], crs=crs)).reset_index(drop=True)
    )


def _extent(frame: gpd.GeoDataFrame) -> str:
    return extent(frame.total_bounds, frame.crs)


def _within(shapes: npt.NDArray[Any], crs: CRS, outline: shapely.Geometry, its_crs: CRS) -> npt.NDArray[np.bool_]:
    """Whether the point that represents each feature lies in an area.

    The points go to the CRS of the area, not the area to theirs: it may be the whole earth, of which a projected CRS
    shows a part.
    """
    points = gpd.GeoSeries(shapely.point_on_surface(shapes), crs=crs)
    try:
        points = points.to_crs(its_crs)
    except ProjError as error:  # of a drawing, or of another planet
        raise LabelError(
            f"The area has a coordinate reference system without a place on the earth ({its_crs.name}); assign the "
            "right one first."
        ) from error
    x, y = points.x.to_numpy(), points.y.to_numpy()
    shapely.prepare(outline)
    # Degrees east may be counted from 0 to 360.
    turns = (-360.0, 0.0, 360.0) if its_crs.is_geographic else (0.0,)
    within: npt.NDArray[np.bool_] = np.any([shapely.intersects_xy(outline, x + turn, y) for turn in turns], axis=0)
    return within


def _given_groups(said: pd.Series, frame: gpd.GeoDataFrame) -> dict[str, Group]:
    """The group of each class by the predictions' own attribute; none where that is missing or not of one mind."""
    if "group" not in frame:
        return {}
    pairs = pd.DataFrame({"class": said, "group": frame["group"].astype("string")}).dropna().drop_duplicates()
    if pairs["class"].duplicated().any() or not pairs["group"].isin([*GROUPS, _BACKGROUND]).all():
        return {}
    return {str(name): cast(Group, group) for name, group in zip(pairs["class"], pairs["group"], strict=True)}


def _table(
    reference: pd.Series, inside: npt.NDArray[np.bool_], said: Sequence[pd.Series], groups: dict[str, Group]
) -> tuple[ClassTable, tuple[str, ...]]:
    """The classes of both layers, and those of the reference that no prediction names."""
    counts: dict[str, int] = reference[inside].value_counts().to_dict()
    predicted = {str(name) for names in said for name in names.dropna().unique()}
    order = sorted(
        {*reference.unique(), *predicted}, key=lambda name: (name == _BACKGROUND, -counts.get(name, 0), name)
    )
    background = _BACKGROUND if _BACKGROUND in order else None
    # Classes without a reference feature must not push others out of the tail.
    ranked = ClassTable.from_counts(
        {name: counts[name] for name in order if name in counts},
        background=background if background in counts else None,
    )
    by_count: dict[str, Group] = dict(zip(ranked.names, ranked.groups, strict=True))
    other: dict[str, Group] = {name: _BACKGROUND if name == background else "tail" for name in order}
    table = ClassTable(
        tuple(order),
        tuple(counts.get(name, 0) for name in order),
        tuple({**other, **by_count, **groups}[name] for name in order),
    )
    return table, tuple(name for name in order if name in counts and name not in predicted)


def _grouped(groups: dict[str, Group], reference: Sequence[str]) -> str:
    if not groups:
        return (
            "Groups are thirds of the classes by their number of reference features, since the predictions tell none "
            "of the training."
        )
    sentence = "Groups are those of the training, as the predictions tell them"
    if others := [name for name in reference if name not in groups and name != _BACKGROUND]:
        return f"{sentence}; {', '.join(others)}, of which none tells it, by the number of reference features."
    return f"{sentence}."


def _ids(names: pd.Series, ids: dict[str, int]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = names.map(ids).fillna(-1).to_numpy(np.int64)
    return found


def _warn_of_classes(pair: LayerPair) -> None:
    named = [name for name, count in zip(pair.table.names, pair.table.counts, strict=True) if count]
    if len(pair.silent) == len(named):
        others = [name for name in pair.table.names if name not in named]
        _log.warning(
            "The layers have no class in common: the reference has %s and the predictions have %s; are these the "
            "right fields?",
            ", ".join(named),
            ", ".join(others),
        )
