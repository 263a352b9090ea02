"""Pretrained vision backbones, their weights, and adapters on the right modules of each family."""

from __future__ import annotations

from torchgeo_debias.backbones.adapter_state import (
    AdapterState,
    adapter_state,
    attach_adapter,
    check_adapter,
    continue_adapter,
    merge_adapter,
)
from torchgeo_debias.backbones.adapters import KINDS, AdapterSettings, adapter_parameters, add_adapter
from torchgeo_debias.backbones.backbone import (
    VIEWS,
    Backbone,
    Pool,
    check_views,
    create_backbone,
    empty_backbone,
    symmetry,
)
from torchgeo_debias.backbones.blocks import blocks_of, hastened
from torchgeo_debias.backbones.device import Precision, pick_device, pick_dtype
from torchgeo_debias.backbones.mixture import Experts, find_experts
from torchgeo_debias.backbones.places import adapter_targets
from torchgeo_debias.backbones.registry import BackboneSpec, find_spec, list_backbones
from torchgeo_debias.backbones.weights import find_weights, state_digest

__all__ = [
    "KINDS",
    "VIEWS",
    "AdapterSettings",
    "AdapterState",
    "Backbone",
    "BackboneSpec",
    "Experts",
    "Pool",
    "Precision",
    "adapter_parameters",
    "adapter_state",
    "adapter_targets",
    "add_adapter",
    "attach_adapter",
    "blocks_of",
    "check_adapter",
    "check_views",
    "continue_adapter",
    "create_backbone",
    "empty_backbone",
    "find_experts",
    "find_spec",
    "find_weights",
    "hastened",
    "list_backbones",
    "merge_adapter",
    "pick_device",
    "pick_dtype",
    "state_digest",
    "symmetry",
]
