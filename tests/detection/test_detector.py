from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.detection.drawings import COLOURS, agreement, draw
from torchgeo_debias.backbones import AdapterSettings, add_adapter, create_backbone
from torchgeo_debias.boxes.overlap import iou
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.detection import (
    Detector,
    DetectorConfig,
    Found,
    Outputs,
    class_loss,
    detection_loss,
    object_features,
)
from torchgeo_debias.detection.coding import encode
from torchgeo_debias.detection.head import grid
from torchgeo_debias.errors import ConfigError

TABLE = ClassTable.from_counts({"red": 4, "green": 3, "blue": 2})


def tiny(backbone: str = "timm:test_resnet", size: int = 64, **options: Any) -> Detector:
    torch.manual_seed(0)
    config = DetectorConfig(**{"oriented": True, "channels": 32, "convs": 1, **options})
    return Detector(create_backbone(backbone, size=size, weights="random"), len(COLOURS), config)


@pytest.mark.parametrize("oriented", [False, True], ids=["horizontal", "oriented"])
@pytest.mark.parametrize(
    ("backbone", "loss"),
    [("timm:test_vit", "focal"), ("timm:test_resnet", "focal"), ("timm:test_resnet", "ecm"), ("timm:test_vit", "efl")],
)
def test_a_few_pictures_are_learnt_by_heart(backbone: str, loss: str, oriented: bool) -> None:
    detector = tiny(backbone, oriented=oriented).train()
    pictures = [draw(64, 3, seed, oriented=oriented) for seed in range(3)]
    images, objects = torch.stack([image for image, _ in pictures]), [each for _, each in pictures]
    criterion = class_loss(loss, TABLE)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        parts = detection_loss(detector, detector(images), objects, criterion)
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        found = detector.predict(detector(images), min_score=0.4)
    shares = [agreement(each, truth, overlap=0.6) for each, truth in zip(found, objects, strict=True)]
    assert np.mean(shares) > 0.8


def outputs_of(boxes: torch.Tensor, points: torch.Tensor, steps: torch.Tensor, at: list[int]) -> Outputs:
    """Outputs that say ``boxes`` at the points ``at``, so sure of class 0 that nothing else is seen."""
    logits, centres = torch.full((1, len(points), 3), -9.0), torch.full((1, len(points)), 9.0)
    codes = encode(boxes[0].expand(len(points), -1), points, steps)[None]
    for box, place in zip(boxes, at, strict=True):
        logits[0, place, 0] = 4.0
        codes[0, place] = encode(box, points[place], steps[place])
    return Outputs(logits, codes, centres, points, steps)


def test_predictions_are_canonical_boxes_by_falling_score() -> None:
    detector = tiny()
    points, steps = grid([(8, 8)], (8,), torch.device("cpu"))
    boxes = torch.tensor([[20.0, 20.0, 10.0, 30.0, 20.0], [50.0, 50.0, 24.0, 8.0, 0.0]])
    outputs = outputs_of(boxes, points, steps, [18, 54])
    outputs.logits[0, 54, 0] = 5.0
    (found,) = detector.predict(outputs)
    assert found.boxes.dtype == np.float64
    assert found.classes.tolist() == [0, 0]
    np.testing.assert_allclose(found.boxes[1], [20, 20, 30, 10, 110], atol=1e-3)
    np.testing.assert_allclose(iou(found.boxes[:1], np.array([[50.0, 50, 24, 8, 0]])), 1, atol=1e-4)
    expected = torch.tensor([[5.0, 9.0], [4.0, 9.0]]).sigmoid().prod(dim=1).sqrt()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_suppression_works_within_a_class_only() -> None:
    detector = tiny()
    points, steps = grid([(8, 8)], (8,), torch.device("cpu"))
    boxes = torch.tensor([[30.0, 30.0, 30.0, 10.0, 20.0]]).repeat(3, 1)
    outputs = outputs_of(boxes, points, steps, [26, 27, 28])
    outputs.logits[0, 28] = torch.tensor([-9.0, 3.0, -9.0])
    (found,) = detector.predict(outputs)
    assert sorted(found.classes.tolist()) == [0, 1]
    (everything,) = detector.predict(outputs, nms=1.0)
    assert sorted(everything.classes.tolist()) == [0, 0, 1]


