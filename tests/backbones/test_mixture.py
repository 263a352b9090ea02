"""Mixtures of LoRAs go by frozen features, and by those alone."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from tests.backbones.test_adapters import adapted, features, images, plain, steps
from torchgeo_debias.backbones import AdapterSettings, Backbone, add_adapter, find_experts, find_spec
from torchgeo_debias.backbones.mixture import Experts, MixedLora, Router, mixed
from torchgeo_debias.errors import ConfigError


def test_shares_are_the_softmax_of_distances() -> None:
    router = Router(Experts(np.array([[0, 0], [3, 4]], np.float32), 2.5))
    shares = router(torch.tensor([[0.0, 0.0], [1.5, 2.0]]))
    torch.testing.assert_close(shares[0, 1] / shares[0, 0], torch.tensor(np.exp(-5 / 2.5), dtype=torch.float32))
    torch.testing.assert_close(shares[1], torch.tensor([0.5, 0.5]))


def test_a_layer_adds_the_weighted_updates() -> None:
    torch.manual_seed(0)
    layer = MixedLora(torch.nn.Linear(5, 7), rank=2, alpha=6.0, dropout=0.0, experts=3)
    _, down, up = layer.adapter
    torch.nn.init.normal_(up.weight)  # type: ignore[arg-type]
    x, shares = torch.randn(4, 6, 5), torch.randn(4, 3).softmax(dim=1)
    with mixed(shares):
        found = layer(x)
    for image in range(4):
        a, b = down.weight.view(3, 2, 5), up.weight.view(7, 3, 2)  # type: ignore[operator]
        update = sum(shares[image, k] * b[:, k] @ a[k] for k in range(3))
        wanted = layer.base_layer(x[image]) + 6.0 / 2 * x[image] @ update.T  # type: ignore[union-attr]
        torch.testing.assert_close(found[image], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("family", ["vit", "resnet", "clip"])
def test_an_image_does_not_depend_on_the_others_of_its_batch(family: str) -> None:
    backbone = adapted("plora", family)
    steps(backbone)
    alone = torch.cat([backbone(image[None]) for image in images()]).detach()
    torch.testing.assert_close(features(backbone), alone, rtol=1e-4, atol=1e-5)


def test_windows_of_an_image_share_its_experts() -> None:
    torch.manual_seed(0)
    swin = SwinTransformer(32, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=0)
    backbone = Backbone(swin, find_spec("timm:swin_tiny_patch4_window7_224"), "mean", ("r", "g", "b"), "tiny").eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        frozen = backbone(pictures)
        add_adapter(backbone, AdapterSettings("plora", rank=2), find_experts(frozen.numpy(), None, 2, seed=0)).eval()
        for name, parameter in backbone.named_parameters():
            if name.endswith("adapter.2.weight"):
                torch.nn.init.normal_(parameter, std=0.2)
        together, alone = backbone(pictures), torch.cat([backbone(picture[None]) for picture in pictures])
    assert (together - frozen).abs().max() > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_routing_goes_by_frozen_features() -> None:
    """Whatever the LoRAs have become, the shares of an image are those of the plain backbone."""
    backbone = adapted("clora", "vit")
    seen = []
    router = backbone.model.get_submodule("router")
    router.register_forward_hook(lambda module, arguments, shares: seen.append((arguments[0].clone(), shares.clone())))
    features(backbone)
    steps(backbone)
    seen.clear()
    features(backbone)
    torch.testing.assert_close(seen[0][0], features(plain("vit")), rtol=1e-5, atol=1e-6)
    assert seen[0][1].sum(dim=1).sub(1).abs().max() < 1e-6


def test_maps_are_mixed_as_well() -> None:
    backbone = adapted("plora", "vit")
    before = backbone.maps(images())[0].detach()
    steps(backbone)
    assert (backbone.maps(images())[0] - before).abs().max() > 1e-4


def test_threads_keep_their_own_shares() -> None:
    backbone = adapted("plora", "vit")
    steps(backbone)
    alone = [backbone(image[None]).detach() for image in images()]
    found: list[list[torch.Tensor]] = [[] for _ in images()]

    def work(place: int, own: Backbone) -> None:
        for _ in range(5):
            found[place].append(own(images()[place][None]).detach())

    threads = [threading.Thread(target=work, args=(place, backbone)) for place in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, results in enumerate(found):
        for result in results:
            torch.testing.assert_close(result, alone[place], rtol=1e-4, atol=1e-5)


def test_centres_of_classes_and_of_clusters() -> None:
    rng = np.random.default_rng(0)
    blobs = np.repeat(np.array([[0, 0], [50, 0], [0, 50]], np.float32), 20, axis=0)
    found = (blobs + rng.normal(size=blobs.shape)).astype(np.float32)
    labels = np.tile(np.array([1, 0], np.int64), 30)
    of_classes = find_experts(found, labels, 9, seed=0)
    np.testing.assert_allclose(of_classes.centres, [found[labels == c].mean(axis=0) for c in (0, 1)], rtol=1e-5)
    of_clusters = find_experts(found, None, 3, seed=0)
    wanted = found.reshape(3, 20, 2).mean(axis=1)
    distances = np.linalg.norm(of_clusters.centres[:, None] - wanted, axis=2)
    assert distances.min(axis=1).max() < 1e-3
    spread = np.linalg.norm(found - np.repeat(wanted, 20, axis=0), axis=1).mean()
    assert of_clusters.width == pytest.approx(0.1 * spread, rel=1e-4)


def test_a_mixture_without_centres_or_chips_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the centres of its experts"):
        add_adapter(copy.deepcopy(plain("vit")), AdapterSettings("plora"))
    with pytest.raises(ConfigError, match="4 LoRAs"):
        find_experts(np.zeros((3, 2), np.float32), None, 4, seed=0)
