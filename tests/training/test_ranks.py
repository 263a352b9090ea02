"""AdaLoRA in training: its budget is kept, and an interrupted run ends like one never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.test_methods import same
from tests.training.test_runs import stop_at
from torchgeo_debias.backbones import AdapterSettings
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import Cancelled, ConfigError
from torchgeo_debias.progress import silent
from torchgeo_debias.training import TrainConfig, train
from torchgeo_debias.training.stages import Run, adapt
from torchgeo_debias.training.trainer import normalisation_for

Configure = Callable[..., TrainConfig]
RANK = 2
START = 3
LAYERS = 12


def left(toy: Chips, config: TrainConfig) -> tuple[list[int], list[torch.Tensor]]:
    """How many ranks each layer has in the end, and its matrices A."""
    run = Run(toy, None, normalisation_for(toy, config), config, silent, None)
    parameters = dict(adapt(run)[0].named_parameters())
    ranks = [int((value != 0).sum()) for name, value in parameters.items() if "lora_E" in name]
    return ranks, [value.detach() for name, value in parameters.items() if "lora_A" in name]


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"epochs": 3, "batch_size": 64}])
def test_the_budget_is_met(toy: Chips, configure: Configure, options: dict[str, int]) -> None:
    config = configure(**{"method": "lora", "epochs": 2, "adapter": AdapterSettings("adalora", rank=RANK), **options})
    ranks, _ = left(toy, config)
    assert len(ranks) == LAYERS
    assert max(ranks) <= START
    # Ranks of the same importance go together, so a few more may be gone.
    assert RANK * LAYERS - 2 <= sum(ranks) <= RANK * LAYERS


def test_too_short_a_training_is_refused(toy: Chips, configure: Configure) -> None:
    config = configure(method="lora", epochs=2, batch_size=64, adapter=AdapterSettings("adalora"))
    with pytest.raises(ConfigError, match="3 steps at least; there are 2"):
        train(toy, config)


def test_ranks_go_where_they_are_needed(toy: Chips, configure: Configure) -> None:
    ranks, _ = left(toy, configure(method="lora", epochs=4, adapter=AdapterSettings("adalora", rank=RANK)))
    assert len(set(ranks)) > 1


def test_matrices_are_drawn_to_orthogonality(toy: Chips, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    def gap(matrices: list[torch.Tensor]) -> float:
        return sum(float((a @ a.T - torch.eye(len(a))).norm()) for a in matrices)

    config = configure(method="lora", epochs=3, lr=1e-2, adapter=AdapterSettings("adalora", rank=RANK))
    _, drawn = left(toy, config)
    monkeypatch.setattr("torchgeo_debias.training.ranks.ShareRanks.on_before_optimizer_step", lambda *_: None)
    _, free = left(toy, config)
    assert gap(drawn) < 0.9 * gap(free)


def test_a_cancelled_run_goes_on_where_it_stopped(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", epochs=4, adapter=AdapterSettings("adalora", rank=RANK))
    with pytest.raises(Cancelled):
        train(toy, config, progress=stop_at("adapt", 14), checkpoints=tmp_path)  # amid the second half
    assert same(train(toy, config, checkpoints=tmp_path).package, train(toy, config).package)