def test_the_strongest_of_each_class_are_kept_where_there_are_too_many() -> None:
    detector = tiny(oriented=False)
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = detector(torch.randn(2, 3, 64, 64))
    few, many = (detector.predict(outputs, min_score=0.0, top=top, nms=1.0) for top in (7, 100000))
    for some, every in zip(few, many, strict=True):
        assert len(every.scores) == 3 * (64 + 16 + 4 + 1)
        assert some.boxes.shape == (3 * 7, 4)
        assert (np.diff(every.scores) <= 0).all()
        assert (np.diff(some.scores) <= 0).all()
        for kind in range(3):
            mine, all_mine = some.classes == kind, every.classes == kind
            np.testing.assert_array_equal(some.scores[mine], every.scores[all_mine][:7])
            np.testing.assert_array_equal(some.boxes[mine], every.boxes[all_mine][:7])


def test_a_common_class_takes_no_place_from_a_rare_one() -> None:
    points, steps = grid([(8, 8)], (8,), torch.device("cpu"))
    outputs = outputs_of(torch.tensor([[30.0, 30.0, 30.0, 10.0, 20.0]]), points, steps, [26])
    outputs.logits[..., 0] = 4.0  # everywhere
    outputs.logits[0, 50, 2] = 0.0  # once, and weaker
    (found,) = tiny().predict(outputs, top=10, nms=1.0)
    assert np.bincount(found.classes).tolist() == [10, 0, 1]


def test_nothing_found_is_empty_arrays() -> None:
    detector = tiny()
    with torch.no_grad():
        found = detector.predict(detector(torch.randn(1, 3, 64, 64)), min_score=0.99)
    assert isinstance(found[0], Found)
    assert [each.shape for each in found[0]] == [(0, 5), (0,), (0,)]


@pytest.mark.parametrize("backbone", ["timm:test_vit", "timm:test_resnet"])
def test_object_features_train_the_lora(backbone: str) -> None:
    detector = tiny(backbone)
    for parameter in detector.backbone.parameters():
        if not parameter.any():  # ResNets start with blocks switched off, which pretrained ones are not
            torch.nn.init.ones_(parameter)
    add_adapter(detector.backbone, AdapterSettings(rank=2))
    pyramid = detector.pyramid(torch.randn(2, 3, 64, 64))
    boxes = [torch.tensor([[20.0, 30.0, 30.0, 10.0, 40.0]]), torch.tensor([[30.0, 30.0, 60.0, 50.0, 0.0]])]
    features = object_features(pyramid, boxes, detector.strides)
    assert features.shape == (2, detector.dim)
    features.square().sum().backward()  # type: ignore[no-untyped-call]
    trained = {name for name, p in detector.backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all("lora_" in name for name in trained)


def test_the_head_on_the_pyramid_says_what_the_detector_says() -> None:
    detector = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(detector(images), detector.head(detector.pyramid(images)), strict=True):
            torch.testing.assert_close(one, other)


def test_the_configuration_survives_json_and_refuses_nonsense() -> None:
    odd = DetectorConfig(oriented=False, channels=96, convs=3, levels=3, up=0)
    assert DetectorConfig.from_json(odd.to_json()) == odd
    for name, most in (("channels", 4096), ("levels", 8)):
        for value in (0, most + 1):
            with pytest.raises(ConfigError, match=f"{name} of a detector must lie between 1 and {most}"):
                DetectorConfig(oriented=True, **{name: value})
    with pytest.raises(ConfigError, match="levels must be a whole number; received"):
        DetectorConfig.from_json({**odd.to_json(), "levels": 2.5})
