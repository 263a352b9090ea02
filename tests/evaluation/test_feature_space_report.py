from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.quiver import Quiver
from scipy.spatial.distance import cdist

from tests.evaluation.spaces import make_space
from tests.evaluation.test_report import Page
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.evaluation import feature_space_report as report
from torchgeo_debias.evaluation.feature_space import FeatureSpace
from torchgeo_debias.evaluation.feature_space_report import Embedding, embed, feature_space_figure, feature_space_report


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return make_space()


@pytest.fixture(scope="module")
def places(space: FeatureSpace) -> Embedding:
    return embed(space, seed=3)


def test_every_chip_and_every_centre_has_its_place(space: FeatureSpace, places: Embedding) -> None:
    np.testing.assert_array_equal(places.chips, np.arange(54))
    np.testing.assert_array_equal(places.moved, np.flatnonzero(space.labels >= 4))
    shapes = [part.shape for part in (places.before, places.targets, places.centres, places.debiased, places.after)]
    assert shapes == [(54, 2), (3, 2), (5, 2), (6, 2), (54, 2)]
    np.testing.assert_array_equal(np.isfinite(places.debiased).all(axis=1), space.moved)
    assert places.perplexity == pytest.approx(53 / 3)


def test_neighbours_in_the_plane_are_neighbours_in_feature_space(space: FeatureSpace, places: Embedding) -> None:
    for points in (places.before, places.after):
        apart = cdist(points, points)
        np.fill_diagonal(apart, np.inf)
        frequent = space.labels < 2
        assert (space.labels[apart.argmin(axis=1)] == space.labels)[frequent].mean() > 0.9
    # A cluster's centre lies nearer to its own members than to those of any other cluster.
    apart = cdist(places.centres, places.before)
    own = [apart[k][space.clusters == k].mean() for k in range(5)]
    others = [min(apart[k][space.clusters == j].mean() for j in range(5) if j != k) for k in range(5)]
    assert np.less(own, others).mean() >= 0.8


def test_the_seed_repeats_it(space: FeatureSpace, places: Embedding) -> None:
    again = embed(space, seed=3)
    np.testing.assert_array_equal(again.before, places.before)
    np.testing.assert_array_equal(again.after, places.after)


def test_features_that_did_not_change_stay_where_they_were_turned_to(space: FeatureSpace) -> None:
    still = embed(replace(space, after=space.before))
    for axis in (0, 1):
        assert np.corrcoef(still.before[:, axis], still.after[:, axis])[0, 1] > 0.6


@pytest.mark.parametrize("perplexity", [0.5, 54, 1000])
def test_a_perplexity_that_needs_more_chips_is_refused(space: FeatureSpace, perplexity: float) -> None:
    with pytest.raises(ConfigError, match=f"below the number of chips, 54; received {perplexity:g}"):
        embed(space, perplexity)


def test_few_chips_have_few_neighbours() -> None:
    places = embed(make_space({"ship": 2, "pad": 2}))
    assert places.perplexity == 1
    assert np.isfinite(places.before).all()
    with pytest.raises(DataError, match="at least 4 chips; there are 3"):
        embed(make_space({"ship": 2, "pad": 1}))


def test_features_that_are_all_alike_have_places(space: FeatureSpace) -> None:
    assert np.isfinite(embed(replace(space, after=np.ones_like(space.after))).after).all()


def test_of_too_many_chips_the_moved_ones_are_shown(space: FeatureSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_MOST_SHOWN", 20)
    places = embed(space)
    assert len(places.chips) == 20
    assert (np.diff(places.chips) > 0).all()
    assert {int(i) for i in np.flatnonzero(space.labels >= 4)} <= set(places.chips.tolist())
    assert len(places.targets) == 3
    assert feature_space_figure(space, places)


def test_arrows_lead_from_rare_samples_to_their_targets(space: FeatureSpace, places: Embedding) -> None:
    left, right = feature_space_figure(space, places).axes
    (arrows,) = (child for child in left.get_children() if isinstance(child, Quiver))
    starts, steps = np.column_stack([arrows.X, arrows.Y]), np.column_stack([arrows.U, arrows.V])
    np.testing.assert_allclose(np.asarray(arrows.XY), places.before[places.moved], rtol=1e-6)
    np.testing.assert_allclose(starts + steps, places.targets, rtol=1e-4, atol=1e-4)
    assert not [child for child in right.get_children() if isinstance(child, Quiver)]


def test_the_report_is_one_page_with_everything_in_it(space: FeatureSpace, places: Embedding, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    feature_space_report(path, space, places, title="Of <two>", seed=3)
    page = Page(path)
    assert not page.outside
    assert {"h1", "table", "svg"} <= set(page.tags)
    found = space.distances()
    means = [f"{found[state].means['between head-tail']:.3f}" for state in ("before", "calibrated", "after")]
    assert f"between head-tail {' '.join(means)}" in page.text
    for words in ("Of <two>", "<b>quay</b>", "3 of 54 training chips, those of 2 of 6 classes", "weights 0123456789ab"):
        assert words in page.text
    assert "Seed of the picture 3" in page.text
    feature_space_report(tmp_path / "again.html", space, places, title="Of <two>", seed=3)
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_without_rare_classes_there_are_neither_arrows_nor_distances_of_them(tmp_path: Path) -> None:
    plain = make_space({"ship": 5, "quay": 5})
    still = replace(
        plain, pull=np.zeros(2), debiased=np.full_like(plain.debiased, np.nan), calibrated=plain.before.copy()
    )
    feature_space_report(tmp_path / "report.html", still, embed(still))
    assert "within tail n/a n/a n/a" in Page(tmp_path / "report.html").text
