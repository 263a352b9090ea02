from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from tests.debias.methods.test_contract import make
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods import StreamingRidge, fit_method
from torchgeo_debias.debias.methods.ridge import RidgeSettings
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import DataError

Floats = npt.NDArray[np.float64]


def _reference(samples: Samples, ridge: float, noise: float, wanted: Floats) -> Floats:
    """Logits of scikit-learn's ridge on the samples and on points that have the moments of the pseudo features."""
    z = StandardScaler().fit_transform(samples.features.astype(np.float64))
    d = z.shape[1]
    x, y, w = [z], [samples.labels], [np.ones(len(z))]
    for c, n in enumerate(samples.table.counts):
        own = z[samples.labels == c]
        std = own.std(axis=0, ddof=1) if n > 1 else np.zeros(d)
        steps = np.sqrt(d) * noise * np.diag(std)
        x.append(own.mean(axis=0) + np.concatenate([steps, -steps]))
        y.append(np.full(2 * d, c))
        w.append(np.full(2 * d, (wanted[c] - n) / (2 * d)))
    features, labels, weights = np.concatenate(x), np.concatenate(y), np.concatenate(w)
    ones = np.ones((len(features), 1))
    model = Ridge(ridge, fit_intercept=False)
    model.fit(np.hstack([features, ones]), np.eye(len(wanted))[labels], sample_weight=weights)
    return np.asarray(model.predict(np.hstack([z, np.ones((len(z), 1))])))


@pytest.mark.parametrize(("ridge", "noise"), [(1e-3, 1.0), (5.0, 0.5)])
def test_the_head_is_ridge_regression_on_filled_up_classes(ridge: float, noise: float) -> None:
    samples = make([40, 15, 4, 1])
    head = fit_method("aef-ocl", samples, {"ridge": ridge, "noise": noise})
    expected = _reference(samples, ridge, noise, np.full(4, 40.0))
    np.testing.assert_allclose(head.logits(samples.features), expected, atol=1e-4)


def test_background_keeps_its_share_of_the_filled_up_samples() -> None:
    plain = make([40, 15, 20])
    table = ClassTable.from_labels(plain.labels, ["a", "b", "background"], background="background")
    samples = plain._replace(table=table)
    expected = _reference(samples, 1e-3, 1.0, np.array([40, 40, 80 * 20 / 55]))  # 20 of 75 stay 20 of 75
    np.testing.assert_allclose(fit_method("aef-ocl", samples).logits(samples.features), expected, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 60), max_size=4), st.randoms(use_true_random=False))
def test_order_and_portions_do_not_matter(cuts: list[int], random: object) -> None:
    samples = make([40, 15, 5, 1])
    order = np.array(random.sample(range(61), 61))  # type: ignore[attr-defined]
    stream = StreamingRidge(4)
    for part in np.split(order, sorted(cuts)):
        stream.update(samples.features[part], samples.labels[part])
    whole = fit_method("aef-ocl", samples)
    np.testing.assert_allclose(stream.head().logits(samples.features), whole.logits(samples.features), atol=1e-3)


def test_new_samples_of_a_new_class_are_taken_in() -> None:
    samples = make([40, 15, 12], spread=5.0)
    first = samples.labels < 2
    stream = StreamingRidge(3)
    stream.update(samples.features[first], samples.labels[first])
    before = stream.head().logits(samples.features)
    assert not before[:, 2].any()
    assert (before.argmax(axis=1) == samples.labels)[first].mean() > 0.95
    stream.update(samples.features[~first], samples.labels[~first])
    assert (stream.head().logits(samples.features).argmax(axis=1) == samples.labels).mean() > 0.95


def test_samples_that_do_not_fit_are_refused() -> None:
    stream = StreamingRidge(2, RidgeSettings())
    with pytest.raises(DataError, match="no sample yet"):
        stream.head()
    stream.update(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    before = stream.head().weight
    for features, labels, sentence in (
        (np.ones((2, 4), np.float32), np.array([0, 1]), "had 3 features; these 4"),
        (np.ones((2, 3), np.float32), np.array([0, 2]), "from 0 to 1"),
        (np.ones((2, 3), np.float32), np.array([0]), "one label each"),
        (np.full((2, 3), np.inf, np.float32), np.array([0, 1]), "not finite"),
    ):
        with pytest.raises(DataError, match=sentence):
            stream.update(features, labels)
    stream.update(np.ones((0, 3), np.float32), np.zeros(0, np.int64))
    np.testing.assert_array_equal(stream.head().weight, before)
