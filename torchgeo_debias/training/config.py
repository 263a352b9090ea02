"""Every choice of a training run, with its origin: the paper, our reconstruction of it, or ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torchgeo_debias.backbones import AdapterSettings, Pool, Precision, check_views
from torchgeo_debias.data.normalise import Stretch
from torchgeo_debias.debias.calibration import DebiasSettings
from torchgeo_debias.debias.losses import loss_settings
from torchgeo_debias.debias.methods import METHODS as HEADS
from torchgeo_debias.debias.methods import method_settings
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields
from torchgeo_debias.training.settings import Settings

Method = Literal["probe", "lora", "finetune", "deblora"]
METHODS: tuple[Method, ...] = get_args(Method)
AlignLoss = Literal["l2", "cosine", "ce", "l2+ce", "cosine+ce"]
AlignStart = Literal["fresh", "adapted"]
HeadOn = Literal["features", "targets", "calibrated"]
OWN = "own"
"""The head that is trained along with the network, in place of one that is fitted afterwards."""


@dataclass(frozen=True)
class OwnSettings:
    """Of the head that was trained along.

    Attributes:
        tau: Strength of a logit adjustment of the finished head (Menon et al. 2021); 0 is none.
    """

    tau: float = 0.0

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ConfigError(f"own.tau must not be negative; received {self.tau}.")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Configuration of :func:`torchgeo_debias.training.train`.

    Attributes:
        method: How features are made. ``probe``: by the frozen backbone; ``lora``: by a LoRA (or another adapter);
            ``finetune``: all weights are trained; ``deblora``: the three stages.
        loss: Class loss of ``lora``, ``finetune`` and of stage 1, a name in
            :data:`torchgeo_debias.debias.losses.LOSSES`.
        loss_settings: Of that loss, by field.
        backbone: Name in the registry.
        weights: ``auto``, ``hub``, ``wheel``, ``random`` or a path.
        start: Path of a model package whose adapter is where that of stage 1 begins, and that of stage 3 where it is
            ``fresh``; None for a new one. With ``probe``, features are those under that adapter.
        pool: How tokens become one feature. Ours.
        views: A feature of a finished network is the mean over 4 quarter turns of the image, or over all 8 symmetries,
            or is that of the image alone (1, the fastest to map with). None: 4 where ``augment`` turns the images of
            the training, else 1. Ours, by validation; ``docs/results.md`` has the measurement.
        adapter: What is trained in place of the backbone; a LoRA of rank 8 as in the released code, the rest ours.
        debias: Stage 2; see there.
        align_loss: Stage 3: ``l2`` or ``cosine`` distance to the calibrated features (l2: reconstructed Eq. 4), ``ce``
            (the class loss alone, the control without them), or both. Ours: ``l2+ce``; ``docs/method.md`` has the
            measurement.
        align_weight: Weight of the distance where both are used. Ours.
        align_class_loss: Class loss of stage 3, as ``loss``. Ours: ``balanced-softmax``.
        align_class_loss_settings: Of that loss, by field.
        align_start: ``fresh``: stage 3 trains a new adapter (paper, second-hand); ``adapted``: it goes on from that of
            stage 1. Ours.
        align_epochs: Of stage 3, None for ``epochs``; an adapter that goes on may need fewer. Ours.
        rounds: How often the stages debias and align are run, each on the features of the one before. Ours.
        head: How the classifier is made in the end: ``own``, the head that was trained along; or fitted on the features
            of the training chips, by a name in :data:`torchgeo_debias.debias.methods.METHODS`. ``auto``: ``ce`` for
            ``probe``, ``own`` for ``lora`` and ``finetune``, ``la`` for ``deblora`` (ours, by validation).
        head_settings: Of that method, by field; of ``own``, ``tau``: the strength of a logit adjustment afterwards.
        head_on: What the head of ``deblora`` is fitted on: its ``features`` (a linear probe, as in the paper); the
            ``targets`` that stage 3 aimed at; or its features, ``calibrated`` once more (ours, by validation).
        epochs: Of the stages adapt and align each, unless ``align_epochs`` says otherwise.
        batch_size: Chips a step.
        lr: Peak learning rate of AdamW (1e-3 in the released code); ``finetune`` uses a hundredth of it.
        weight_decay: Of AdamW. Ours.
        warmup: Share of the steps with rising learning rate; a cosine follows. Ours.
        augment: Random flips and quarter turns (all eight symmetries of the square). Ours.
        stretch: Amplitude stretch; SAR needs one.
        accumulate: Batches whose gradients are summed before a step.
        precision: ``auto``: bf16 where the processor has it in hardware, else 32.
        compile: Whether the backbone is compiled by ``torch.compile``; takes up to a minute before the first step.
        gradient_checkpointing: Whether blocks are computed twice a step to save memory, see ``docs/performance.md``.
        devices: Number of GPUs, or of processes on a machine without one; gradients are averaged over them.
        val_share: Share of the sources held out for early stopping; 0 trains for all epochs.
        patience: Epochs without a better validation macro-F1 before stopping.
        seed: Of everything random.
    """

    method: Method = "deblora"
    loss: str = "ce"
    loss_settings: dict[str, Any] = field(default_factory=dict)
    backbone: str = "dinov2_vits14"
    weights: str = "auto"
    start: str | None = None
    pool: Pool = "cls+mean"
    views: int | None = None
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    debias: DebiasSettings = field(default_factory=DebiasSettings)
    align_loss: AlignLoss = "l2+ce"
    align_weight: float = 1.0
    align_class_loss: str = "balanced-softmax"
    align_class_loss_settings: dict[str, Any] = field(default_factory=dict)
    align_start: AlignStart = "fresh"
    align_epochs: int | None = None
    rounds: int = 1
    head: str = "auto"
    head_settings: dict[str, Any] = field(default_factory=dict)
    head_on: HeadOn = "calibrated"
    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    augment: bool = True
    stretch: Stretch = "none"
    accumulate: int = 1
    precision: Precision = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    devices: int = 1
    val_share: float = 0.0
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(counts=["devices", "rounds"])
        if self.align_epochs is not None and self.align_epochs < 1:
            raise ConfigError(f"align_epochs must be at least 1; received {self.align_epochs}.")
        check_views(self.view_count)
        loss_settings(self.loss, self.loss_settings)
        loss_settings(self.align_class_loss, self.align_class_loss_settings)
        if self.head_name == OWN:
            read_fields(OwnSettings, self.head_settings, "own.")
        elif self.head_name in HEADS:
            method_settings(self.head_name, self.head_settings)
        else:
            raise ConfigError(f"There is no head {self.head!r}: choose among auto, {OWN}, {', '.join(HEADS)}.")
        self._check_start()
        if self.head_name == OWN and self.method == "probe":
            raise ConfigError("The method probe trains no head along: choose another head, such as ce or la.")
        if self.head_name == OWN and self.method == "deblora" and "ce" not in self.align_loss:
            raise ConfigError(f"align_loss {self.align_loss!r} trains no head: choose another head, or one with +ce.")
        if self.val_share > 0 and self.method == "deblora" and "ce" not in self.align_loss:
            raise ConfigError(
                f"val_share needs the scores of a head, and align_loss {self.align_loss!r} trains none: set val_share "
                "to 0, or choose an align_loss with ce."
            )

    def _check_start(self) -> None:
        """Refuse to go on from a model where that cannot be, whatever the model."""
        if self.start is None or self.method == "probe":
            return
        if self.method == "finetune":
            raise ConfigError("finetune trains all weights and no adapter: leave start out, or choose lora or deblora.")
        if self.adapter.mixture or self.adapter.kind == "adalora":
            reason = (
                "a mixture belongs to the classes or clusters of its own training"
                if self.adapter.mixture
                else "an AdaLoRA is kept as the plain LoRA that it came to"
            )
            raise ConfigError(f"An adapter of the kind {self.adapter.kind} cannot be gone on from: {reason}.")

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the class losses that the network is trained under, one stage after the other."""
        if self.method == "probe":
            return ()
        aligned = self.method == "deblora" and "ce" in self.align_loss
        return (self.loss, self.align_class_loss) if aligned else (self.loss,)

    @property
    def view_count(self) -> int:
        """What ``views`` None comes to."""
        if self.views is not None:
            return self.views
        return 4 if self.augment else 1

    @property
    def head_name(self) -> str:
        """What ``auto`` comes to."""
        if self.head != "auto":
            return self.head
        return {"probe": "ce", "deblora": "la"}.get(self.method, OWN)
