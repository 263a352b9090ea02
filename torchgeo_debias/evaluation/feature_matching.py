"""Which feature of a layer of predictions answers for each feature of a reference layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.boxes.candidates import Indices
from torchgeo_debias.boxes.convert import Floats

Geometries = npt.NDArray[Any]

REACH = 0.05
"""Units of the frame (metres) within which two points are one: formats round coordinates."""

MATCHING = (
    "Each reference polygon takes the prediction that shares the largest area with it, each reference point the "
    "smallest prediction that contains it (or a point within 5 cm); of equal ones the surer counts. A reference "
    "feature that no prediction reaches is missed: it counts as wrong, as a sample of its class without an answer. "
    "Predictions where there is no reference feature do not count."
)

_DIGITS = 9


class Candidates(NamedTuple):
    """Pairs (P,) of a reference feature and a prediction that could answer for it.

    Attributes:
        truth: Position of the reference feature.
        guess: Position of the prediction.
        rank: Lower is better: for polygons less the shared part of the reference, for points the logarithm of the area
            of the prediction; rounded, so that what differs by the last digits is equal.
        distance: Between two points, 0 for all others.
    """

    truth: Indices
    guess: Indices
    rank: Floats
    distance: Floats

    def best(self, scores: Floats, usable: npt.NDArray[np.bool_], count: int) -> Indices:
        """The prediction of each reference feature.

        Args:
            scores: (M,) of the predictions, nan where there is none.
            usable: (M,) predictions that may be taken.
            count: Number of reference features N.

        Returns:
            (N,) positions of predictions, -1 where none can be taken.
        """
        taken = usable[self.guess]
        truth, guess = self.truth[taken], self.guess[taken]
        surest = -np.nan_to_num(scores, nan=-np.inf, neginf=-np.inf, posinf=np.inf)[guess]
        order = np.lexsort((guess, surest, self.distance[taken], self.rank[taken], truth))
        first, where = np.unique(truth[order], return_index=True)
        result = np.full(count, -1, np.int64)
        result[first] = guess[order][where]
        return result


def candidates(reference: Geometries, predictions: Geometries) -> Candidates:
    """All pairs that overlap; :data:`MATCHING` says which of them is taken.

    Args:
        reference: (N,) valid points or polygons in a frame whose areas are true to each other.
        predictions: (M,) likewise, in the same frame.
    """
    areal, solid = (shapely.get_dimensions(shapes) == 2 for shapes in (reference, predictions))
    tree = shapely.STRtree(reference)
    guess, truth = tree.query(predictions, predicate="intersects")
    size, cover = shapely.area(reference), shapely.area(predictions)
    both = areal[truth] & solid[guess]
    share = np.zeros(len(truth))
    share[both] = _shared(reference, predictions, truth[both], guess[both]) / size[truth[both]]
    with np.errstate(divide="ignore"):
        rank = np.where(areal[truth], -share.round(_DIGITS), np.log(cover[guess]).round(_DIGITS - 3))
    kept = ~both | (share > 0)  # polygons that only touch share nothing
    pairs = Candidates(truth[kept], guess[kept], rank[kept], np.zeros(int(kept.sum())))
    if areal.all() or solid.all():
        return pairs
    return _joined(pairs, _near_points(reference, predictions, np.flatnonzero(~areal), np.flatnonzero(~solid)))


def _shared(reference: Geometries, predictions: Geometries, truth: Indices, guess: Indices) -> Floats:
    """Shared area (P,) of pairs of polygons; computed only where neither lies in the other."""
    keys = truth * len(predictions) + guess
    over, inside = shapely.STRtree(reference).query(predictions, predicate="covers")
    outer, within = shapely.STRtree(predictions).query(reference, predicate="covers")
    in_prediction = np.isin(keys, inside * len(predictions) + over)
    in_reference = np.isin(keys, outer * len(predictions) + within)
    shared: Floats = np.where(in_prediction, shapely.area(reference)[truth], shapely.area(predictions)[guess])
    rest = ~(in_prediction | in_reference)
    shared[rest] = shapely.area(shapely.intersection(reference[truth[rest]], predictions[guess[rest]]))
    return shared


def _near_points(reference: Geometries, predictions: Geometries, truths: Indices, guesses: Indices) -> Candidates:
    """Pairs of points that are one but for rounding."""
    guess, truth = shapely.STRtree(reference[truths]).query(predictions[guesses], predicate="dwithin", distance=REACH)
    truth, guess = truths[truth], guesses[guess]
    distance = shapely.distance(reference[truth], predictions[guess])
    return Candidates(truth, guess, np.full(len(truth), -np.inf), distance)


def _joined(one: Candidates, other: Candidates) -> Candidates:
    return Candidates(*(np.concatenate(both) for both in zip(one, other, strict=True)))
