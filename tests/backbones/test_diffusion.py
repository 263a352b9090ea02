"""Stable Diffusion in small: what goes in, what comes out, where its weights come from."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tests.backbones.conftest import SMALL_DIFFUSION
from torchgeo_debias.backbones import (
    AdapterSettings,
    Backbone,
    adapter_state,
    add_adapter,
    attach_adapter,
    create_backbone,
    hastened,
)
from torchgeo_debias.backbones.diffusion import DRAWS, TIME
from torchgeo_debias.errors import WeightsError

SIZE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as diffusers saves it, with random weights."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("sd")
    UNet2DConditionModel(**SMALL_DIFFUSION.unet).save_pretrained(folder / "unet")
    AutoencoderKL(**SMALL_DIFFUSION.vae).save_pretrained(folder / "vae")
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return create_backbone("sd15_unet", size=SIZE, weights=str(folder)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_the_whole_model_of_diffusers(backbone: Backbone, folder: Path, images: Tensor) -> None:
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    middle: list[Tensor] = []
    unet.mid_block.register_forward_hook(lambda _module, _inputs, out: middle.append(out))
    schedule: Any = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noise = backbone.model.noise
    with torch.no_grad():
        prompt = text(torch.tensor([[49406] + 76 * [49407]])).last_hidden_state.expand(2, -1, -1)
        latents = vae.encode(images).latent_dist.mode() * 0.18215
        for draw in noise:  # type: ignore[union-attr]
            noisy = schedule.add_noise(latents, draw.expand_as(latents), torch.tensor([TIME, TIME]))
            unet(noisy, TIME, encoder_hidden_states=prompt)
        features = backbone(images)
    assert len(middle) == DRAWS
    assert middle[0].shape[2:] == (2, 2)
    torch.testing.assert_close(features, torch.stack(middle).mean(dim=(0, 3, 4)), rtol=1e-4, atol=1e-5)


def test_a_feature_depends_on_its_image_alone(backbone: Backbone, images: Tensor) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        together = backbone(images)
        torch.manual_seed(99)
        alone = backbone(images[1:])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)


def test_the_noise_is_the_same_in_every_model(backbone: Backbone) -> None:
    torch.manual_seed(12)
    other = create_backbone("sd15_unet", size=SIZE, weights="random")
    assert torch.equal(other.model.noise, backbone.model.noise)  # type: ignore[arg-type]
    assert "noise" not in other.model.state_dict()


def test_training_takes_a_draw_whose_mean_is_that_of_evaluation(backbone: Backbone, images: Tensor) -> None:
    learner = copy.deepcopy(backbone).train()
    one = images[:1].expand(200, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = learner(one)
        expected = backbone(images[:1])[0]
    assert 1 < len(torch.unique(drawn[:, 0].round(decimals=5))) <= DRAWS
    error = drawn.std(dim=0) / len(drawn) ** 0.5
    assert ((drawn.mean(dim=0) - expected).abs() < 5 * error + 1e-5).all()


def test_lora_goes_on_every_attention_of_the_unet_and_nowhere_else(backbone: Backbone) -> None:
    adapted = add_adapter(copy.deepcopy(backbone), AdapterSettings(rank=2))
    targets = {name.split(".lora_A")[0] for name, _ in adapted.model.named_parameters() if ".lora_A" in name}
    wanted = {
        f"base_model.model.{name}"
        for name, module in backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear) and (".attn1." in name or ".attn2." in name) and name.startswith("unet.")
    }
    assert targets == wanted
    assert len(targets) == 2 * 4 * 4  # two attentions of four projections in three blocks and the middle


def test_more_places_and_kinds(backbone: Backbone, images: Tensor) -> None:
    for settings, part in (
        (AdapterSettings(rank=2, where="all"), ".ff.net.2.lora_A"),
        (AdapterSettings(kind="houlsby", rank=2), ".attn2.adapter"),
        (AdapterSettings(kind="adaptformer", rank=2), ".ff.adapter"),
        (AdapterSettings(kind="ia3", where="all"), ".ff.net.2.ia3_l"),
    ):
        adapted = add_adapter(copy.deepcopy(backbone), settings)
        names = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert any(part in name for name in names), (settings.kind, names[:4])
        assert not any(".vae." in name for name in names)


def test_an_adapter_goes_to_json_and_tensors_and_back(backbone: Backbone, images: Tensor) -> None:
    adapted = add_adapter(copy.deepcopy(backbone), AdapterSettings(rank=2)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    state = adapter_state(adapted)
    assert state is not None
    again = attach_adapter(copy.deepcopy(backbone), state.config, state.tensors).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images), adapted(images))
        assert not torch.allclose(again(images), backbone(images), atol=1e-6)


def test_checkpointing_changes_no_gradient(backbone: Backbone, images: Tensor) -> None:
    gradients = []
    for switch in (False, True):
        adapted = add_adapter(copy.deepcopy(backbone), AdapterSettings(rank=2)).train()
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.constant_(parameter, 0.05)
        torch.manual_seed(0)
        with hastened(adapted, recomputed=switch):
            adapted(images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_other_bands_and_digest(folder: Path, backbone: Backbone) -> None:
    other = create_backbone("sd15_unet", size=64, bands=("vv", "vh"), weights=str(folder)).eval()
    assert other.digest == backbone.digest
    assert other(torch.randn(1, 2, 64, 64)).shape == (1, backbone.dim)


@pytest.mark.parametrize("missing", ["unet", "vae", "text_encoder"])
def test_an_incomplete_folder_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    for part in {"unet", "vae", "text_encoder"} - {missing}:
        (tmp_path / part).symlink_to(folder / part)
    with pytest.raises(WeightsError, match="unet, vae and text_encoder"):
        create_backbone("sd15_unet", size=64, weights=str(tmp_path))


def test_an_encoder_in_the_old_words_of_diffusers_is_read(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    """The released files of Stable Diffusion 1.5 are that old."""
    for part in ("unet", "text_encoder"):
        (tmp_path / part).symlink_to(folder / part)
    shutil.copytree(folder / "vae", tmp_path / "vae")
    (file,) = (tmp_path / "vae").glob("*.safetensors")
    state = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in [name for name in state if ".attentions." in name]:
        for new, word in old.items():
            if f".{new}." in name:
                state[name.replace(f".{new}.", f".{word}.")] = state.pop(name)
    assert "encoder.mid_block.attentions.0.query.weight" in state
    save_file(state, file, metadata={"format": "pt"})
    assert create_backbone("sd15_unet", size=64, weights=str(tmp_path)).digest == backbone.digest


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for part in ("vae", "text_encoder"):
        (tmp_path / part).symlink_to(folder / part)
    UNet2DConditionModel(**SMALL_DIFFUSION.unet).save_pretrained(tmp_path / "unet", safe_serialization=False)
    with pytest.raises(WeightsError, match="safetensors"):
        create_backbone("sd15_unet", size=64, weights=str(tmp_path))


def test_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    for part in ("vae", "text_encoder"):
        (tmp_path / part).symlink_to(folder / part)
    wider = {**SMALL_DIFFUSION.unet, "block_out_channels": (8, 8, 16, 32)}
    UNet2DConditionModel(**wider).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match="not those of sd15_unet"):
        create_backbone("sd15_unet", size=64, weights=str(tmp_path))
