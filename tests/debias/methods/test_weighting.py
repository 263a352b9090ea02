from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.debias.methods.test_contract import make
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods import fit_method, weighting
from torchgeo_debias.debias.methods.balance import class_weights, even_weights, missing, shares
from torchgeo_debias.debias.methods.weighting import EquitySettings, effective_weights, equity_weights
from torchgeo_debias.debias.samples import Samples

WITH_BACKGROUND = ClassTable.from_counts({"a": 60, "b": 20, "background": 20}, background="background")


def _probabilities(logits: np.typing.NDArray[np.floating]) -> np.typing.NDArray[np.floating]:
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def test_shares_are_even_over_objects_and_background_keeps_its_own() -> None:
    np.testing.assert_allclose(shares(WITH_BACKGROUND), [0.4, 0.4, 0.2], rtol=1e-6)


def test_even_weights_give_each_class_its_share_of_the_total() -> None:
    labels = np.repeat([0, 1, 2], [60, 50, 20])  # thirty of b were drawn
    weights = even_weights(labels, WITH_BACKGROUND, total=100)
    np.testing.assert_allclose(np.bincount(labels, weights), [40, 40, 20], rtol=1e-6)
    assert all(np.ptp(weights[labels == c]) == 0 for c in range(3))


def test_objects_are_filled_up_to_the_largest_object_class() -> None:
    table = ClassTable.from_counts({"a": 60, "b": 20, "background": 500}, background="background")
    assert missing(table).tolist() == [0, 40, 0]


def test_class_weights_have_mean_one_over_the_samples() -> None:
    weights = class_weights(np.array([1.0, 3.0, 9.0]), WITH_BACKGROUND)
    np.testing.assert_allclose(weights, [80 / 120, 3 * 80 / 120, 1.0])
    assert weights @ WITH_BACKGROUND.counts == pytest.approx(100)


def test_inverse_is_what_scikit_learn_calls_balanced() -> None:
    samples = make([60, 25, 10, 4])
    scaled = StandardScaler().fit_transform(samples.features)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaled, samples.labels)
    ours = _probabilities(fit_method("inverse", samples).logits(samples.features))
    np.testing.assert_allclose(ours, model.predict_proba(scaled), atol=2e-3)


def test_weights_follow_the_effective_number_of_samples() -> None:
    # By hand: 1 + 0.5 for two samples, 1 + 0.5 + 0.25 for three.
    samples = make([3, 2])
    raw = np.array([1 / 1.75, 1 / 1.5])
    np.testing.assert_allclose(effective_weights(samples.table, 0.5), raw * 5 / (raw @ [3, 2]))


@pytest.mark.parametrize(("beta", "twin"), [(0.0, "ce"), (1 - 1e-9, "inverse")])
def test_the_two_ends_of_beta(beta: float, twin: str) -> None:
    samples = make([60, 25, 10])
    ours = fit_method("class-balanced", samples, {"beta": beta}).logits(samples.features)
    np.testing.assert_allclose(
        _probabilities(ours), _probabilities(fit_method(twin, samples).logits(samples.features)), atol=1e-3
    )


def test_many_epochs_of_retraining_come_to_inverse_weights() -> None:
    samples = make([60, 25, 10])
    expected = _probabilities(fit_method("inverse", samples).logits(samples.features))
    many, one = (
        np.abs(_probabilities(fit_method("crt", samples, {"epochs": n}).logits(samples.features)) - expected).max()
        for n in (20000, 1)
    )
    assert many < 0.01 < one


def test_retraining_draws_from_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    # An object class is expected 1.5 times in the draws: chance leaves it out with one seed in five.
    labels = np.repeat([0, 1, 2], [2000, 2, 1])
    table = ClassTable.from_counts({"other": 2000, "a": 2, "b": 1}, background="other")
    samples = Samples(np.random.default_rng(0).normal(size=(2003, 2)).astype(np.float32), labels, table)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(weighting, "_weighted", lambda samples, weights: seen.append(weights))
    for seed in range(30):
        weighting._retrained(samples, weighting.RetrainingSettings(1), seed)
    draws = np.array([np.bincount(labels, weights) for weights in seen])
    assert draws.min() == 1
    np.testing.assert_allclose(draws.mean(axis=0), [2000, 1.7, 1.7], rtol=0.3)


def test_weights_of_clusters_are_those_of_the_paper() -> None:
    weights = equity_weights(np.array([8, 4, 2]), EquitySettings(eta=1.0, gamma=2.0))
    raw = np.array([1 + 0.0, 1 + 0.25, 1 + 0.5625]) / 2
    np.testing.assert_allclose(weights / weights[0], raw / raw[0])
    assert weights @ [8, 4, 2] == pytest.approx(14)


@pytest.mark.parametrize("settings", [EquitySettings(gamma=0.0), EquitySettings(eta=0.0)])
def test_clusters_of_one_size_weigh_alike(settings: EquitySettings) -> None:
    np.testing.assert_allclose(equity_weights(np.array([5, 5, 5]), settings), 1.0)


def test_rare_clusters_weigh_more_whatever_their_label() -> None:
    # Both classes hold the common place; what tells them apart there is noise, elsewhere it is the second feature.
    rng = np.random.default_rng(0)
    place = np.repeat([0.0, 50.0], [180, 20])
    labels = np.arange(200) % 2
    side = np.where(place > 0, 1 - 2 * labels, 2 * labels - 1) + rng.normal(size=200)
    samples = Samples(
        np.stack([place + rng.normal(size=200), side], axis=1).astype(np.float32),
        labels,
        ClassTable.from_labels(labels, ["a", "b"]),
    )
    rare = place > 0

    def right(name: str, settings: dict[str, float] | None = None) -> float:
        logits = fit_method(name, samples, settings).logits(samples.features)
        return float(_probabilities(logits)[rare, labels[rare]].mean())

    assert right("dataset-equity", {"n_clusters": 2, "eta": 0.01}) > right("ce") + 0.05
