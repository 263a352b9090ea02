"""The training of an AdaLoRA: its ranks are taken away where they matter least (Zhang et al., ICLR 2023)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from torchgeo_debias.backbones import Backbone
from torchgeo_debias.errors import ConfigError

WARMUP, FINAL = 0.1, 0.5
"""Shares of the steps with all ranks in the beginning and with the last ones in the end; in the paper about 0.1 to 0.15
and 0.45 to 0.6."""

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def adalora_of(module: nn.Module) -> Any:  # noqa: ANN401 (peft's model)
    """The model, as peft has it, of the AdaLoRA that is trained in a module, None where there is none."""
    for part in module.modules():
        if isinstance(part, Backbone):
            config = getattr(part.model, "peft_config", {}).get("default")
            trained = any(parameter.requires_grad for parameter in part.parameters())
            return part.model.base_model if trained and config is not None and config.peft_type == "ADALORA" else None
    return None


class ShareRanks(Callback):
    """Keeps the matrices of an AdaLoRA near orthogonal and, after each step, its ranks within their budget.

    The importance of the ranks so far travels in the checkpoint, so that a run that goes on from there ends like one
    that was never stopped.
    """

    def __init__(self) -> None:
        self._model: Any = None
        self._restored: dict[str, Any] = {}
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Spread the budget over the steps, whose number is known only now.

        Raises:
            ConfigError: If there are too few.
        """
        self._model = adalora_of(pl_module)
        self._step = trainer.global_step
        total = int(trainer.estimated_stepping_batches)
        if total < 3:
            raise ConfigError(f"An AdaLoRA shares its ranks out over 3 steps at least; there are {total}: more epochs.")
        config = self._model.peft_config["default"]
        config.total_step, config.tinit, config.tfinal = total, int(WARMUP * total), int(FINAL * total)
        config.deltaT = max(1, total // 1000)
        if self._restored:
            config.rank_pattern = self._restored["rank_pattern"]
            for name in _AVERAGES:
                saved = {key: value.to(pl_module.device) for key, value in self._restored[name].items()}
                setattr(self._model.rankallocator, name, saved)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient of the orthogonality term: the mean of ``|P P^T - I|`` (Frobenius) over all matrices P.

        Added here and not to the loss, so that every stage has it whatever its loss is.
        """
        found = [p for name, p in self._model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
        with torch.enable_grad():
            wide = [p if p.shape[0] <= p.shape[1] else p.T for p in found]
            gaps = [torch.linalg.norm(p @ p.T - torch.eye(len(p), device=p.device)) for p in wide]
            term = self._model.peft_config["default"].orth_reg_weight * torch.stack(gaps).mean()
            gradients = torch.autograd.grad(term, found)
        for parameter, gradient in zip(found, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:  # noqa: ANN401
        """After a step, whose gradients are still there, weigh the ranks."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._model.update_and_allocate(self._step)

    def state_dict(self) -> dict[str, Any]:
        """The importance of the ranks and which of them are left."""
        if self._model is None:
            return self._restored
        averages = {name: dict(getattr(self._model.rankallocator, name)) for name in _AVERAGES}
        return {**averages, "rank_pattern": self._model.peft_config["default"].rank_pattern}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` gave; there is no model yet."""
        self._restored = state_dict
