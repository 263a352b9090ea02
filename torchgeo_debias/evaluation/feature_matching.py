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
_SLIVER = 1e-6
"""Share of the smaller of two polygons below which they only touch: coordinates that were moved are off by a little."""
_POINTS = 256
"""Points of a polygon above which it is cut into pieces."""
_HALVINGS = 24


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
    truth, guess, shared = _overlaps(reference, predictions)
    both = areal[truth] & solid[guess]
    size, extent = shapely.area(reference), shapely.area(predictions)
    share = np.where(both, shared / np.where(areal, size, 1.0)[truth], 0.0)
    with np.errstate(divide="ignore"):
        cover = np.log(extent).round(_DIGITS - 3)
    rank = np.where(areal[truth], -share.round(_DIGITS), cover[guess])
    kept = ~both | (shared > _SLIVER * np.minimum(size[truth], extent[guess]))
    pairs = Candidates(truth[kept], guess[kept], rank[kept], np.zeros(int(kept.sum())))
    if areal.all() or solid.all():
        return pairs
    return _joined(pairs, _near_points(reference, predictions, np.flatnonzero(~areal), np.flatnonzero(~solid)))


def _overlaps(reference: Geometries, predictions: Geometries) -> tuple[Indices, Indices, Floats]:
    """Positions of those that meet, and the area that they share."""
    (some, owner), (others, other_owner) = _pieces(reference), _pieces(predictions)
    tree = shapely.STRtree(some)
    two, one = tree.query(others, predicate="intersects")
    # What lies in the other as a whole need not be cut, which takes long.
    keys = one * len(others) + two
    outer, inner = tree.query(others, predicate="covers")
    whole = np.isin(keys, inner * len(others) + outer)
    outer, inner = shapely.STRtree(others).query(some, predicate="covers")
    over = np.isin(keys, outer * len(others) + inner)
    shared: Floats = np.where(whole, shapely.area(some)[one], shapely.area(others)[two])
    cut = ~(whole | over)
    shared[cut] = shapely.area(shapely.intersection(some[one[cut]], others[two[cut]]))
    pairs, place = np.unique(owner[one] * len(predictions) + other_owner[two], return_inverse=True)
    truth, guess = np.divmod(pairs.astype(np.int64), len(predictions))
    return truth, guess, np.bincount(place, shared, len(pairs)).astype(np.float64)


def _pieces(shapes: Geometries) -> tuple[Geometries, Indices]:
    """The shapes with large polygons cut into pieces of few points, and the position of what each is a piece of.

    The regions of a map may have a hundred thousand points, and each overlap with one of them would look at them all.
    """
    done, owners = [], []
    owner = np.arange(len(shapes))
    for _ in range(_HALVINGS):
        large = shapely.get_num_coordinates(shapes) > _POINTS
        done.append(shapes[~large])
        owners.append(owner[~large])
        shapes, owner = shapes[large], owner[large]
        if not len(shapes):
            break
        left, bottom, right, top = shapely.bounds(shapes).T
        wide = right - left > top - bottom
        x, y = np.where(wide, (left + right) / 2, right), np.where(wide, top, (bottom + top) / 2)
        first = shapely.intersection(shapes, shapely.box(left, bottom, x, y))
        second = shapely.intersection(
            shapes, shapely.box(np.where(wide, x, left), np.where(wide, bottom, y), right, top)
        )
        shapes, owner = np.concatenate([first, second]), np.tile(owner, 2)
        there = ~shapely.is_empty(shapes)
        shapes, owner = shapes[there], owner[there]
    return np.concatenate([*done, shapes]), np.concatenate([*owners, owner])


def _near_points(reference: Geometries, predictions: Geometries, truths: Indices, guesses: Indices) -> Candidates:
    """Pairs of points that are one but for rounding."""
    guess, truth = shapely.STRtree(reference[truths]).query(predictions[guesses], predicate="dwithin", distance=REACH)
    truth, guess = truths[truth], guesses[guess]
    distance = shapely.distance(reference[truth], predictions[guess])
    return Candidates(truth, guess, np.full(len(truth), -np.inf), distance)


def _joined(one: Candidates, other: Candidates) -> Candidates:
    return Candidates(*(np.concatenate(both) for both in zip(one, other, strict=True)))
