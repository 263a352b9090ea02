"""An adapter as JSON and tensors, and back onto a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from torchgeo_debias.backbones.adapters import OWN, AdapterSettings, add_adapter, usable_alpha
from torchgeo_debias.backbones.backbone import Backbone
from torchgeo_debias.backbones.mixture import Experts
from torchgeo_debias.errors import ConfigError


class _Type(NamedTuple):
    """What of a type of adapter is read: which fields of its configuration, and what its tensors' names hold."""

    fields: tuple[str, ...]
    marks: tuple[str, ...]


# Other fields of peft decide about training alone, or would have it import or fetch things.
_TYPES = {
    "LORA": _Type(("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"), (".lora_",)),
    "LOHA": _Type(("r", "alpha", "target_modules"), (".hada_",)),
    "LOKR": _Type(("r", "alpha", "target_modules"), (".lokr_",)),
    "IA3": _Type(("target_modules", "feedforward_modules"), (".ia3_",)),
    "VERA": _Type(("r", "vera_dropout", "target_modules", "projection_prng_key"), (".vera_",)),
    "HRA": _Type(("r", "target_modules"), (".hra_",)),
    "BOTTLENECK": _Type(("kind", "rank", "dropout", "modules"), (".adapter.",)),
    "MIXTURE": _Type(("kind", "rank", "alpha", "dropout", "modules", "experts"), (".adapter.", "router.")),
}  # fmt: skip


_WORDS = {"peft_type": "the type", "r": "the rank", "rank": "the rank", "lora_alpha": "the alpha", "alpha": "the alpha"}
"""What people call a field."""


class AdapterState(NamedTuple):
    """What an adapter is on disk.

    Attributes:
        config: Content of ``adapter_config.json``; its ``peft_type`` is one of peft, or ``BOTTLENECK`` or ``MIXTURE``
            for those of this library, which stock peft does not open.
        tensors: Content of ``adapter_model.safetensors``.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def adapter_state(backbone: Backbone) -> AdapterState | None:
    """The adapter of a backbone, None where it has none; its tensors share memory with the model.

    An AdaLoRA comes as a plain LoRA with the same update: which ranks it gave up matters in training alone.
    """
    from peft import PeftModel, get_peft_model_state_dict

    model = backbone.model
    if backbone.adapter is not None:
        marks = _TYPES[backbone.adapter["peft_type"]].marks
        state = model.state_dict()
        return AdapterState(dict(backbone.adapter), {name: state[name] for name in state if _marked(name, marks)})
    if not isinstance(model, PeftModel):
        return None
    config = model.peft_config["default"]
    if config.peft_type == "ADALORA":
        return _as_lora(model)
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return AdapterState({**plain, "inference_mode": True}, get_peft_model_state_dict(model))


def check_adapter(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """See to it that an adapter is of a type known here and that its tensors are parts of one, of the size it names.

    Raises:
        KeyError, TypeError, ValueError: If not.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"the adapter is of the type {kind!r}, known are {', '.join(_TYPES)}")
    marks = _TYPES[kind].marks
    foreign = [name for name in tensors if not _marked(name, marks)]
    if foreign:
        raise ValueError(f"the adapter holds {foreign[0]!r}, which is no part of an adapter of the type {kind}")
    # The tensors are as large as the file, but an adapter is built of the rank that the settings name.
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name or name.endswith(".vera_A")}
    ranks |= {tensor.shape[1] for name, tensor in tensors.items() if name.endswith(".vera_B")}
    if ranks and ranks != {config["r"]}:
        raise ValueError(f"the LoRA should have the rank {config['r']!r}, but its tensors have another")
    if kind == "VERA" and not all(any(name.endswith(end) for name in tensors) for end in (".vera_A", ".vera_B")):
        raise ValueError("the VeRA comes without its random matrices vera_A and vera_B")
    for name in ("alpha", "lora_alpha"):
        if name in _TYPES[kind].fields and not usable_alpha(config[name]):
            raise ValueError(f"{name} must be a number above 0 and below a million, not {config[name]!r}")
    if kind == "MIXTURE":
        _check_router(config, tensors)
    targets = config["modules" if kind in OWN else "target_modules"]
    if not isinstance(targets, str) and not all(isinstance(name, str) for name in targets):
        raise TypeError("the modules that take the adapter must be named")


