"""What every kind of adapter promises, on every family of backbones that it goes on."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from torchgeo_debias.backbones import (
    KINDS,
    AdapterSettings,
    Backbone,
    adapter_parameters,
    adapter_state,
    add_adapter,
    attach_adapter,
    create_backbone,
    find_experts,
    merge_adapter,
)
from torchgeo_debias.backbones.adapters import OWN
from torchgeo_debias.backbones.places import adapter_targets, bottleneck_places
from torchgeo_debias.errors import ConfigError

FAMILIES = {"vit": "timm:test_vit", "resnet": "timm:test_resnet", "clip": "tiny clip", "beit": "tiny beit"}
REFUSED = {("vera", "resnet"), ("adaptformer", "resnet")}
"""No linear layers, no MLPs."""


@cache
def plain(family: str) -> Backbone:
    """A backbone of random weights all of whose blocks do something."""
    torch.manual_seed(0)
    if family == "clip":
        backbone = tiny_clip()
    elif family == "beit":
        backbone = tiny_beit()
    else:
        backbone = create_backbone(FAMILIES[family], size=32, weights="random")
    for name, parameter in backbone.named_parameters():
        if "bn" in name and parameter.abs().max() < 1e-3:
            nn.init.ones_(parameter)
    return backbone.eval()


def tiny_clip() -> Backbone:
    from open_clip.transformer import VisionTransformer

    from torchgeo_debias.backbones import find_spec

    model = VisionTransformer(32, 16, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=16)
    return Backbone(model, find_spec("clip_vitb32"), "cls+mean", ("red", "green", "blue"), "tiny")


def tiny_beit() -> Backbone:
    """Its attention reads the weights of ``qkv`` and never calls it."""
    from timm.models.beit import Beit

    from torchgeo_debias.backbones import find_spec

    model = Beit(32, 16, num_classes=0, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, qkv_bias=True)
    return Backbone(model, find_spec("timm:beit_base_patch16_224"), "cls+mean", ("red", "green", "blue"), "tiny")


@cache
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def settings_of(kind: str, family: str, **options: Any) -> AdapterSettings:
    where = "all" if family == "clip" else "attention"
    return AdapterSettings(**{"kind": kind, "rank": 4, "where": where, **options})


def adapted(kind: str, family: str, **options: Any) -> Backbone:
    """A fresh adapter on a fresh backbone."""
    torch.manual_seed(2)
    backbone, settings = copy.deepcopy(plain(family)), settings_of(kind, family, **options)
    experts = None
    if settings.mixture:
        with torch.no_grad():
            features = backbone(images()).numpy()
        labels = np.array([0, 1, 1]) if kind == "clora" else None
        experts = find_experts(features, labels, 2, seed=0)
    return add_adapter(backbone, settings, experts).eval()


def steps(backbone: Backbone, n: int = 2) -> list[str]:
    """Train for some steps; the names of what got no gradient in the last one."""
    backbone.train()
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(n):
        optimizer.zero_grad()
        backbone(images()).square().mean().backward()
        optimizer.step()
    backbone.eval()
    return [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]


@dataclass
class Case:
    kind: str
    family: str
    fresh: Tensor
    backbone: Backbone
    dead: list[str]


PAIRS = [(kind, family) for kind in KINDS for family in FAMILIES if (kind, family) not in REFUSED]


@pytest.fixture(scope="module", params=PAIRS, ids=[f"{kind} {family}" for kind, family in PAIRS])
def case(request: pytest.FixtureRequest) -> Case:
    kind, family = request.param
    backbone = adapted(kind, family)
    with torch.no_grad():
        fresh = backbone(images())
    return Case(kind, family, fresh, backbone, steps(backbone))


def features(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        found: Tensor = backbone(images())
    return found


def test_a_fresh_adapter_changes_nothing(case: Case) -> None:
    torch.testing.assert_close(case.fresh, features(plain(case.family)), rtol=1e-4, atol=1e-5)


def test_every_trainable_parameter_learns(case: Case) -> None:
    assert not case.dead
    assert (features(case.backbone) - case.fresh).abs().max() > 1e-4


def test_the_backbone_stays_as_it_is(case: Case) -> None:
    # Wrapped layers keep their weights under ``base_layer``; the model is one further down in peft's.
    after = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): value
        for name, value in case.backbone.model.state_dict().items()
    }
    for name, value in plain(case.family).model.state_dict().items():
        # peft merges its update into nn.MultiheadAttention for each call and takes it out again: rounding remains.
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)


def test_it_comes_back_from_disk_and_merges(case: Case, tmp_path: Path) -> None:
    state = adapter_state(case.backbone)
    assert state is not None
    config = json.loads(json.dumps(state.config))
    tensors = {name: value.detach().clone().contiguous() for name, value in state.tensors.items()}
    again = attach_adapter(copy.deepcopy(plain(case.family)), config, tensors).eval()
    wanted = features(case.backbone)
    torch.testing.assert_close(features(again), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features(merge_adapter(again)), wanted, rtol=1e-4, atol=1e-5)

    if config["peft_type"] in OWN:
        return
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    stock = copy.deepcopy(plain(case.family))
    stock.model = PeftModel.from_pretrained(stock.model, str(tmp_path))
    torch.testing.assert_close(features(stock.eval()), wanted, rtol=1e-5, atol=1e-5)


def test_it_works_in_bf16(case: Case) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = case.backbone(images())
    wanted = features(case.backbone)
    assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


def test_merging_leaves_a_twin_on_the_same_memory_alone(case: Case) -> None:
    base = copy.deepcopy(plain(case.family)).requires_grad_(False)
    shared: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    twin = copy.deepcopy(base, shared)
    state = adapter_state(case.backbone)
    assert state is not None
    merge_adapter(attach_adapter(base, state.config, {k: v.detach() for k, v in state.tensors.items()}))
    torch.testing.assert_close(features(twin), features(plain(case.family)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].type in OWN])
def test_stock_peft_refuses_what_is_ours(kind: str, tmp_path: Path) -> None:
    state = adapter_state(adapted(kind, "vit"))
    assert state is not None
    (tmp_path / "adapter_config.json").write_text(json.dumps(state.config))
    with pytest.raises((KeyError, ValueError), match=state.config["peft_type"]):
        PeftModel.from_pretrained(copy.deepcopy(plain("vit")).model, str(tmp_path))


@pytest.mark.parametrize(("kind", "family"), sorted(REFUSED))
def test_a_backbone_without_a_place_for_it_is_refused(kind: str, family: str) -> None:
    with pytest.raises(ConfigError, match="ResNet"):
        adapted(kind, family)


@pytest.mark.parametrize(
    "kind", [k for k, about in KINDS.items() if "attention" not in about.form and about.type != "BOTTLENECK"]
)
def test_attention_that_is_computed_as_a_whole_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="which PyTorch computes as a whole"):
        adapted(kind, "clip", where="attention")


def test_parameters_are_those_that_the_sizes_say() -> None:
    wide, blocks, rank = 64, 6, 4
    assert plain("vit").model.get_submodule("blocks.0.attn.qkv").weight.shape == (3 * wide, wide)
    assert len(plain("vit").model.get_submodule("blocks")) == blocks  # type: ignore[arg-type]
    pair = (wide + 3 * wide) + (wide + wide)  # inputs and outputs of qkv and proj
    outputs = 3 * wide + wide
    bottleneck = 2 * wide * rank + rank + wide
    sizes = {
        "lora": rank * pair, "rslora": rank * pair, "dora": rank * pair + outputs, "loha": 2 * rank * pair,
        "ia3": outputs, "vera": outputs + 2 * rank, "hra": rank * 2 * wide, "adalora": 6 * (pair + 2),
        "houlsby": 2 * bottleneck, "adaptformer": bottleneck, "plora": 2 * rank * pair, "clora": 2 * rank * pair,
    }  # fmt: skip
    assert {kind: adapter_parameters(adapted(kind, "vit")) for kind in sizes} == {
        kind: blocks * size for kind, size in sizes.items()
    }


def test_named_modules_take_the_place_of_where() -> None:
    for kind in ("lora", "houlsby", "plora"):
        backbone = adapted(kind, "vit", modules=("blocks.1.mlp.fc1", "2.attn.proj"))
        trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
        assert trained
        assert all("blocks.1.mlp.fc1." in name or "blocks.2.attn.proj." in name for name in trained)
        with pytest.raises(ConfigError, match="no module 'fc3'"):
            adapted(kind, "vit", modules=("fc3",))


def test_layers_that_are_read_and_never_called_are_left_out() -> None:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    swin = SwinTransformerV2(num_classes=0, **sizes)
    for model in (plain("beit").model, swin):
        called = calls(model)
        for where in ("attention", "all"):
            targets = adapter_targets(model, where)
            assert targets
            assert called.issuperset(targets)
        with pytest.raises(ConfigError, match="no module 'qkv'"):
            adapter_targets(model, modules=("qkv",))
        with pytest.raises(ConfigError, match="no module 'qkv'"):
            bottleneck_places(model, False, ("qkv",))


def test_the_pooling_of_a_classifier_takes_no_adapter() -> None:
    import timm

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32, global_pool="map")
    assert "attn_pool.mlp.fc1" in dict(model.named_modules())
    called = calls(model)
    assert called.issuperset(adapter_targets(model, "all"))
    assert called.issuperset(bottleneck_places(model, False))


def calls(model: nn.Module) -> set[str]:
    """Names of the modules that take part in making features."""
    found: set[str] = set()
    model = copy.deepcopy(model).eval()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, given, out, name=name: found.add(name))
    with torch.no_grad():
        model.forward_features(images())  # type: ignore[operator]
    return found


def test_a_bottleneck_inside_another_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot go on blocks\.1\.mlp\.fc1 and on blocks\.1\.mlp around it"):
        adapted("houlsby", "vit", modules=("blocks.1.mlp", "blocks.1.mlp.fc1"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "lorra"}, "kind must be one of"),
        ({"rank": 0}, "at least 1; received 0"),
        ({"kind": "ia3", "dropout": 0.1}, "ia3 have no dropout"),
        ({"experts": 0}, "at least 1 expert"),
        ({"alpha": 0.0}, "alpha of an adapter must lie above 0"),
        ({"alpha": -1.0}, "alpha of an adapter must lie above 0"),
        ({"alpha": 1e6}, "below a million"),
        ({"modules": []}, "modules names nothing"),
        ({"modules": "qkv"}, "modules must be a list"),
    ],
)
def test_settings_refuse_nonsense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdapterSettings.from_json(values)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("loha", {"r": 10**9}), ("vera", {"r": 10**9}), ("hra", {"r": "four"}), ("lokr", {"target_modules": ["fc9"]}),
        ("adalora", {"r": 10**9}),
        ("houlsby", {"rank": 10**9}), ("plora", {"rank": 10**9}), ("plora", {"experts": 3, "modules": ["fc9"]}),
        ("lora", {"lora_alpha": 1e30}), ("loha", {"alpha": float("nan")}), ("plora", {"alpha": -1}),
        ("plora", {"experts": 1}),
        ("lora", {"peft_type": "LOHA"}), ("lora", {"peft_type": "XLORA"}), ("lora", {"peft_type": ["LORA"]}),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_refused_before_it_takes_memory(kind: str, change: dict[str, Any]) -> None:
    state = adapter_state(adapted(kind, "vit"))
    assert state is not None
    with pytest.raises(ConfigError, match="adapter does not fit the backbone timm:test_vit"):
        attach_adapter(copy.deepcopy(plain("vit")), {**state.config, **change}, state.tensors)


@pytest.mark.parametrize("lost", [(".vera_A", ".vera_B"), (".vera_A",), (".vera_B",)])
def test_a_vera_without_its_random_matrices_is_refused_whatever_rank_it_names(lost: tuple[str, ...]) -> None:
    state = adapter_state(adapted("vera", "vit"))
    assert state is not None
    left = {name: value for name, value in state.tensors.items() if not name.endswith(lost)}
    assert len(left) < len(state.tensors)
    with pytest.raises(ConfigError, match="without its random matrices"):
        attach_adapter(copy.deepcopy(plain("vit")), state.config, left)


def test_the_random_matrices_of_a_vera_have_one_rank() -> None:
    state = adapter_state(adapted("vera", "vit"))
    assert state is not None
    whole = {**state.tensors, **{name: torch.ones(128, 9) for name in state.tensors if name.endswith(".vera_B")}}
    with pytest.raises(ConfigError, match="should have the rank 4"):
        attach_adapter(copy.deepcopy(plain("vit")), state.config, whole)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("centres", torch.ones(2, 128, dtype=torch.int64), "rows of floating numbers"),
        ("centres", torch.ones(0, 128), "rows of floating numbers"),
        ("centres", torch.ones(128), "rows of floating numbers"),
        ("centres", torch.ones(3, 128), "2 experts, but it has 3 centres"),
        ("centres", torch.ones(2, 5), "5 numbers, not 128"),
        ("width", torch.ones(2), "one number above 0"),
        ("width", torch.zeros(1), "one number above 0"),
        ("width", torch.ones(1, dtype=torch.int64), "one number above 0"),
    ],
)
def test_a_damaged_router_is_refused(name: str, value: Tensor, words: str) -> None:
    state = adapter_state(adapted("plora", "vit"))
    assert state is not None
    with pytest.raises(ConfigError, match=words):
        attach_adapter(copy.deepcopy(plain("vit")), state.config, {**state.tensors, f"router.{name}": value})


def test_adalora_is_kept_as_the_lora_that_it_comes_to() -> None:
    for family in ("vit", "resnet"):
        backbone = adapted("adalora", family)
        steps(backbone)
        zeros = torch.tensor([[1], [0], [1], [0], [0], [1]])
        for name, value in backbone.named_parameters():
            if "lora_E" in name:
                value.data *= zeros if "conv1" in name or "qkv" in name else zeros * 0
        state = adapter_state(backbone)
        assert state is not None
        assert (state.config["peft_type"], state.config["r"]) == ("LORA", 3)
        tensors = {name: value.detach() for name, value in state.tensors.items()}
        again = attach_adapter(copy.deepcopy(plain(family)), json.loads(json.dumps(state.config)), tensors).eval()
        torch.testing.assert_close(features(again), features(backbone), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(features(again), features(plain(family)), atol=1e-5)
