"""The blocks of a model, and what can be done to save memory or time while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torchgeo_debias.backbones.backbone import Backbone

_LAYERS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The parts that a model runs one after the other, in their order.

    They are the innermost numbered modules that hold at least two layers: blocks of transformers, residual blocks.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1].isdigit()
        and "patch_embed" not in name.split(".")
        and not isinstance(getattr(module, "base_layer", None), _LAYERS)  # one layer, and an adapter around it
        and sum(isinstance(part, _LAYERS) for part in module.modules()) > 1
    ]
    return [module for name, module in found if not any(other.startswith(f"{name}.") for other, _ in found)]


@contextmanager
def hastened(backbone: Backbone, *, compiled: bool = False, recomputed: bool = False) -> Iterator[None]:
    """Within, a backbone is trained with less memory or in less time; names of parameters and modules stay as they are.

    Args:
        backbone: With or without an adapter.
        compiled: It computes by code that ``torch.compile`` makes the first time.
        recomputed: Its blocks keep what goes into them alone, and compute the rest again for the gradients. That is
            gradient checkpointing (Chen et al., arXiv 1604.06174, 2016): the gradients are the same, the memory of a
            step falls from that of all blocks to that of one, and the forward pass is computed twice. With
            ``compiled``, each block is compiled for itself.
    """
    whole: Any = backbone
    blocks: list[Any] = blocks_of(backbone.model) if recomputed else []
    for block in blocks:
        norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
        block.forward = _twice(torch.compile(block.forward) if compiled else block.forward, norms)
    if compiled and not recomputed:
        whole.forward, whole.maps = torch.compile(backbone.forward), torch.compile(backbone.maps)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        for name in ("forward", "maps"):
            whole.__dict__.pop(name, None)


def _twice(forward: Callable[..., Any], norms: list[_BatchNorm]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever the block takes and gives)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Gradients may be taken in another thread, which knows nothing of how a mixture mixes its LoRAs.
        context = copy_context()

        def within(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return context.run(forward, *args, **kwargs)

        return checkpoint(
            within, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _unmoved(norms)), **kwargs
        )

    return run


@contextmanager
def _unmoved(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let batch normalisations count on copies, so that no batch counts twice."""
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
