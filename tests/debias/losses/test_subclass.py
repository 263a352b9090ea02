from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses.subclass import (
    SubclassLoss,
    SubclassSettings,
    class_temperatures,
    subclass_contrast,
    subclasses,
)
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError


def test_three_samples_by_hand() -> None:
    # Two of one subclass point the same way, the third, of another class, across: cosines 1 and 0.
    features = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    settings = SubclassSettings(temperature=1.0, base_temperature=1.0, beta=0.0)
    labels = torch.tensor([0, 0, 1])
    found = subclass_contrast(features, torch.arange(3), labels, labels, torch.ones(2), settings)
    one = math.log(math.e + 1) - 1  # of each of the two; the third has no partner
    assert found.item() == pytest.approx(2 / 3 * one, rel=1e-6)


def test_two_subclasses_of_one_class_by_hand() -> None:
    # Without partners in their subclasses only the second term is left, against all that is not of the own subclass.
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    settings = SubclassSettings(beta=0.5)
    tau = torch.tensor([0.5, 1.0])
    found = subclass_contrast(
        features, torch.arange(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), tau, settings
    )
    first = -(1.2 - math.log(math.exp(1.2) + math.exp(0.0)))
    second = -(1.2 - math.log(math.exp(1.2) + math.exp(1.6)))
    assert found.item() == pytest.approx(0.5 * (first + second) / 3, rel=1e-5)


def test_the_formula_holds_term_by_term() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(14, 5)).astype(np.float32)
    index = np.array([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6])  # two views of seven chips
    labels = np.array([0, 0, 0, 0, 1, 1, 2])[index]
    subclass = np.array([0, 0, 1, 1, 2, 2, 3])[index]
    tau = np.array([0.2, 0.1, 0.15])
    settings = SubclassSettings()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    s = unit @ unit.T

    total = 0.0
    for i in range(14):
        others = [a for a in range(14) if a != i]
        kin = [j for j in others if subclass[j] == subclass[i]]
        views = [j for j in others if index[j] == index[i]]
        within = [j for j in others if (labels[j] == labels[i] and subclass[j] != subclass[i]) or j in views]
        against = [a for a in others if subclass[a] != subclass[i] or a in views]
        log_all = np.log(np.exp(s[i, others] / 0.1).sum())
        log_out = np.log(np.exp(s[i, against] / tau[labels[i]]).sum())
        total -= 0.1 / 0.07 * np.mean([s[i, j] / 0.1 - log_all for j in kin])
        total -= 0.25 * np.mean([s[i, j] / tau[labels[i]] - log_out for j in within])

    found = subclass_contrast(
        torch.tensor(features), torch.tensor(index), torch.tensor(labels), torch.tensor(subclass),
        torch.tensor(tau, dtype=torch.float32), settings,
    )  # fmt: skip
    assert found.item() == pytest.approx(total / 14, rel=1e-4)


def test_gradients_are_finite_for_a_sample_alone_and_for_one_class() -> None:
    for labels in ([0], [0, 0, 0]):
        features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        ids = torch.tensor(labels)
        loss = subclass_contrast(features, torch.arange(len(ids)), ids, ids, torch.full((1,), 0.1), SubclassSettings())
        (slope,) = torch.autograd.grad(loss, features)
        assert loss.isfinite()
        assert slope.isfinite().all()


def test_common_classes_are_cut_by_the_size_of_the_rarest() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [65, 20, 7])
    features = rng.normal(size=(92, 6)).astype(np.float32)
    found = subclasses(features, labels, SubclassSettings(delta=10), seed=0)
    assert [len(np.unique(found[labels == c])) for c in range(3)] == [6, 2, 1]  # 65 // 10, 20 // 10, below 10
    assert [len(np.unique(labels[found == s])) for s in np.unique(found)] == [1] * 9
    np.testing.assert_array_equal(np.unique(found), np.arange(9))
    few = subclasses(features, labels, SubclassSettings(delta=1), seed=0)
    assert [len(np.unique(few[labels == c])) for c in range(3)] == [9, 2, 1]  # by the 7 of the rarest class
    np.testing.assert_array_equal(found, subclasses(features, labels, SubclassSettings(delta=10), seed=0))


