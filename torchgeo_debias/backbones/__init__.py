"""Pretrained vision backbones, their weights, and LoRA on the right modules of each family."""

from __future__ import annotations

from torchgeo_debias.backbones.backbone import Backbone, Pool, create_backbone
from torchgeo_debias.backbones.device import Precision, pick_device, pick_dtype
from torchgeo_debias.backbones.lora import LoraSettings, add_lora, lora_targets
from torchgeo_debias.backbones.registry import BackboneSpec, find_spec, list_backbones
from torchgeo_debias.backbones.weights import state_digest

__all__ = [
    "Backbone",
    "BackboneSpec",
    "LoraSettings",
    "Pool",
    "Precision",
    "add_lora",
    "create_backbone",
    "find_spec",
    "list_backbones",
    "lora_targets",
    "pick_device",
    "pick_dtype",
    "state_digest",
]
