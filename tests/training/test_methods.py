"""What every method promises, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from torchgeo_debias.backbones import create_backbone
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias.losses import LOSSES
from torchgeo_debias.debias.methods import METHODS as HEADS
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


@pytest.mark.parametrize("method", [name for name in METHODS if name != "probe"], indirect=True)
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
    adapted = method in ("lora", "deblora")
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


@pytest.mark.parametrize("align", ["l2", "cosine", "ce", "l2+ce", "cosine+ce"])
@pytest.mark.parametrize(
    ("head", "head_on"), [("own", "features"), ("la", "features"), ("la", "targets"), ("la", "calibrated")]
)
def test_every_way_to_align_and_to_fit_the_head(
    align: str, head: str, head_on: str, toy: Chips, held_out: Chips, configure: Configure
) -> None:
    if head == "own" and "ce" not in align:
        with pytest.raises(ConfigError, match="trains no head"):
            configure(align_loss=align, head=head)
        return
    config = configure(align_loss=align, head=head, head_on=head_on, epochs=3)
    assert balanced_accuracy(predict(train(toy, config).package, config, held_out), held_out.labels) > 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"rounds": 2},
        {"align_start": "adapted"},
        {"align_class_loss": "focal"},
        {"align_class_loss_settings": {"tau": 0.5}},
    ],
)
def test_a_variant_of_the_third_stage_is_another_model(
    fields: dict[str, Any], toy: Chips, held_out: Chips, configure: Configure
) -> None:
    config = configure(epochs=3, **fields)
    trained = train(toy, config)
    assert balanced_accuracy(predict(trained.package, config, held_out), held_out.labels) > 0.5
    assert not same(trained.package, train(toy, configure(epochs=3)).package)
    assert ("align 2" in trained.seconds) == ("rounds" in fields)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_a_network(loss: str, toy: Chips, held_out: Chips, configure: Configure) -> None:
    # Margins of LDAM are those of cosines times 30; on logits of a linear head they take more steps.
    config = configure(method="lora", loss=loss, epochs=12 if loss == "ldam" else 6, lr=3e-3)
    chips = replace(toy, domains=np.arange(len(toy)) % 2) if LOSSES[loss].domains else toy
    assert balanced_accuracy(predict(train(chips, config).package, config, held_out), held_out.labels) > 0.5


@pytest.mark.parametrize("head", HEADS)
def test_every_head_goes_with_frozen_features(head: str, toy: Chips, held_out: Chips, configure: Configure) -> None:
    config = configure(method="probe", head=head)
    package = train(toy, config).package
    assert balanced_accuracy(predict(package, config, held_out), held_out.labels) > 0.5
    assert package.model.head.cosine == (head in ("cosine", "ldam", "sade"))


def test_a_cosine_head_is_saved_and_read_as_one(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(method="probe", head="cosine")
    package = train(toy, config).package
    package.save(tmp_path / "model")
    again = ModelPackage.load(tmp_path / "model")
    assert again.model.head.cosine
    np.testing.assert_array_equal(predict(again, config, toy), predict(package, config, toy))


@pytest.mark.parametrize(
    "adjusted",
    [{"loss": "balanced-softmax"}, {"head": "own", "head_settings": {"tau": 1.0}}, {"head": "la"}],
)
def test_adjusting_favours_the_rare_class(adjusted: dict[str, Any], toy: Chips, configure: Configure) -> None:
    """Chips that tell nothing: without adjustment the common class is likelier, with it the classes come near."""
    rng = np.random.default_rng(0)
    noise = replace(toy, images=rng.integers(0, 255, toy.images.shape, dtype=np.uint8))
    plain = {"head": "ce"} if adjusted == {"head": "la"} else {}
    shares = []
    for fields in (plain, adjusted):
        config = configure(method="lora", epochs=3, lr=1e-4, **fields)
        shares.append(predict(train(noise, config).package, config, noise).mean(axis=0))
    assert shares[1][3] > shares[0][3]
    assert shares[1][0] < shares[0][0]


def test_la_is_the_probe_with_other_biases(toy: Chips, configure: Configure) -> None:
    plain, adjusted = (train(toy, configure(method="probe", head=name)).package.model.head for name in ("auto", "la"))
    np.testing.assert_array_equal(plain.weight, adjusted.weight)
    expected = plain.bias - np.log(np.array(toy.table.counts) / len(toy) * len(toy.table.counts))
    np.testing.assert_allclose(adjusted.bias, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"head": "magic"}, "There is no head 'magic': choose among auto, own, ce"),
        ({"loss": "magic"}, "There is no loss 'magic': choose among ce"),
        ({"align_class_loss": "magic"}, "There is no loss 'magic'"),
        ({"align_class_loss_settings": {"q": 1}}, "Unknown field balanced-softmax.q: choose among tau"),
        ({"align_loss": "l2", "val_share": 0.2}, "align_loss 'l2' trains none: set val_share to 0"),
        ({"align_loss": "cosine", "val_share": 0.2}, "val_share needs the scores of a head"),
        ({"head": "smote", "head_settings": {"k": 0}}, "at least one neighbour"),
        ({"head": "smote", "head_settings": {"q": 0}}, "Unknown field smote.q: choose among k"),
        ({"head": "own", "head_settings": {"tau": -1.0}}, "must not be negative"),
        ({"loss": "ce", "loss_settings": {"tau": 1}}, "The loss ce has nothing to set"),
        ({"method": "probe", "head": "own"}, "trains no head along"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"align_epochs": 0}, "align_epochs must be at least 1; received 0"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(fields: dict[str, Any], sentence: str, configure: Configure) -> None:
    with pytest.raises(ConfigError, match=sentence):
        configure(**fields)


def test_classes_with_too_few_samples_are_refused(toy: Chips, configure: Configure) -> None:
    one = toy.subset(np.flatnonzero(np.arange(len(toy)) < 43))  # one of class3 is left
    with pytest.raises(DataError, match=r"class3 \(1\)"):
        train(one, configure())
    single = replace(toy.subset(list(range(24))), table=toy.table.from_counts({"class0": 24}))
    with pytest.raises(DataError, match="at least two classes; found only 'class0'"):
        train(single, configure())
