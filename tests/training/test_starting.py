"""A training that goes on from the adapter of an earlier model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import toy_chips
from tests.training.test_methods import balanced_accuracy, predict, same, tensors
from tests.training.test_runs import Steps, steps, stop_at
from torchgeo_debias.backbones import KINDS, AdapterSettings, continue_adapter
from torchgeo_debias.backbones.adapters import Kind
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import Cancelled, ConfigError, PackageError
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.progress import silent
from torchgeo_debias.training import TrainConfig, extract_features, train
from torchgeo_debias.training.parts import adapter_of
from torchgeo_debias.training.stages import Run
from torchgeo_debias.training.trainer import normalisation_for

Configure = Callable[..., TrainConfig]
CHAINED = [kind for kind, about in KINDS.items() if about.type != "MIXTURE" and kind != "adalora"]


@pytest.fixture(scope="module")
def optical(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of other chips, of three classes."""
    path = tmp_path_factory.mktemp("start") / "optical.tgd"
    train(toy_chips((20, 10, 5), seed=5), configure(method="lora", epochs=2)).package.save(path)
    return path


def run_of(chips: Chips, config: TrainConfig) -> Run:
    return Run(chips, None, normalisation_for(chips, config), config, silent, None)


@pytest.mark.parametrize("kind", CHAINED)
def test_it_begins_with_the_features_of_the_earlier_model_and_trains_on(
    kind: Kind, toy: Chips, configure: Configure, tmp_path: Path
) -> None:
    first = configure(method="lora", epochs=2, adapter=AdapterSettings(kind, rank=2))
    earlier = train(toy_chips((20, 10, 5), seed=5), first).package
    earlier.save(tmp_path / "first")
    config = replace(first, start=str(tmp_path / "first"), epochs=1)
    run = run_of(toy, config)
    backbone = run.adapted()
    found = extract_features(backbone, toy, earlier.normalisation, precision="32")
    wanted = PackagePredictor(earlier, weights=config.weights, precision="32").features(toy.images, toy.valid)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    fresh = run_of(toy, first).adapted()
    trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
    before = tensors(earlier)
    after = tensors(train(toy, config).package)
    assert any(not torch.equal(after[name], before[name]) for name in set(after) - {"main weight", "main bias"})


def test_stage_1_and_a_fresh_stage_3_begin_there(optical: Path, toy: Chips, configure: Configure) -> None:
    # With steps too small to see, the adapter stays where it began.
    config = configure(start=str(optical), epochs=1, lr=1e-12, weight_decay=0.0)
    package = train(toy, config).package
    start = ModelPackage.load(optical)
    assert package.raw is not None
    for part in (package.model, package.raw):
        for name, value in part.adapter.tensors.items():  # type: ignore[union-attr]
            torch.testing.assert_close(value, start.model.adapter.tensors[name], rtol=0, atol=1e-8)  # type: ignore[union-attr]
    assert package.model.head.weight.shape[0] == 4
    assert package.provenance["start"] == {"model": "optical.tgd", "digest": start.digest}


def test_a_probe_sees_the_features_under_the_given_adapter(
    optical: Path, toy: Chips, held_out: Chips, configure: Configure
) -> None:
    config = configure(method="probe", start=str(optical), adapter=AdapterSettings(rank=7))  # which it has no use for
    package = train(toy, config).package
    start = ModelPackage.load(optical)
    assert package.model.adapter is not None
    for name, value in start.model.adapter.tensors.items():  # type: ignore[union-attr]
        assert torch.equal(package.model.adapter.tensors[name], value)
    assert not same(package, train(toy, configure(method="probe")).package)
    assert balanced_accuracy(predict(package, config, held_out), held_out.labels) > 0.7


def test_other_bands_and_another_chip_size_are_no_hindrance(optical: Path, configure: Configure) -> None:
    chips = toy_chips((12, 6, 4), size=48)
    grey = replace(chips, images=chips.images[:, :1], bands=("vv",))
    package = train(grey, configure(method="lora", start=str(optical), epochs=1)).package
    assert package.bands == ("vv",)
    assert package.provenance["start"]["model"] == "optical.tgd"


