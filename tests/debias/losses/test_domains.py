from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.losses.domains import (
    DomainClasses,
    DomainLoss,
    DomainSettings,
    domain_class_loss,
    domain_classes,
    domain_gap,
)
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError, DataError

#: Class 0 in domains 0 and 1, class 1 in domain 0.
KNOWN = DomainClasses(
    torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]),
    torch.tensor([0, 0, 1]),
    torch.tensor([0, 1, 0]),
    torch.tensor([4, 16, 1]),
)


def test_one_sample_by_hand() -> None:
    # At the origin, of class 0 in domain 0 (4 samples): 3 away from (0, class 1) and 4 away from (1, class 0).
    found = domain_class_loss(
        torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), KNOWN, DomainSettings(nu=0.5, temperature=2.0)
    )
    other = -(3 / 4) * math.sqrt(16 / 4) / 2
    partner = -(4 / 4) * math.sqrt(1 / 4) / 2
    assert found.item() == pytest.approx(-(partner - math.log(math.exp(other) + math.exp(partner))), rel=1e-5)


def test_samples_without_their_class_elsewhere_do_not_count() -> None:
    settings = DomainSettings()
    one = domain_class_loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), KNOWN, settings)
    both = domain_class_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([0, 0]), KNOWN, settings)
    torch.testing.assert_close(one, both)
    alone = domain_class_loss(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0]), KNOWN, settings)
    assert alone.item() == 0


def test_coming_nearer_to_the_class_in_the_other_domain_lowers_the_loss() -> None:
    features = torch.tensor([[1.0, 1.0]], requires_grad=True)
    loss = domain_class_loss(features, torch.tensor([0]), torch.tensor([0]), KNOWN, DomainSettings())
    (slope,) = torch.autograd.grad(loss, features)
    towards = torch.tensor([0.0, 4.0]) - features.detach()[0]
    assert slope[0] @ towards < 0


def test_a_feature_at_a_centroid_has_a_finite_gradient() -> None:
    features = torch.tensor([[0.0, 4.0]], requires_grad=True)
    loss = domain_class_loss(features, torch.tensor([0]), torch.tensor([0]), KNOWN, DomainSettings())
    assert torch.autograd.grad(loss, features)[0].isfinite().all()


def test_pairs_of_domain_and_class_have_means_and_counts() -> None:
    features = np.array([[1, 0], [3, 0], [0, 5], [7, 7]], np.float32)
    found = domain_classes(features, np.array([0, 0, 1, 0]), np.array([2, 2, 2, 5]))
    assert found.domains.tolist() == [2, 2, 5]
    assert found.classes.tolist() == [0, 1, 0]
    assert found.counts.tolist() == [2, 1, 1]
    assert found.centroids.tolist() == [[2, 0], [0, 5], [7, 7]]


def test_the_gap_by_hand() -> None:
    # Means (1, 0) and (0, 1); variances 2 and 0 along x, 0 and 8 along y; no covariance.
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -1.0], [0.0, 3.0], [50.0, 50.0]])
    domains = torch.tensor([0, 0, 1, 1, 2])  # one of domain 2 has no covariance
    assert domain_gap(features, domains).item() == pytest.approx((1 + 1) / 2 + (2**2 + 8**2) / 4)
    assert domain_gap(features[:2], domains[:2]).item() == 0


def told(features: np.ndarray, domains: np.ndarray | None) -> Samples:
    labels = np.arange(12) % 2
    return Samples(features, labels, ClassTable.from_counts({"a": 6, "b": 6}), domains)


def test_the_loss_adds_both_and_keeps_a_part_of_old_centroids() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 12, 3)).astype(np.float32)
    labels, domains = np.arange(12) % 2, np.arange(12) // 6
    settings = DomainSettings(weight=0.3, gap_weight=0.7, momentum=0.25)
    loss = DomainLoss(told(first, domains).table, settings)
    batch, y, d = torch.tensor(first), torch.tensor(labels), torch.tensor(domains)
    logits = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    loss.learn(told(first, domains), seed=0)
    goes_on = DomainLoss(told(first, domains).table, settings)
    goes_on.load_state_dict(loss.state_dict())  # as a run does that was stopped after the first epoch
    mixed = domain_classes(0.75 * second + 0.25 * first, labels, domains)
    expected = F.cross_entropy(logits, y) + 0.7 * domain_gap(batch, d)
    expected = expected + 0.3 * domain_class_loss(batch, y, d, mixed, settings)
    for either in (loss, goes_on):
        either.learn(told(second, domains), seed=0)
        torch.testing.assert_close(either(logits, y, index=torch.arange(12), features=batch), expected)


@pytest.mark.parametrize("domains", [None, np.full(12, 3)])
def test_chips_of_one_domain_are_refused(domains: np.ndarray | None) -> None:
    chips = told(np.zeros((12, 3), np.float32), domains)
    with pytest.raises(DataError, match="'boda' needs training chips of two domains or more"):
        DomainLoss(chips.table, DomainSettings()).learn(chips, seed=0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": 0.0}, "temperature must be positive; received 0.0"),
        ({"momentum": 1.0}, "momentum of centroids must lie in 0..1, below 1; received 1.0"),
        ({"nu": -0.5}, "must be at least 0; received -0.5, 0.1 and 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        DomainSettings(**values)  # type: ignore[arg-type]
