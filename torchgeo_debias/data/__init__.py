"""Data: chips from scene folders, label layers and TorchGeo's sets; splits, long tails and samplers.

Names are loaded on first use, so that importing this package imports neither torch nor torchgeo.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgeo_debias.data.chips import Chips, ChipSpec, resize
    from torchgeo_debias.data.folders import centre_crop, read_folder
    from torchgeo_debias.data.geo_samplers import ClassBalancedGeoSampler, InBoundsGridGeoSampler
    from torchgeo_debias.data.geo_sources import source_of
    from torchgeo_debias.data.layers import chips_from_layer, cut_chips, read_layer
    from torchgeo_debias.data.longtail import long_tail, long_tail_counts
    from torchgeo_debias.data.normalise import Normalisation
    from torchgeo_debias.data.samplers import ClassBalancedSampler, SquareRootSampler
    from torchgeo_debias.data.splits import split_apart, split_by_source
    from torchgeo_debias.data.torchgeo_sets import ChipDataset, load

__all__ = [
    "ChipDataset",
    "ChipSpec",
    "Chips",
    "ClassBalancedGeoSampler",
    "ClassBalancedSampler",
    "InBoundsGridGeoSampler",
    "Normalisation",
    "SquareRootSampler",
    "centre_crop",
    "chips_from_layer",
    "cut_chips",
    "load",
    "long_tail",
    "long_tail_counts",
    "read_folder",
    "read_layer",
    "resize",
    "source_of",
    "split_apart",
    "split_by_source",
]

_HOMES = {
    "chips": ("ChipSpec", "Chips", "resize"),
    "folders": ("centre_crop", "read_folder"),
    "geo_samplers": ("ClassBalancedGeoSampler", "InBoundsGridGeoSampler"),
    "geo_sources": ("source_of",),
    "layers": ("chips_from_layer", "cut_chips", "read_layer"),
    "longtail": ("long_tail", "long_tail_counts"),
    "normalise": ("Normalisation",),
    "samplers": ("ClassBalancedSampler", "SquareRootSampler"),
    "splits": ("split_apart", "split_by_source"),
    "torchgeo_sets": ("ChipDataset", "load"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