def test_a_stopped_run_ends_as_one_never_stopped(
    optical: Path, toy: Chips, configure: Configure, tmp_path: Path
) -> None:
    config = configure(start=str(optical), epochs=2, adapter=AdapterSettings(rank=4, dropout=0.1))
    for stage in ("adapt", "align"):
        with pytest.raises(Cancelled):
            train(toy, config, progress=stop_at(stage, 8), checkpoints=tmp_path)
    seen: Steps = []
    again = train(toy, config, progress=seen.append, checkpoints=tmp_path).package
    assert not steps(seen, "adapt")
    assert steps(seen, "align") == list(range(7, 13))
    assert same(again, train(toy, config).package)
    assert not same(again, train(toy, replace(config, start=None)).package)


def test_checkpoints_of_another_start_at_the_same_place_are_not_used(
    optical: Path, toy: Chips, configure: Configure, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    config = configure(method="lora", start=str(start), epochs=1)
    for earlier in (ModelPackage.load(optical), train(toy, configure(method="lora", epochs=1)).package):
        earlier.save(start)
        seen: Steps = []
        train(toy, config, progress=seen.append, checkpoints=tmp_path / "kept")
        assert steps(seen, "adapt") == list(range(1, 7))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"adapter": AdapterSettings(rank=8)}, r"optical\.tgd: its adapter has the rank 4, that of this training 8\.$"),
        ({"adapter": AdapterSettings(rank=4, alpha=4)}, "has the alpha 16.0, that of this training 4"),
        ({"adapter": AdapterSettings("rslora", rank=4)}, "has use_rslora False, that of this training True"),
        ({"adapter": AdapterSettings("loha", rank=4)}, "has the type LORA, that of this training LOHA"),
        ({"adapter": AdapterSettings("houlsby", rank=4)}, "has the type LORA, that of this training BOTTLENECK"),
        ({"adapter": AdapterSettings(rank=4, where="all")}, "goes on other layers; give the same where or modules"),
        ({"backbone": "timm:test_resnet"}, "was trained on other weights than those of timm:test_resnet here"),
        ({"backbone": "timm:test_resnet", "method": "probe"}, "was trained on other weights than those of"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_a_sentence(
    fields: dict[str, Any], sentence: str, optical: Path, toy: Chips, configure: Configure
) -> None:
    seen: Steps = []
    with pytest.raises(ConfigError, match=sentence) as error:
        train(toy, configure(start=str(optical), **fields), progress=seen.append)
    assert "\n" not in str(error.value)
    assert not seen


def test_a_model_without_an_adapter_is_refused(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    train(toy, configure(method="probe")).package.save(tmp_path / "probe")
    with pytest.raises(ConfigError, match="has no adapter to start from, it was trained by the method probe"):
        train(toy, configure(start=str(tmp_path / "probe")))
    with pytest.raises(PackageError, match="nowhere"):
        train(toy, configure(start=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "finetune"}, "finetune trains all weights and no adapter"),
        ({"adapter": AdapterSettings("plora")}, "kind plora cannot be gone on from: a mixture belongs to"),
        ({"adapter": AdapterSettings("clora")}, "kind clora cannot be gone on from"),
        ({"adapter": AdapterSettings("adalora")}, "kind adalora cannot be gone on from: an AdaLoRA is kept as"),
    ],
)
def test_what_can_start_from_no_model_is_refused(fields: dict[str, Any], sentence: str, configure: Configure) -> None:
    with pytest.raises(ConfigError, match=sentence):
        configure(start="somewhere", **fields)


def test_the_start_stands_in_the_configuration(configure: Configure) -> None:
    assert configure().to_json()["start"] is None
    config = configure(start="optical.tgd")
    assert config.to_json()["start"] == "optical.tgd"
    assert TrainConfig.from_json(config.to_json()) == config


def test_tensors_of_other_shapes_are_refused(optical: Path, toy: Chips, configure: Configure) -> None:
    start = ModelPackage.load(optical).model.adapter
    assert start is not None
    name = next(iter(start.tensors))
    odd = {**start.tensors, name: start.tensors[name][:, :-1]}
    backbone = run_of(toy, configure()).adapted()
    with pytest.raises(ConfigError, match="other names or shapes"):
        continue_adapter(backbone, start.config, odd)
    assert adapter_of(backbone) is not None
