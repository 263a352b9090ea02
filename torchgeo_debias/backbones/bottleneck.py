"""Bottleneck adapters: a small network after a part of each block, or beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from torchgeo_debias.errors import ConfigError

BESIDE = 0.1
"""Scale of a bottleneck beside the MLP, as in AdaptFormer."""


class Wrapped(nn.Module):
    """A module in place of another one, whose attributes are still there to be read."""

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (as of any module)
        """What this module lacks is that of the one within."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class Bottleneck(Wrapped):
    """A module of output y with a bottleneck after or beside it.

    After it: ``y + up(relu(down(y)))`` (Houlsby et al., ICML 2019); beside it, with the module's input x:
    ``y + 0.1 * up(relu(down(x)))`` (AdaptFormer, Chen et al., NeurIPS 2022).

    ``up`` begins with zeros, so a fresh one changes nothing. Channels come last, or second around convolutions.
    """

    def __init__(self, base_layer: nn.Module, rank: int, dropout: float, beside: bool) -> None:
        """Around a module with linear layers or convolutions, as wide inside as ``rank``."""
        super().__init__(base_layer)
        self.beside = beside
        parts = [part for part in base_layer.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        edge: Any = parts[0 if beside else -1]
        conv = isinstance(edge, nn.Conv2d)
        width = int(edge.weight.shape[1 if beside else 0])

        def layer(inward: int, outward: int) -> nn.Module:
            return nn.Conv2d(inward, outward, 1) if conv else nn.Linear(inward, outward)

        up = layer(rank, width)
        for parameter in up.parameters():
            nn.init.zeros_(parameter)
        self.adapter = nn.Sequential(layer(width, rank), nn.ReLU(), nn.Dropout(dropout), up)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (attention may give a tuple)
        """As of the module within, its output (the first of several) changed."""
        out = self.base_layer(x, *args, **kwargs)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        change = BESIDE * self.adapter(x) if self.beside else self.adapter(first)
        first = first + cast(Tensor, change).to(first.dtype)
        return (first, *out[1:]) if isinstance(out, tuple) else first


def add_bottlenecks(model: nn.Module, places: Sequence[str], rank: int, dropout: float, beside: bool) -> None:
    """Put fresh bottlenecks on modules of a model, in place.

    Raises:
        ConfigError: If a module holds no layer that tells its width, or lies inside another one.
    """
    for name in places:
        inner = next((other for other in places if other.startswith(f"{name}.")), None)
        if inner is not None:
            raise ConfigError(f"A bottleneck cannot go on {inner} and on {name} around it: name one of the two.")
    for name in places:
        module = model.get_submodule(name)
        if not any(isinstance(part, nn.Linear | nn.Conv2d) for part in module.modules()):
            raise ConfigError(f"The module {name} of {type(model).__name__} takes no bottleneck; name another.")
        model.set_submodule(name, Bottleneck(module, rank, dropout, beside))