def test_directions_make_the_subclasses_and_lengths_do_not() -> None:
    rng = np.random.default_rng(0)
    way = np.tile([[1.0, 0, 0], [0, 1.0, 0]], (20, 1)) + 0.05 * rng.normal(size=(40, 3))
    features = (way * rng.uniform(0.1, 50, size=(40, 1))).astype(np.float32)
    rare = rng.normal(size=(20, 3)).astype(np.float32)
    found = subclasses(
        np.concatenate([features, rare]), np.repeat([0, 1], [40, 20]), SubclassSettings(delta=10), seed=0
    )[:40]
    assert len(set(found[::2])) == len(set(found[1::2])) == 1
    assert found[0] != found[1]


def test_temperatures_by_hand() -> None:
    # Unit features at angle a around an axis lie sin(a) from their mean.
    def fan(angle: float, pairs: int) -> np.ndarray:
        up = [np.cos(angle), np.sin(angle)]
        return np.tile([up, [up[0], -up[1]]], (pairs, 1))

    features = np.concatenate([fan(0.1, 10), fan(0.4, 10), fan(0.2, 3)]).astype(np.float32)
    labels = np.repeat([0, 1, 2], [20, 20, 6])
    subclass = np.concatenate([np.tile([0, 1], 10), np.tile([2, 3], 10), np.full(6, 4)])
    spread = np.array([np.sin(0.1) / np.log(30), np.sin(0.4) / np.log(30), np.sin(0.2) / np.log(16)])
    found = class_temperatures(features, labels, subclass, 3, SubclassSettings(clip=0.0))
    np.testing.assert_allclose(found[:2], 0.1 * spread[:2] / spread.mean(), rtol=1e-4)
    assert found[2] == pytest.approx(0.1)  # one subclass
    clipped = class_temperatures(features, labels, subclass, 3, SubclassSettings(clip=0.25))
    assert found[0] < clipped[0] < clipped[1] < found[1]


def test_classes_of_one_feature_keep_the_temperature() -> None:
    features = np.ones((4, 3), np.float32)
    found = class_temperatures(features, np.arange(4), np.arange(4), 5, SubclassSettings())
    np.testing.assert_allclose(found, 0.1, rtol=1e-6)


def test_the_loss_adds_the_contrast_between_the_subclasses_that_it_was_told_last() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 10])
    features = rng.normal(size=(40, 6)).astype(np.float32)
    settings = SubclassSettings(weight=0.3)
    table = ClassTable.from_counts({"a": 30, "b": 10})
    loss = SubclassLoss(table, settings)
    index = torch.tensor([0, 5, 9, 31, 35])
    batch, known = torch.tensor(features)[index], torch.tensor(labels)[index]
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for told in (features, features[::-1].copy()):
        loss.learn(Samples(told, labels, table), seed=3)
        found = subclasses(told, labels, settings, 3)
        tau = torch.tensor(class_temperatures(told, labels, found, 2, settings))
        contrast = subclass_contrast(batch, index, known, torch.tensor(found)[index], tau, settings)
        torch.testing.assert_close(
            loss(logits, known, index=index, features=batch), F.cross_entropy(logits, known) + 0.3 * contrast
        )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": 0.0}, "temperatures must be positive; received 0.0 and 0.07"),
        ({"beta": -1.0}, "beta and weight of the subclass contrast must be at least 0; received -1.0 and 1.0"),
        ({"delta": 0}, "A subclass has at least one sample; received delta 0"),
        ({"clip": 0.5}, "must lie in 0..0.5; received 0.5"),
        ({"rho": 0.5}, "rho must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SubclassSettings(**values)  # type: ignore[arg-type]
