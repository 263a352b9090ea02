"""LoRA by peft, on the modules where it takes effect in each family of backbones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from torch import nn

from torchgeo_debias.backbones.backbone import Backbone
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Where = Literal["attention", "all"]


@dataclass(frozen=True)
class LoraSettings:
    """Size and place of a LoRA (Hu et al. 2022).

    Attributes:
        rank: Rank of the update; 8 in the released code of debLoRA.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: On the input of the update.
        where: ``attention``: projections of the attention (in a model without one: the convolutions and linear
            layers of the blocks); ``all``: the two layers of each MLP as well.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    where: Where = "attention"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"The rank of a LoRA must be at least 1; received {self.rank}.")
        if self.where not in get_args(Where):
            raise ConfigError(f"A LoRA goes on one of {', '.join(get_args(Where))}; received {self.where!r}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"The dropout of a LoRA must lie between 0 and 1; received {self.dropout}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LoraSettings:
        """Read what :meth:`to_json` wrote; fields that are left out keep their defaults.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


def lora_targets(model: nn.Module, where: Where = "attention") -> list[str]:
    """Names of the modules that take a LoRA.

    Two traps are known. timm merges query, key and value into one ``qkv``: it is adapted whole. In
    ``nn.MultiheadAttention`` the ``forward`` of ``out_proj`` is never called, so a LoRA there learns nothing: the
    attention module itself is the target, and peft adapts both of its projections.

    Raises:
        ConfigError: If no such module exists.
    """
    found = []
    inside_attention: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if _at_the_door(name):
            continue
        if isinstance(module, nn.MultiheadAttention):
            found.append(name)
            inside_attention += (f"{name}.",)
        elif name.startswith(inside_attention) and inside_attention:
            continue
        elif isinstance(module, nn.Linear):
            attention = name.rsplit(".", 2)[-2:-1] in (["attn"], ["attention"], ["self_attn"])
            mlp = ".mlp." in name
            if attention or (where == "all" and mlp):
                found.append(name)
    if not found:
        found = [
            name
            for name, module in model.named_modules()
            if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
            and _in_block(name)
        ]
    if not found:
        raise ConfigError(f"No module of {type(model).__name__} is known to take a LoRA; use --method probe.")
    return found


def add_lora(backbone: Backbone, settings: LoraSettings) -> Backbone:
    """Freeze a backbone and put a fresh, trainable LoRA on it, in place.

    Raises:
        ConfigError: If the backbone has no module for it.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=lora_targets(backbone.model, settings.where),
    )
    backbone.model = get_peft_model(backbone.model, config)
    backbone.train(backbone.training)  # some of its normalisations are frozen only now
    return backbone


def _at_the_door(name: str) -> bool:
    # What reads raw bands: the stem (``conv1`` of ResNets, where deep ones number its parts) and the patch embedding.
    return name.split(".")[0] in ("stem", "conv1", "patch_embed")


def _in_block(name: str) -> bool:
    # Shortcut convolutions only match shapes; blocks sit in numbered stages.
    parts = name.split(".")
    return any(part.isdigit() for part in parts) and "downsample" not in parts and not _at_the_door(name)
