"""Training on several devices, here two processes, hands the weights back to one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.training import TrainConfig, train
from torchgeo_debias.training.module import _loader


def test_two_processes_train_one_model(
    toy: Chips, configure: Callable[..., TrainConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    after = train(toy, configure(method="lora", epochs=2, devices=2)).package.model
    assert after.adapter is not None
    moved = [name for name in after.adapter.tensors if "lora_B" in name and after.adapter.tensors[name].any()]
    assert len(moved) == len(after.adapter.tensors) // 2
    assert np.isfinite(after.head.weight).all()
    told = capfd.readouterr().err
    assert not [word for word in ("GLOBAL_RANK", "lightning", "Trainer") if word in told], told


@pytest.mark.parametrize(
    ("chips", "devices", "left_out"),
    [(17, 1, True), (18, 1, False), (17, 2, True), (18, 2, True), (25, 2, False), (33, 4, True), (2, 2, False)],
)
def test_a_last_batch_of_one_chip_is_that_of_a_device(
    chips: int, devices: int, left_out: bool, toy: Chips, configure: Callable[..., TrainConfig]
) -> None:
    config = configure(batch_size=8, devices=devices)
    assert _loader(toy.subset(list(range(chips))), config, shuffle=True).drop_last is left_out
    assert not _loader(toy.subset(list(range(chips))), config, shuffle=False).drop_last
