"""The modules of each family of backbones where an adapter takes effect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, get_args

from torch import nn

from torchgeo_debias.errors import ConfigError

Where = Literal["attention", "all"]
Layer = Literal["linear", "conv", "attention"]
"""What takes an adapter; ``attention`` is ``nn.MultiheadAttention`` as a whole."""

LAYERS: frozenset[Layer] = frozenset(get_args(Layer))


def layer_of(module: nn.Module) -> Layer | None:
    """What sort of layer a module is, None for none that takes an adapter."""
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, nn.Linear):
        return "linear"
    return "conv" if isinstance(module, nn.Conv2d) and module.groups == 1 else None


def adapter_targets(
    model: nn.Module,
    where: Where = "attention",
    form: frozenset[Layer] = LAYERS,
    modules: tuple[str, ...] | None = None,
    kind: str = "lora",
) -> list[str]:
    """Names of the modules that take an adapter.

    Three traps are known. timm merges query, key and value into one ``qkv``: it is adapted whole. In
    ``nn.MultiheadAttention`` the ``forward`` of ``out_proj`` is never called, so an adapter there learns nothing: the
    attention module itself is the target, of those kinds that can change it (peft's LoRA adapts both projections).
    Where timm reads the weights of a ``qkv`` and does not call it, it is left out; see :func:`_bypassed`.

    Args:
        model: A backbone's.
        where: ``attention``, or ``all`` for the MLPs as well.
        form: The layers that the adapter can change.
        modules: Names, or their ends, in place of ``where``.
        kind: Of the adapter, for sentences.

    Raises:
        ConfigError: If no such module exists.
    """
    layers = list(_layers(model))
    if modules is not None:
        return _named(model, modules, {name for name, layer in layers if layer in form}, kind)
    closed = any(layer == "attention" for _, layer in layers) and "attention" not in form
    wanted = _in_attention if where == "attention" else _in_attention_or_mlp
    found = [
        name
        for name, layer in layers
        if layer in form and not _at_the_door(name) and (layer == "attention" or (layer == "linear" and wanted(name)))
    ]
    if not found and closed:
        raise ConfigError(
            f"An adapter of the kind {kind} cannot go on the attention of {type(model).__name__}, which PyTorch "
            'computes as a whole: choose "where": "all" for its MLPs, or the kind lora.'
        )
    found = found or [name for name, layer in layers if layer in form and _in_block(name)]
    if not found:
        raise ConfigError(
            f"No module of {type(model).__name__} is known to take an adapter of the kind {kind}; choose another "
            "kind, or use --method probe."
        )
    return found


def bottleneck_places(model: nn.Module, beside: bool, modules: tuple[str, ...] | None = None) -> list[str]:
    """Names of the modules whose output gets a bottleneck.

    Args:
        model: A backbone's.
        beside: Beside the MLP of each block; else after its attention and after its MLP, and in networks that have
            neither after each block.
        modules: Names, or their ends, in place of these.

    Raises:
        ConfigError: If there are none.
    """
    named = [(name, module) for name, module in model.named_modules() if name and not _at_the_door(name)]
    if modules is not None:
        known = {name for name, module in named if any(_layers(module))} - _bypassed(model)
        return _named(model, modules, known, "bottleneck")
    parts = {"mlp"} if beside else {"mlp", "attn", "attention", "self_attn"}
    found = [name for name, _ in named if _usual(name).rsplit(".", 1)[-1] in parts]
    if not found and not beside:  # a CNN: the innermost numbered modules with at least two convolutions are its blocks
        blocks = [
            name for name, module in named
            if name.rsplit(".", 1)[-1].isdigit() and _in_block(name)
            and sum(isinstance(part, nn.Conv2d) for part in module.modules()) > 1
        ]  # fmt: skip
        found = [name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks)]
    if not found:
        places = "MLPs" if beside else "blocks"
        raise ConfigError(f"{type(model).__name__} has no {places} that take a bottleneck; use the kind lora.")
    return found


def _bypassed(model: nn.Module) -> set[str]:
    """Names of layers whose ``forward`` is never called, so that an adapter there learns nothing.

    The attention of timm's SwinV2, EVA and BEiT keeps biases of query, key and value itself, and hands them to
    ``F.linear`` with ``qkv.weight``, unless it is told to add them apart (``qkv_bias_separate``).
    """
    return {
        f"{name}.qkv"
        for name, module in model.named_modules()
        if getattr(module, "q_bias", None) is not None and not getattr(module, "qkv_bias_separate", False)
    }


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Name and sort of each layer that is called; what is inside of PyTorch's attention is no layer of its own."""
    inside: tuple[str, ...] = ()
    bypassed = _bypassed(model)
    for name, module in model.named_modules():
        layer = layer_of(module)
        if layer is None or name in bypassed or (inside and name.startswith(inside)):
            continue
        if layer == "attention":
            inside += (f"{name}.",)
        yield name, layer


def _named(model: nn.Module, modules: tuple[str, ...], known: set[str], kind: str) -> list[str]:
    found: list[str] = []
    for wanted in modules:
        names = [name for name in known if name == wanted or name.endswith(f".{wanted}")]
        if not names:
            raise ConfigError(
                f"{type(model).__name__} has no module {wanted!r} that takes an adapter of the kind {kind}."
            )
        found += names
    return sorted(set(found), key=[name for name, _ in model.named_modules()].index)


def _in_attention(name: str) -> bool:
    return _usual(name).rsplit(".", 2)[-2:-1] in (["attn"], ["attention"], ["self_attn"])


def _in_attention_or_mlp(name: str) -> bool:
    return _in_attention(name) or ".mlp." in _usual(name)


def _usual(name: str) -> str:
    """A name in timm's words: diffusers calls the attentions of a block attn1 and attn2, the MLP ff."""
    name = re.sub(r"(transformer_blocks\.\d+\.attn)\d", r"\1", name)
    return re.sub(r"(transformer_blocks\.\d+\.)ff\b", r"\1mlp", name).replace(".attn.to_out.0", ".attn.to_out")


def _at_the_door(name: str) -> bool:
    # What reads raw bands: the stem (``conv1`` of ResNets, where deep ones number its parts), the patch embedding, the
    # encoder of a diffusion model; and at the other end what pools for a classifier, which features never reach.
    return name.split(".")[0] in ("stem", "conv1", "patch_embed", "vae", "attn_pool")


def _in_block(name: str) -> bool:
    # Shortcut convolutions only match shapes; blocks sit in numbered stages.
    parts = name.split(".")
    return any(part.isdigit() for part in parts) and "downsample" not in parts and not _at_the_door(name)
