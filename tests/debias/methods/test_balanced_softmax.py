from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.methods import fit_method
from torchgeo_debias.debias.methods.solver import fit_linear
from torchgeo_debias.debias.samples import Samples


def long_tail() -> Samples:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 15, 4])
    features = (rng.normal(size=(3, 5))[labels] + rng.normal(size=(79, 5))).astype(np.float32)
    return Samples(features, labels, ClassTable.from_labels(labels, ["a", "b", "c"]))


def test_the_head_minimises_the_loss_of_the_paper() -> None:
    data = long_tail()
    scaled = StandardScaler().fit_transform(data.features)
    labels, log_counts = torch.tensor(data.labels), torch.log(torch.tensor([60.0, 15.0, 4.0], dtype=torch.float64))
    weight, bias = fit_linear(scaled, lambda z: F.cross_entropy(z + log_counts, labels, reduction="sum"), 3)
    expected = scaled @ weight.T + bias
    found = fit_method("balanced-softmax", data).logits(data.features)
    centred = [z - z.mean(axis=1, keepdims=True) for z in (expected, found)]
    np.testing.assert_allclose(centred[1], centred[0], atol=0.02)


def test_on_stored_features_it_is_logit_adjustment() -> None:
    data = long_tail()
    one, other = fit_method("balanced-softmax", data), fit_method("la", data, {"tau": 1.0})
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.bias, other.bias)