def attach_adapter(backbone: Backbone, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Backbone:
    """Put a stored adapter on a backbone, in place.

    Raises:
        ConfigError: If it does not fit.
    """
    misfit = f"The adapter does not fit the backbone {backbone.spec.name}"
    try:
        check_adapter(config, tensors)
        known = {key: value for key, value in config.items() if key in _TYPES[config["peft_type"]].fields}
        _add(backbone, config["peft_type"], known, tensors)
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        # No such modules, or no sense in the settings.
        raise ConfigError(f"{misfit}: {error}") from error
    fresh = cast(AdapterState, adapter_state(backbone)).tensors
    if {name: t.shape for name, t in fresh.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ConfigError(f"{misfit}: tensors differ in names or shapes; train the model again.")
    _load(backbone, tensors)
    return backbone


def continue_adapter(backbone: Backbone, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Backbone:
    """Give the fresh adapter of a backbone the values of a stored one, in place, so that its training goes on.

    Dropout is that of the fresh one.

    Args:
        backbone: With an adapter, but no AdaLoRA, which is stored as a plain LoRA.
        config: Of the stored adapter.
        tensors: Of the stored adapter.

    Raises:
        ConfigError: If the two are of another kind or size, or go on other layers.
    """
    from peft import set_peft_model_state_dict

    fresh = cast(AdapterState, adapter_state(backbone))
    plain = json.loads(json.dumps(fresh.config))  # as the stored one was written
    for name in ("peft_type", *(field for field in _TYPES[plain["peft_type"]].fields if "dropout" not in field)):
        stored, here = config.get(name), plain[name]
        if name.endswith("modules") and stored != here:
            raise ConfigError("its adapter goes on other layers; give the same where or modules.")
        if stored != here:
            raise ConfigError(f"its adapter has {_WORDS.get(name, name)} {stored}, that of this training {here}.")
    if {name: t.shape for name, t in fresh.tensors.items()} != {name: t.shape for name, t in tensors.items()}:
        raise ConfigError("the tensors of its adapter have other names or shapes.")
    if backbone.adapter is None:
        set_peft_model_state_dict(backbone.model, dict(tensors))
    else:
        backbone.model.load_state_dict(dict(tensors), strict=False)
    return backbone


def merge_adapter(backbone: Backbone) -> Backbone:
    """Put the update of an adapter into the weights, in place; those of this library's own kinds stay beside them."""
    if backbone.adapter is None:
        # The safe way puts sums in new memory, so that backbones that share it do not see each other's.
        backbone.model = cast(Any, backbone.model).merge_and_unload(safe_merge=True)
    return backbone


def _check_router(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    centres, width = tensors["router.centres"], tensors["router.width"]
    if not centres.is_floating_point() or centres.ndim != 2 or not len(centres):
        raise ValueError("the centres of the mixture must be rows of floating numbers, one for each expert")
    if config["experts"] != len(centres):
        raise ValueError(f"the mixture should have {config['experts']!r} experts, but it has {len(centres)} centres")
    if not width.is_floating_point() or width.shape != (1,) or not width.item() > 0:
        raise ValueError("the width of the mixture must be one number above 0")


def _add(backbone: Backbone, kind: str, known: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put an adapter without values on a backbone; only VeRA, whose random matrices peft draws, takes memory."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model

    with nullcontext() if kind == "VERA" else torch.device("meta"):
        if kind not in OWN:
            config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**known)
            backbone.model = get_peft_model(backbone.model, config, low_cpu_mem_usage=True)
            return
        settings = AdapterSettings.from_json(known)
        experts = None
        if settings.mixture:
            centres = tensors["router.centres"].float()
            if centres.shape[1] != backbone.dim:
                raise ValueError(f"the centres of the mixture have {centres.shape[1]} numbers, not {backbone.dim}")
            experts = Experts(centres.numpy(), tensors["router.width"].item())
        add_adapter(backbone, settings, experts)


def _load(backbone: Backbone, tensors: Mapping[str, Tensor]) -> None:
    from peft import set_peft_model_state_dict

    if backbone.adapter is None:
        set_peft_model_state_dict(backbone.model, dict(tensors), low_cpu_mem_usage=True)
    else:
        backbone.model.load_state_dict(dict(tensors), strict=False, assign=True)


def _as_lora(model: Any) -> AdapterState:  # noqa: ANN401 (a peft model)
    """An AdaLoRA as the plain LoRA that it comes to: of the largest rank that is left, others filled up with zeros."""
    from peft import LoraConfig
    from peft.tuners.adalora.layer import AdaLoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, AdaLoraLayer)}
    kept = {name: (module.lora_E["default"] != 0).flatten() for name, module in layers.items()}
    rank = max(1, *(int(ranks.sum()) for ranks in kept.values()))
    tensors = {}
    for name, module in layers.items():
        first = kept[name].int().argsort(descending=True, stable=True)[:rank]
        down, up = (module.lora_A["default"] * module.lora_E["default"])[first], module.lora_B["default"][:, first]
        weight = module.get_base_layer().weight
        tensors[f"{name}.lora_A.weight"] = down.reshape(rank, *weight.shape[1:])
        scale = module.scaling["default"] / (module.ranknum["default"] + 1e-5)  # as in the layer
        tensors[f"{name}.lora_B.weight"] = (up * scale).reshape(len(weight), rank, *(1 for _ in weight.shape[2:]))
    targets = sorted(name.removeprefix("base_model.model.") for name in layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, inference_mode=True).to_dict()
    return AdapterState({**config, "target_modules": targets}, tensors)


def _marked(name: str, marks: tuple[str, ...]) -> bool:
    return any(mark in f".{name}" for mark in marks)
