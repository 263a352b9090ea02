"""What every method promises, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from torchgeo_debias.backbones import create_backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.training import METHODS, TrainConfig, Trained, train
from torchgeo_debias.training.config import Method

Configure = Callable[..., TrainConfig]
_TRAINED: dict[str, Trained] = {}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    name: Method = request.param
    return name


@pytest.fixture
def trained(method: Method, toy: Chips, configure: Configure) -> Trained:
    if method not in _TRAINED:
        _TRAINED[method] = train(toy, for_method(method, configure))
    return _TRAINED[method]


def for_method(method: Method, configure: Configure) -> TrainConfig:
    # finetune takes a hundredth of the learning rate, which is little for weights drawn at random.
    return configure(method=method, lr=0.1 if method == "finetune" else 3e-3)


def tensors(package: ModelPackage) -> dict[str, Tensor]:
    """All that was trained."""
    found: dict[str, Tensor] = dict(package.finetuned or {})
    for name, part in (("main", package.model), ("raw", package.raw)):
        if part is not None:
            found[f"{name} weight"] = torch.from_numpy(part.head.weight)
            found[f"{name} bias"] = torch.from_numpy(part.head.bias)
            if part.adapter is not None:
                found.update({f"{name} {key}": value for key, value in part.adapter.tensors.items()})
    return found


def same(one: ModelPackage, two: ModelPackage) -> bool:
    a, b = tensors(one), tensors(two)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def predict(package: ModelPackage, config: TrainConfig, chips: Chips) -> npt.NDArray[np.float32]:
    predictor = PackagePredictor(package, weights=config.weights, precision="32")
    return predictor.predict(chips.images, chips.valid).probabilities


def balanced_accuracy(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    right = probabilities.argmax(axis=1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def test_it_learns(trained: Trained, method: Method, held_out: Chips, configure: Configure) -> None:
    probabilities = predict(trained.package, for_method(method, configure), held_out)
    assert probabilities.shape == (32, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert balanced_accuracy(probabilities, held_out.labels) > 0.7  # chance is 0.25


def test_a_seed_repeats_it(trained: Trained, method: Method, toy: Chips, configure: Configure) -> None:
    assert same(train(toy, for_method(method, configure)).package, trained.package)


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("probe")], indirect=True)
def test_another_seed_does_not(trained: Trained, method: Method, toy: Chips, configure: Configure) -> None:
    other = train(toy, replace(for_method(method, configure), seed=1, epochs=1)).package
    assert not same(other, trained.package)


def test_the_saved_package_predicts_the_same(
    trained: Trained, method: Method, held_out: Chips, configure: Configure, tmp_path: Path
) -> None:
    config = for_method(method, configure)
    trained.package.save(tmp_path / "model.tgd")
    loaded = PackagePredictor.load(tmp_path / "model.tgd", weights=config.weights, precision="32")
    again = loaded.predict(held_out.images, held_out.valid)
    np.testing.assert_array_equal(again.probabilities, predict(trained.package, config, held_out))
    assert TrainConfig.from_json(loaded.package.method) == config


def test_the_package_carries_what_was_trained_and_no_more(
    trained: Trained, method: Method, configure: Configure
) -> None:
    package = trained.package
    start = create_backbone("timm:test_vit", size=32, weights=for_method(method, configure).weights)
    adapted = method in ("lora", "lora-la", "deblora")
    assert (package.model.adapter is not None) == adapted
    assert (package.raw is not None) == (method == "deblora")
    assert (package.finetuned is not None) == (method == "finetune")
    assert package.backbone.digest == start.digest
    assert package.model.head.weight.shape == (4, start.dim)
    if package.model.adapter is not None:
        learned = [value for name, value in package.model.adapter.tensors.items() if "lora_B" in name]
        assert len(learned) == 12
        assert all(value.any() for value in learned)
    if package.finetuned is not None:
        moved = [n for n, v in start.model.state_dict().items() if not torch.equal(v, package.finetuned[n])]
        assert set(moved) == {name for name, _ in start.model.named_parameters()}
    assert package.provenance["training_chips"] == 45
    assert package.provenance["seed"] == 0


def test_deblora_keeps_its_biased_twin(toy: Chips, held_out: Chips, configure: Configure) -> None:
    if "deblora" not in _TRAINED:
        _TRAINED["deblora"] = train(toy, for_method("deblora", configure))
    package, config = _TRAINED["deblora"].package, for_method("deblora", configure)
    prediction = PackagePredictor(package, weights=config.weights, precision="32").predict(
        held_out.images, held_out.valid
    )
    # The twin is the LoRA of stage 1, that is of the method "lora".
    plain = train(toy, for_method("lora", configure)).package
    assert package.raw is not None
    np.testing.assert_array_equal(package.raw.head.weight, plain.model.head.weight)
    assert prediction.raw is not None
    np.testing.assert_allclose(prediction.raw, predict(plain, config, held_out), rtol=1e-4, atol=1e-5)
    assert not np.allclose(prediction.raw, prediction.probabilities)


@pytest.mark.parametrize("loss", ["l2", "ce", "l2+ce"])
@pytest.mark.parametrize("head", ["joint", "refit", "targets", "calibrated"])
def test_every_way_to_align_and_to_fit_the_head(
    loss: str, head: str, toy: Chips, held_out: Chips, configure: Configure
) -> None:
    if (loss, head) == ("l2", "joint"):
        with pytest.raises(ConfigError, match="trains no head"):
            configure(align_loss=loss, head=head)
        return
    config = configure(align_loss=loss, head=head, epochs=3)
    assert balanced_accuracy(predict(train(toy, config).package, config, held_out), held_out.labels) > 0.5


@pytest.mark.parametrize("adjust", ["train", "posthoc", "refit"])
def test_adjusting_favours_the_rare_class(adjust: str, toy: Chips, configure: Configure) -> None:
    """Chips that tell nothing: without adjustment the common class is likelier, with it the classes come near."""
    rng = np.random.default_rng(0)
    noise = replace(toy, images=rng.integers(0, 255, toy.images.shape, dtype=np.uint8))
    shares = []
    for tau in (0.0, 1.0):
        config = configure(method="lora-la", adjust=adjust, tau=tau, epochs=3, lr=1e-4)
        shares.append(predict(train(noise, config).package, config, noise).mean(axis=0))
    assert shares[1][3] > shares[0][3]
    assert shares[1][0] < shares[0][0]


def test_probe_la_is_the_probe_with_other_biases(toy: Chips, configure: Configure) -> None:
    plain, adjusted = (train(toy, configure(method=name)).package.model.head for name in ("probe", "probe-la"))
    np.testing.assert_array_equal(plain.weight, adjusted.weight)
    expected = plain.bias - np.log(np.array(toy.table.counts) / len(toy) * len(toy.table.counts))
    np.testing.assert_allclose(adjusted.bias, expected, rtol=1e-5, atol=1e-5)


def test_classes_with_too_few_samples_are_refused(toy: Chips, configure: Configure) -> None:
    one = toy.subset(np.flatnonzero(np.arange(len(toy)) < 43))  # one of class3 is left
    with pytest.raises(DataError, match=r"class3 \(1\)"):
        train(one, configure())
    single = replace(toy.subset(list(range(24))), table=toy.table.from_counts({"class0": 24}))
    with pytest.raises(DataError, match="at least two classes; found only 'class0'"):
        train(single, configure())
