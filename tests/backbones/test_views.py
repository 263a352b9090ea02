"""Features as the mean over symmetries of the image."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from torchgeo_debias.backbones import VIEWS, Backbone, create_backbone, symmetry
from torchgeo_debias.errors import ConfigError


def made(name: str, views: int) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name, size=32, weights="random", views=views).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_eight_symmetries_are_those_of_the_square() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = {tuple(symmetry(image, number).flatten().tolist()) for number in range(8)}
    # All ways to map the corners that keep the middle and what is beside each corner.
    corners = [(0, 2, 8, 6)[i:] + (0, 2, 8, 6)[:i] for i in range(4)]
    assert len(found) == 8
    for turned in found:
        ring = (turned[0], turned[2], turned[8], turned[6])
        assert ring in corners or ring[::-1] in corners
        assert turned[4] == 4


@pytest.mark.parametrize(("name", "views"), list(product(("timm:test_vit", "timm:test_resnet"), VIEWS)))
def test_a_feature_is_the_mean_over_the_views(name: str, views: int, images: Tensor) -> None:
    with torch.no_grad():
        single = made(name, 1)
        wanted = torch.stack([single(symmetry(images, number)) for number in range(views)]).mean(dim=0)
        torch.testing.assert_close(made(name, views)(images), wanted)


@pytest.mark.parametrize("number", range(8))
def test_a_turned_image_has_the_same_feature_where_its_symmetry_is_among_the_views(number: int, images: Tensor) -> None:
    with torch.no_grad():
        for views in VIEWS:
            backbone = made("timm:test_vit", views)
            apart = float((backbone(symmetry(images, number)) - backbone(images)).abs().max())
            assert apart < 1e-5 if number < views else apart > 1e-3


def test_training_sees_the_image_alone(images: Tensor) -> None:
    single, four = made("timm:test_vit", 1), made("timm:test_vit", 4)
    with torch.no_grad():
        torch.testing.assert_close(four.train()(images), single.train()(images))
        assert not torch.allclose(four.eval()(images), single.eval()(images), atol=1e-3)


@pytest.mark.parametrize("views", [0, 2, 16])
def test_other_numbers_are_refused(views: int) -> None:
    with pytest.raises(ConfigError, match=f"views must be one of 1, 4, 8; received {views}"):
        made("timm:test_vit", views)
