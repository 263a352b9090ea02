"""A latent diffusion model as a backbone: the encoding half of its U-Net, asked with the empty prompt alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgeo_debias.errors import WeightsError

TIME = 1
"""Step of the noise, of 1000; as in the released code of debLoRA."""

DRAWS = 8
"""Of the noise, over which features are averaged; as in the released code."""

_SEED = 0
_START, _END = 49406, 49407
"""First and last token of a prompt in the vocabulary of CLIP; the last one fills up what is left."""


@dataclass(frozen=True)
class Architecture:
    """What :class:`DiffusionTrunk` is built of.

    Attributes:
        unet: Settings of diffusers' ``UNet2DConditionModel``.
        vae: Settings of its ``AutoencoderKL``.
        prompt: Tokens of a prompt, and the length of each.
        scale: By which latents are multiplied, so that they have about unit variance.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    prompt: tuple[int, int] = (77, 768)
    scale: float = 0.18215


def encoder_settings(widths: tuple[int, ...]) -> dict[str, Any]:
    """Of an ``AutoencoderKL`` whose blocks have so many channels."""
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 2,
        "latent_channels": 4,
    }


ARCHITECTURES: dict[str, Architecture] = {
    # Rombach et al., CVPR 2022; what is not named here is what diffusers takes by default.
    "stable-diffusion-1": Architecture({"cross_attention_dim": 768}, encoder_settings((128, 256, 512, 512))),
}


class DiffusionTrunk(nn.Module):
    """Images to the features in the middle of a U-Net.

    The encoder gives the mean of the latents of an image; noise of step :data:`TIME` is added; the U-Net runs to its
    middle block. The noise is drawn once, from a seed of its own, and is the same for every image, so that a feature
    depends on nothing but its image: evaluation takes the mean over :data:`DRAWS` draws, training one of them at
    random, whose expectation that is. The prompt is the empty one: no class name reaches the model.

    The encoder's decoder, the decoding half of the U-Net and the text model are not kept. Modules have the names they
    have in diffusers.

    Attributes:
        num_features: Length of a feature.
        feature_info: Stride and channels of each map of :meth:`forward_intermediates`, in timm's form.
    """

    prompt: Tensor
    noise: Tensor

    def __init__(self, architecture: Architecture, size: int, bands: int) -> None:
        """Build it with random weights, for images of ``size`` pixels with so many bands."""
        super().__init__()
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        self.unet: Any = UNet2DConditionModel(**architecture.unet)
        self.vae: Any = AutoencoderKL(in_channels=bands, **architecture.vae)
        for owner, parts in ((self.unet, ("up_blocks", "conv_norm_out", "conv_out")), (self.vae, ("decoder",))):
            for part in parts:
                setattr(owner, part, None)
        self.vae.post_quant_conv = None
        self.scale = architecture.scale
        widths = self.unet.config.block_out_channels
        self._stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.num_features = int(widths[-1])
        strides = [self._stride * 2**i for i in range(len(widths) - 1)]
        channels = [*widths[:-2], widths[-2] + widths[-1]]
        self.feature_info = [
            {"num_chs": c, "reduction": s, "module": f"unet.down_blocks.{i}"}
            for i, (c, s) in enumerate(zip(channels, strides, strict=True))
        ]
        with torch.device("cpu"):  # also where the model is built without memory
            schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
            self._share = float(schedule.alphas_cumprod[TIME])
        side = size // self._stride
        shape = (DRAWS, int(self.unet.config.in_channels), side, side)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED), device="cpu")
        self.register_buffer("prompt", torch.randn(1, *architecture.prompt))
        self.register_buffer("noise", drawn.to(self.prompt.device), persistent=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """The map (B, num_features, S / 64, S / 64) of the middle block, of images (B, C, S, S) in -1..1."""
        return self._stages(images)[-1]

    def forward_intermediates(
        self,
        images: Tensor,
        indices: Sequence[int],
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
    ) -> list[Tensor]:
        """Maps from fine to coarse; the last one is what the coarsest block skips over, and the middle brought to it.

        Args:
            images: (B, C, S, S), in -1..1.
            indices: Which of ``feature_info``.
            output_fmt: Only NCHW.
            intermediates_only: Only true.
        """
        *maps, middle = self._stages(images)
        raised = F.interpolate(middle, size=maps[-1].shape[-2:], mode="bilinear", align_corners=False)
        maps[-1] = torch.cat([maps[-1], raised], dim=1)
        return [maps[i] for i in indices]

    def forward(self, images: Tensor) -> Tensor:
        """The mean (B, num_features) of :meth:`forward_features`."""
        return self.forward_features(images).mean(dim=(2, 3))

    def _stages(self, images: Tensor) -> list[Tensor]:
        """What each block of the U-Net but the last hands to the decoding half, and the map of the middle."""
        mean, _ = self.vae.quant_conv(self.vae.encoder(images)).chunk(2, dim=1)
        latents = self._share**0.5 * self.scale * mean
        noise = (1 - self._share) ** 0.5 * self.noise
        if self.training:
            drawn = torch.randint(len(noise), (len(images),), device=noise.device)
            return self._encoded(latents + noise[drawn])
        draws = [self._encoded(latents + each) for each in noise]
        return [torch.stack(maps).mean(dim=0) for maps in zip(*draws, strict=True)]

    def _encoded(self, latents: Tensor) -> list[Tensor]:
        unet = self.unet
        time = unet.time_embedding(unet.time_proj(latents.new_full((len(latents),), TIME)).to(latents.dtype))
        prompt = self.prompt.expand(len(latents), -1, -1)
        x, maps = unet.conv_in(latents), []
        for block in unet.down_blocks:
            asked = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
            x, skipped = block(hidden_states=x, temb=time, **asked)
            if block.downsamplers is not None:  # the last of them is what it hands down
                maps.append(skipped[-2])
        return [*maps, unet.mid_block(x, time, encoder_hidden_states=prompt)]


def build_trunk(arch: str, size: int, bands: int) -> DiffusionTrunk:
    """A trunk with random weights.

    Raises:
        WeightsError: If diffusers is not installed.
    """
    _check_installed()
    return DiffusionTrunk(ARCHITECTURES[arch], size, bands)


def load_trunk_state(place: str, *, local: bool) -> dict[str, Tensor]:
    """The pretrained tensors of a trunk under its own names, those of the decoding halves among them.

    Args:
        place: A folder as diffusers saves it, with ``unet``, ``vae`` and ``text_encoder``, or a name on the hub.
        local: Whether nothing may be downloaded. Only safetensors are read.

    Raises:
        WeightsError: If diffusers is not installed.
        OSError, ValueError: If there are none or they cannot be read.
    """
    _check_installed()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    options = {"use_safetensors": True, "local_files_only": local}
    state: dict[str, Tensor] = {}
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        model = kind.from_pretrained(place, subfolder=name, **options)
        state |= {f"{name}.{key}": tensor for key, tensor in model.state_dict().items()}
    text = CLIPTextModel.from_pretrained(place, subfolder="text_encoder", **options)
    tokens = torch.full((1, int(text.config.max_position_embeddings)), _END)
    tokens[0, 0] = _START
    with torch.no_grad():
        state["prompt"] = cast(Tensor, text.eval()(tokens).last_hidden_state).float()
    return state


def _check_installed() -> None:
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError as error:
        raise WeightsError("A diffusion backbone needs diffusers: install torchgeo-debias[diffusion].") from error
    # It would show a bar for each file it reads.
    diffusers.utils.logging.disable_progress_bar()
