"""Between the pretrained model and the adapted one: an adapter at part of its strength, a head between two heads.

WiSE-FT (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022) averages the weights of a model before and
after fine-tuning, ``(1 - a) W_0 + a W_1``. Where an adapter holds the difference this is ``a`` times the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torchgeo_debias.backbones.backbone import Backbone
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.errors import ConfigError

# One factor of each product: what is multiplied there is multiplied in the update.
_FACTORS = {
    "LORA": (".lora_B.",),
    "ADALORA": (".lora_E.",),
    "LOHA": (".hada_w1_a.",),
    "LOKR": (".lokr_w1.", ".lokr_w1_a."),
    "VERA": (".vera_lambda_b.",),
    "IA3": (".ia3_l.",),
    "BOTTLENECK": (".adapter.3.",),
    "MIXTURE": (".adapter.2.",),
}


@contextmanager
def scaled(backbone: Backbone, strength: float) -> Iterator[Backbone]:
    """The backbone with its adapter at a part of its strength; afterwards it is as it was.

    Exact: every adapted layer computes with ``W_0 + strength * update``, so that 0 is the pretrained model and 1 the
    adapted one. A bottleneck adds ``strength`` times what it added; this is no average of weights. The parameters
    themselves change, so that an adapter that is saved within the block has that strength wherever it is loaded.

    Args:
        backbone: With an adapter, which is changed in place.
        strength: 0 to 1.

    Raises:
        ConfigError: If there is no adapter, it is of a kind whose update does not scale (dora, hra), or ``strength``
            lies elsewhere.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"The strength of an adapter must lie between 0 and 1; received {strength}.")
    kind, factors = _factors(backbone)
    before = [factor.detach().clone() for factor in factors]
    none = 1.0 if kind == "IA3" else 0.0  # the factor that changes nothing
    try:
        with torch.no_grad():
            for factor, full in zip(factors, before, strict=True):
                factor.copy_(none + strength * (full - none))
        yield backbone
    finally:
        with torch.no_grad():
            for factor, full in zip(factors, before, strict=True):
                factor.copy_(full)


def interpolated(first: LinearHead, second: LinearHead, strength: float) -> LinearHead:
    """The head ``(1 - strength) * first + strength * second``, whose logits are those of the two, averaged so.

    Raises:
        ConfigError: If the heads are of other shapes, only one is a cosine head, or ``strength`` does not lie between 0
            and 1.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"The strength of a head must lie between 0 and 1; received {strength}.")
    if first.weight.shape != second.weight.shape or first.cosine != second.cosine:
        kinds = [f"{'cosine' if h.cosine else 'linear'} {h.weight.shape}" for h in (first, second)]
        raise ConfigError(f"Only heads of one kind and shape lie on a line; received {kinds[0]} and {kinds[1]}.")
    rest = 1 - strength
    return LinearHead(
        rest * first.weight + strength * second.weight, rest * first.bias + strength * second.bias, first.cosine
    )


def _factors(backbone: Backbone) -> tuple[str, list[nn.Parameter]]:
    kind = _type(backbone)
    if kind not in _FACTORS:
        raise ConfigError(
            f"The strength of an adapter of the kind {kind.lower()} cannot be changed: its update does not scale."
        )
    marks = _FACTORS[kind]
    return kind, [p for name, p in backbone.model.named_parameters() if any(mark in f".{name}." for mark in marks)]


def _type(backbone: Backbone) -> str:
    if backbone.adapter is not None:
        return str(backbone.adapter["peft_type"])
    config: Any = getattr(backbone.model, "peft_config", {}).get("default")
    if config is None:
        raise ConfigError("The backbone has no adapter whose strength could be changed.")
    return "DORA" if getattr(config, "use_dora", False) else str(config.peft_type.value)
