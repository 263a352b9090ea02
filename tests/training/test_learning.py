"""What losses are told of the training chips, and when."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.test_methods import same
from tests.training.test_runs import Steps, steps, stop_at
from torchgeo_debias.backbones import AdapterSettings
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias.losses import LongTailLoss
from torchgeo_debias.debias.losses.domains import DomainLoss
from torchgeo_debias.debias.losses.subclass import SubclassLoss
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import Cancelled, DataError
from torchgeo_debias.training import TrainConfig, train
from torchgeo_debias.training.stages import Run
from torchgeo_debias.training.trainer import normalisation_for

Configure = Callable[..., TrainConfig]


@pytest.fixture
def sensors(toy: Chips) -> Chips:
    return replace(toy, domains=np.arange(len(toy), dtype=np.int64) % 2)


def test_features_are_told_before_each_epoch_as_they_are_by_then(
    toy: Chips, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Samples] = []
    learn = SubclassLoss.learn

    def heard(loss: SubclassLoss, samples: Samples, seed: int) -> None:
        told.append(samples)
        learn(loss, samples, seed)

    monkeypatch.setattr(SubclassLoss, "learn", heard)
    config = configure(method="lora", loss="sbcl", epochs=3, adapter=AdapterSettings(rank=4, dropout=0.5))
    seen: Steps = []
    train(toy, config, progress=seen.append)
    assert len(told) == 3
    run = Run(toy, None, normalisation_for(toy, config), config, seen.append, None)
    frozen = run.features(run.backbone(), "a new LoRA changes nothing")
    np.testing.assert_allclose(told[0].features, frozen, rtol=1e-4, atol=1e-5)
    gaps = [np.abs(one.features - two.features).max() for one, two in itertools.pairwise(told)]
    assert min(gaps) > 1e-3
    # The bar stands still meanwhile.
    done = steps(seen, "adapt")
    assert done == sorted(done)
    assert set(done) == set(range(19))


@pytest.mark.parametrize("loss", ["sbcl", "boda", "weighted"])
@pytest.mark.parametrize("stage", ["adapt", "align"])
def test_a_run_that_was_stopped_is_told_the_same(
    loss: str, stage: str, sensors: Chips, configure: Configure, tmp_path: Path
) -> None:
    config = configure(epochs=3, loss=loss, align_class_loss=loss)
    with pytest.raises(Cancelled):
        train(sensors, config, progress=stop_at(stage, 14), checkpoints=tmp_path)  # in the third epoch
    seen: Steps = []
    again = train(sensors, config, progress=seen.append, checkpoints=tmp_path).package
    assert steps(seen, stage)[-6:] == list(range(13, 19))
    assert min(steps(seen, stage)) >= 12
    assert same(again, train(sensors, config).package)


def test_early_stopping_goes_with_what_a_loss_keeps(sensors: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", loss="boda", epochs=4, val_share=0.25, patience=1)
    first = train(sensors, config, checkpoints=tmp_path).package
    assert same(first, train(sensors, config, checkpoints=tmp_path).package)
    assert same(first, train(sensors, config).package)


@pytest.mark.parametrize(("name", "kind"), [("sbcl", SubclassLoss), ("boda", DomainLoss)])
def test_a_network_in_few_bits_has_its_loss_in_32(
    name: str, kind: type[LongTailLoss], sensors: Chips, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = kind.forward
    pairs: list[tuple[float, float]] = []

    def twice(loss: LongTailLoss, logits: Tensor, labels: Tensor, **others: Tensor) -> Tensor:
        found = forward(loss, logits, labels, **others)
        with torch.autocast("cpu", enabled=False):
            pairs.append((found.item(), forward(loss, logits, labels, **others).item()))
        return found

    monkeypatch.setattr(kind, "forward", twice)
    train(sensors, configure(method="lora", loss=name, epochs=1, precision="bf16"))
    assert len(pairs) == 6
    assert [mixed for mixed, _ in pairs] == [whole for _, whole in pairs]


def test_frozen_features_are_extracted_once_a_run(sensors: Chips, configure: Configure) -> None:
    seen: Steps = []
    adapter = AdapterSettings("plora", rank=2, experts=2)
    train(sensors, configure(epochs=1, loss="weighted", align_class_loss="weighted", adapter=adapter),
          progress=seen.append)  # fmt: skip
    assert steps(seen, "frozen features") == [0, 1]


@pytest.mark.parametrize("fields", [{"loss": "boda"}, {"align_class_loss": "boda"}])
def test_chips_of_one_sensor_are_refused_before_any_work(
    fields: dict[str, str], toy: Chips, configure: Configure
) -> None:
    seen: Steps = []
    config = replace(configure(**fields), weights="nowhere.safetensors")
    for chips in (toy, replace(toy, domains=np.full(len(toy), 7))):
        with pytest.raises(DataError, match="The loss boda brings several sensors or regions together"):
            train(chips, config, progress=seen.append)
    assert not seen
    # Where it is not trained under, it does not matter.
    train(toy, configure(method="probe", **fields))


def test_checkpoints_of_other_domains_are_not_used(sensors: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", loss="boda", epochs=1)
    train(sensors, config, checkpoints=tmp_path)
    seen: Steps = []
    other = replace(sensors, domains=np.arange(len(sensors)) % 3)
    train(other, config, progress=seen.append, checkpoints=tmp_path)
    assert steps(seen, "adapt")[-1] == 6


def test_domains_count_in_training(sensors: Chips, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    domains: list[np.ndarray | None] = []
    learn = DomainLoss.learn

    def heard(loss: DomainLoss, samples: Samples, seed: int) -> None:
        domains.append(samples.domains)
        learn(loss, samples, seed)

    monkeypatch.setattr(DomainLoss, "learn", heard)
    one = train(sensors, configure(method="lora", loss="boda", epochs=1)).package
    np.testing.assert_array_equal(domains[0], sensors.domains)
    assert not same(one, train(sensors, configure(method="lora", epochs=1)).package)
