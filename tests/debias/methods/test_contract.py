"""What every long-tail method keeps to."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods import METHODS, fit_method, method_settings
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError, DataError

Labels = npt.NDArray[np.int64]
# Those whose result hangs on draws for each class: other class ids, other draws.
DRAWN = {"crt", "oversample", "smote", "tailcalib", "lmd"}
# Those that need not find more of the tail than plain cross-entropy does.
INDIFFERENT = {
    "dataset-equity": "weighs samples of rare clusters, and never looks at a label",
    "focal": "weighs samples that are hard, and they may be of any class",
}
every_method = pytest.mark.parametrize("name", METHODS)


def make(counts: list[int], dim: int = 6, spread: float = 1.0, seed: int = 0) -> Samples:
    """Unit Gaussians around class means that are drawn with standard deviation ``spread``."""
    labels = np.repeat(np.arange(len(counts)), counts)
    means = spread * np.random.default_rng(seed).normal(size=(len(counts), dim))
    features = means[labels] + np.random.default_rng(seed + 1).normal(size=(len(labels), dim))
    table = ClassTable.from_labels(labels, [f"c{i}" for i in range(len(counts))])
    return Samples(features.astype(np.float32), labels, table)


def recall(found: Labels, labels: Labels) -> npt.NDArray[np.float64]:
    return np.array([(found[labels == c] == c).mean() for c in np.unique(labels)])


def fitted_bytes(name: str, samples: Samples, seed: int = 0) -> bytes:
    head = fit_method(name, samples, seed=seed)
    return head.weight.tobytes() + head.bias.tobytes()


@every_method
@pytest.mark.parametrize(
    "samples",
    [make([40, 12, 5]), make([30, 9]), make([20, 6, 1]), make([5, 1]), make([12, 6, 3, 1], dim=40), make([1, 1, 1])],
    ids=["plain", "two classes", "one sample", "two classes, one sample", "fewer samples than features", "ones"],
)
def test_shapes_types_and_finite_values(name: str, samples: Samples) -> None:
    head = fit_method(name, samples)
    classes, dim = len(samples.table.names), samples.features.shape[1]
    assert head.weight.shape == (classes, dim)
    assert head.bias.shape == (classes,)
    assert head.weight.dtype == head.bias.dtype == np.float32
    assert isinstance(head.cosine, bool)
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.bias).all()
    assert np.isfinite(head.logits(samples.features)).all()


@every_method
@pytest.mark.parametrize("value", [7500.0, -1e-3])
def test_a_feature_that_says_nothing_takes_no_part(name: str, value: float) -> None:
    samples = make([40, 12, 5])
    zero, constant = samples.features.copy(), samples.features.copy()
    zero[:, 2], constant[:, 2] = 0.0, value
    head = fit_method(name, samples._replace(features=constant))
    found = head.logits(constant)
    assert np.isfinite(found).all()
    if not head.cosine:  # a large constant does change the length of a feature
        without = fit_method(name, samples._replace(features=zero)).logits(zero)
        assert (found.argmax(axis=1) == without.argmax(axis=1)).mean() >= 0.98


@every_method
def test_a_background_class_is_a_class(name: str) -> None:
    labels = np.repeat(np.arange(4), [60, 20, 8, 30])
    table = ClassTable.from_labels(labels, ["a", "b", "c", "background"], background="background")
    means = 6 * np.eye(4)
    features = (means[labels] + np.random.default_rng(0).normal(size=(len(labels), 4))).astype(np.float32)
    head = fit_method(name, Samples(features, labels, table))
    assert recall(head.logits(features).argmax(axis=1), labels).min() > 0.7


@every_method
def test_the_seed_alone_decides(name: str) -> None:
    samples = make([40, 12, 5])
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    torch.manual_seed(1)
    first = fitted_bytes(name, samples, seed=3)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index] # noqa: NPY002
    assert fitted_bytes(name, samples, seed=3) == first
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index] # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (fitted_bytes(name, samples, seed=4) != first) >= (name in DRAWN)


@every_method
def test_inputs_stay_as_they_are(name: str) -> None:
    samples = make([40, 12, 5])
    features, labels = samples.features.copy(), samples.labels.copy()
    samples.features.flags.writeable = samples.labels.flags.writeable = False
    fit_method(name, samples)
    np.testing.assert_array_equal(samples.features, features)
    np.testing.assert_array_equal(samples.labels, labels)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DRAWN])
def test_other_class_ids_give_the_same_head_in_another_order(name: str) -> None:
    samples = make([60, 25, 10, 4])
    order = np.array([2, 0, 3, 1])  # old id -> new id
    labels = order[samples.labels]
    names = [samples.table.names[old] for old in np.argsort(order)]
    other = fit_method(name, Samples(samples.features, labels, ClassTable.from_labels(labels, names)))
    one = _probabilities(fit_method(name, samples).logits(samples.features))
    np.testing.assert_allclose(_probabilities(other.logits(samples.features))[:, order], one, atol=0.02)


def _probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
    return shares


@every_method
def test_the_unit_of_the_features_does_not_matter(name: str) -> None:
    samples = make([60, 25, 10, 4])
    small = fit_method(name, samples).logits(samples.features).argmax(axis=1)
    features = samples.features * np.float32(1000)
    large = fit_method(name, samples._replace(features=features)).logits(features).argmax(axis=1)
    assert (small == large).mean() >= 0.98


@every_method
def test_classes_that_lie_apart_are_all_found(name: str) -> None:
    samples = make([30] * 5, spread=8.0)
    test = make([100] * 5, spread=8.0, seed=0)
    fresh = test.features + np.random.default_rng(9).normal(scale=0.3, size=test.features.shape).astype(np.float32)
    found = fit_method(name, samples).logits(fresh).argmax(axis=1)
    assert recall(found, test.labels).min() >= 0.95


@pytest.fixture(scope="module")
def tail_of_cross_entropy() -> float:
    return _tail_recall("ce")


def _tail_recall(name: str) -> float:
    """Mean recall of the two rarest of six overlapping classes, imbalance 50, over three draws."""
    found = []
    for seed in (0, 10, 20):
        train, test = make([250, 120, 60, 25, 12, 5], seed=seed), make([200] * 6, seed=seed)
        fresh = np.random.default_rng(seed + 5).normal(size=test.features.shape)
        means = np.random.default_rng(seed).normal(size=(6, 6))[test.labels]
        head = fit_method(name, train)
        found.append(recall(head.logits((means + fresh).astype(np.float32)).argmax(axis=1), test.labels)[-2:].mean())
    return float(np.mean(found))


@every_method
def test_the_tail_is_found_at_least_as_often_as_by_cross_entropy(name: str, tail_of_cross_entropy: float) -> None:
    allowed = 0.05 if name in INDIFFERENT else 0.0
    assert _tail_recall(name) >= tail_of_cross_entropy - allowed


@every_method
def test_settings_go_through_json(name: str) -> None:
    kind = METHODS[name].settings
    assert is_dataclass(kind)
    default = method_settings(name)
    assert type(default) is kind
    assert method_settings(name, json.loads(json.dumps(asdict(default)))) == default
    described = kind.__doc__ or ""
    assert all(f"\n        {field.name}: " in described for field in fields(kind)), "every field has its sentence"


@every_method
def test_settings_refuse_nonsense(name: str) -> None:
    with pytest.raises(ConfigError, match=r"flavour.*\.$"):
        method_settings(name, {"flavour": 3})
    for field in fields(METHODS[name].settings):
        with pytest.raises(ConfigError, match=rf"{field.name}.*\.$"):
            method_settings(name, {field.name: "much"})


def _bad_settings() -> list[Any]:
    return [
        pytest.param(name, field.name, value, id=f"{name} {field.name} {value}")
        for name, method in METHODS.items()
        for field in fields(method.settings)
        if field.type in ("int", "float")
        for value in (-1, float("nan"))
    ]


@pytest.mark.parametrize(("name", "field", "value"), _bad_settings())
def test_numbers_that_mean_nothing_are_refused(name: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=r"\.$"):
        method_settings(name, {field: value})


@every_method
def test_nothing_is_pickled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickled")

    for verb in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, verb, never)
    fit_method(name, make([20, 8, 3]))


@every_method
def test_a_method_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert method.name == name == name.lower()
    assert method.title
    assert any(str(year) in method.source for year in range(1950, 2027)), "a source has a year"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no method 'smoke': choose among ce, "):
        fit_method("smoke", make([5, 5]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": np.zeros((4, 2), np.float32)}, "one label each"),
        ({"features": np.full((12, 2), np.nan, np.float32)}, "not finite"),
        ({"domains": np.zeros(3, np.int64)}, "as many domains"),
        ({"labels": np.repeat([0, 1], [12, 0])}, "No training sample of b"),
        ({"labels": np.repeat([0, 1], [5, 7])}, r"counts \(8, 4\)"),
        ({"labels": np.repeat([0, 2], [8, 4])}, "from 0 to 1"),
        ({"labels": np.zeros(12, np.int64), "table": ClassTable.from_counts({"a": 12})}, "two or more"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str) -> None:
    labels = np.repeat([0, 1], [8, 4])
    samples = Samples(np.ones((12, 2), np.float32), labels, ClassTable.from_labels(labels, ["a", "b"]))
    samples.check()
    with pytest.raises(DataError, match=sentence):
        fit_method("ce", samples._replace(**change))
