"""Every choice of a training run of a detector, with its origin: the paper, another work, or ours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from torchgeo_debias.backbones import AdapterSettings, Precision
from torchgeo_debias.data.normalise import Stretch
from torchgeo_debias.debias.calibration import DebiasSettings
from torchgeo_debias.detection import DetectorConfig
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.training.config import AlignStart
from torchgeo_debias.training.settings import Settings

AlignOn = Literal["all", "moved"]
DetectMethod = Literal["probe", "lora", "finetune", "rfs", "class-balanced", "ecm", "efl", "deblora"]
DETECT_METHODS: tuple[DetectMethod, ...] = get_args(DetectMethod)
Twin = Literal["plain", "equal"]
ClassLossName = Literal["focal", "class-balanced", "ecm", "efl"]


@dataclass(frozen=True)
class DetectConfig(Settings):
    """Configuration of :func:`torchgeo_debias.training.detection.train_detector`.

    All methods train the same detector from the same start (backbone, neck and head are drawn before a LoRA is), on the
    same tiles in the same order (``rfs`` alone draws them otherwise, but as many), for the same epochs. ``deblora``
    runs three stages and so costs more; a comparison with equal steps gives the others
    ``(2 + refit_share) * epochs``, or sets ``twin``.

    Attributes:
        method: ``probe``: neck and head under the focal loss, on the frozen backbone; ``lora``: with a LoRA on it;
            ``finetune``: all weights; ``rfs``: LoRA with repeat-factor sampling (Gupta et al. 2019, LVIS);
            ``class-balanced``, ``ecm``, ``efl``: LoRA under that class loss, see :mod:`torchgeo_debias.detection`;
            ``deblora``: the three stages.
        backbone: Name in the registry.
        weights: ``auto``, ``hub``, ``wheel``, ``random`` or a path.
        adapter: What is trained in place of the backbone; a LoRA of rank 8 as in the released code of debLoRA, the
            rest ours. No mixture, which goes by the features of chips.
        debias: Stage 2; see there. ``pull=0`` and ``centre="global"`` are its controls.
        detector: Neck and head, and whether boxes are oriented.
        twin: What ``deblora`` keeps for comparison. ``plain``: the detector of stage 1, at no cost. ``equal``: a
            control that differs in the aim alone; it goes on from stage 1 through align and refit as the model does,
            with the same steps, order and class loss, but its features are drawn nowhere. It adds
            ``(1 + refit_share) * epochs``. Ours.
        class_loss: Of the stages align and refit of ``deblora``; ``probe``, ``lora``, ``finetune``, ``rfs`` and its
            stage adapt take the focal loss, the others the one they are named after. Ours.
        align_start: ``adapted``: stage 3 goes on with the adapter of stage 1; ``fresh``: it trains a new one, as the
            paper does (second-hand). Ours, see docs/detection.md.
        align_on: Objects whose features stage 3 draws to their targets: those of the classes that were ``moved``, or
            ``all``. Ours.
        align_weight: Weight of the l2 term of stage 3, in units of the features' standard deviation. Ours.
        refit_share: Share of ``epochs`` for which the head is fitted anew in the end, all else frozen; 0 keeps that of
            stage 3. Ours.
        repeat_threshold: The t of ``rfs``: tiles with a class that stands on a smaller share of the tiles are repeated.
            LVIS takes 0.001, for a hundred thousand images; ours is for hundreds.
        empty: Share of the tiles without any object that is kept.
        epochs: Of the stages adapt and align each.
        batch_size: Tiles a step.
        lr: Peak learning rate of AdamW.
        backbone_lr: Share of ``lr`` for the backbone in ``finetune``; its batch normalisation keeps its statistics.
        weight_decay: Of AdamW.
        warmup: Share of the steps with rising learning rate; a cosine follows.
        augment: The eight symmetries of the square, drawn evenly.
        stretch: Amplitude stretch; SAR needs one.
        accumulate: Batches whose gradients are summed before a step.
        precision: ``auto``: bf16 where the processor has it in hardware, else 32. Losses are always computed in 32.
        compile: Whether the backbone is compiled by ``torch.compile``; takes up to a minute before the first step.
        gradient_checkpointing: Whether blocks are computed twice a step to save memory, see ``docs/performance.md``.
        cache_mb: Memory for decoded tiles, MiB, and as much again for what a frozen backbone makes of them. Where not
            all tiles fit, the others are read again in each epoch, and tiles from image files are shuffled less: among
            a few images at a time, as many as are kept decoded (512 MiB), which are drawn anew in each epoch. Then no
            file is decoded more than once an epoch.
        val_share: Share of the sources held out for early stopping by AP50; 0 trains for all epochs.
        patience: Epochs without a better AP50 before stopping; in the first ones nothing may be found at all.
        seed: Of everything random.
    """

    method: DetectMethod = "deblora"
    backbone: str = "dinov2_vits14"
    weights: str = "auto"
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    debias: DebiasSettings = field(default_factory=DebiasSettings)
    detector: DetectorConfig = field(default_factory=lambda: DetectorConfig(oriented=True))
    twin: Twin = "plain"
    class_loss: ClassLossName = "class-balanced"
    align_start: AlignStart = "adapted"
    align_on: AlignOn = "moved"
    align_weight: float = 1.0
    refit_share: float = 0.5
    repeat_threshold: float = 0.1
    empty: float = 0.25
    epochs: int = 24
    batch_size: int = 8
    lr: float = 1e-3
    backbone_lr: float = 0.02
    weight_decay: float = 1e-4
    warmup: float = 0.1
    augment: bool = True
    stretch: Stretch = "none"
    accumulate: int = 1
    precision: Precision = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    cache_mb: int = 2048
    val_share: float = 0.0
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.adapter.mixture:
            raise ConfigError(
                f"A detector takes no mixture such as {self.adapter.kind}, whose LoRAs are chosen by the features of "
                "chips: choose another kind of adapter."
            )
        self._check(
            positive=["backbone_lr", "repeat_threshold"],
            most={"refit_share": math.inf, "cache_mb": math.inf, "empty": 1},
        )

    @property
    def devices(self) -> int:
        """A detector is trained on one device."""
        return 1
