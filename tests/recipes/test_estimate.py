"""What a training will take, against the training itself."""

from __future__ import annotations

import torch

from torchgeo_debias.backbones import AdapterSettings, add_adapter, create_backbone
from torchgeo_debias.recipes.estimate import estimate, measure
from torchgeo_debias.training import TrainConfig

RGB = ("red", "green", "blue")


def config(**options: object) -> TrainConfig:
    return TrainConfig.from_json({"backbone": "timm:test_vit", "weights": "random", **options})


def test_parameters_are_those_of_the_backbone() -> None:
    size = measure(config(method="lora"), 32, RGB)
    backbone = create_backbone("timm:test_vit", size=32, weights="random")
    assert size.parameters == sum(p.numel() for p in backbone.parameters())
    add_adapter(backbone, AdapterSettings())
    assert size.trained == sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert size.features == backbone.dim
    assert measure(config(method="finetune"), 32, RGB).trained == size.parameters
    probe = measure(config(method="probe", head="ce"), 32, RGB)
    assert (probe.trained, probe.activations) == (0, 0)


def test_activations_are_what_autograd_keeps() -> None:
    size = measure(config(method="lora"), 32, RGB)
    backbone = add_adapter(create_backbone("timm:test_vit", size=32, weights="random"), AdapterSettings()).train()
    own = {p.data_ptr() for p in backbone.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(torch.randn(8, 3, 32, 32))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 8
    assert 0.7 * size.activations < real < 1.3 * size.activations


def test_steps_of_every_method() -> None:
    def steps(**options: object) -> int | None:
        return estimate(config(epochs=3, batch_size=8, **options), 32, RGB, "uint8", 50, 10).steps

    assert steps(method="probe", head="ce") == 0
    assert steps(method="lora") == 3 * 7
    assert steps(method="lora", accumulate=2) == 3 * 4
    assert steps(method="deblora") == 2 * 3 * 7
    assert steps(method="deblora", rounds=2, align_epochs=1) == (3 + 1 + 1) * 7
    assert estimate(config(), 32, RGB, "uint8", None, None).steps is None


def test_images_that_go_through_once() -> None:
    def passed(**options: object) -> int | None:
        return estimate(config(**options), 32, RGB, "uint8", 50, 10).passed_images

    assert passed(method="lora", views=1) == 10, "to score; the head was trained along"
    assert passed(method="probe", head="ce", views=1) == 50 + 10
    assert passed(method="deblora", views=4) == 4 * (2 * 50 + 2 * 10), "calibrated, then for the head; the twin, too"


def test_chips_take_their_pixels_and_a_mask() -> None:
    found = estimate(config(), 32, ("a", "b"), "uint16", 50, 10)
    assert found.chips_bytes == 60 * 32 * 32 * (2 * 2 + 1)
