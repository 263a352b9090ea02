"""The package of a detector: what goes in comes out, what is damaged or for another task is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.test_package import Edit, damaged, edit, files_of, refused, rewrite, sign
from tests.tiny_objects import SIDE
from torchgeo_debias._package_io import read_package
from torchgeo_debias.errors import DebiasError, PackageError
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.detector import DetectorPredictor, build_detector
from torchgeo_debias.package import MODEL, DetectorPackage, ModelPackage, load_package

FILES = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "detector.safetensors",
    "model.json",
    "raw/adapter/adapter_config.json",
    "raw/adapter/adapter_model.safetensors",
    "raw/detector.safetensors",
]


@pytest.fixture
def copy(tiny_detector: DetectorPackage, tmp_path: Path) -> Path:
    """A package to damage."""
    tiny_detector.save(tmp_path / "model")
    return tmp_path / "model"


def refused_detector(path: Path, part: str) -> None:
    with pytest.raises(PackageError, match=part) as caught:
        DetectorPackage.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["model", "model.tgd"])
def test_what_is_saved_comes_back(tiny_detector: DetectorPackage, tmp_path: Path, name: str) -> None:
    tiny_detector.save(tmp_path / name)
    back = DetectorPackage.load(tmp_path / name)
    assert back.to_json() == tiny_detector.to_json()
    assert (back.spec, back.detector, back.table) == (tiny_detector.spec, tiny_detector.detector, tiny_detector.table)
    assert back.raw is not None
    assert tiny_detector.raw is not None
    for one, two in ((back.model, tiny_detector.model), (back.raw, tiny_detector.raw)):
        assert set(one.tensors) == set(two.tensors)
        assert all(torch.equal(value, two.tensors[key]) for key, value in one.tensors.items())
    back.save(tmp_path / "again")
    assert sorted(files_of(tmp_path / "again")) == FILES
    assert DetectorPackage.load(tmp_path / "again").digest == tiny_detector.digest


def test_model_json_says_what_the_design_asks(copy: Path) -> None:
    info = json.loads((copy / MODEL).read_text())
    assert (info["format_version"], info["task"]) == (1, "detection")
    assert info["input"]["tile"]["size"] == SIDE
    assert info["detector"]["oriented"] is True
    assert {"name", "count", "group"} == set(info["classes"][0])
    assert info["provenance"]["training_objects"] == 24


def test_the_adapter_opens_in_stock_peft(copy: Path, tiny_detector: DetectorPackage, tiny_weights: Path) -> None:
    from peft import PeftModel
    from timm.layers import resample_abs_pos_embed

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=SIDE)
    state = load_file(tiny_weights)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (SIDE // 16,) * 2, num_prefix_tokens=1)
    model.load_state_dict(state)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for folder, raw in (("adapter", False), ("raw/adapter", True)):
        stock = PeftModel.from_pretrained(model, str(copy / folder)).eval()
        ours = build_detector(tiny_detector, str(tiny_weights), raw=raw).eval()
        with torch.inference_mode():
            (expected,) = stock.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
            (found,) = ours.backbone.maps(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        model = stock.unload()


def test_packages_know_their_task(tiny_model: Path, copy: Path, tiny_weights: Path) -> None:
    assert isinstance(load_package(copy), DetectorPackage)
    assert isinstance(load_package(tiny_model), ModelPackage)
    with pytest.raises(PackageError, match="is for classification, not for detection: use it with 'classify'"):
        DetectorPredictor.load(tiny_model, weights=str(tiny_weights))
    with pytest.raises(PackageError, match="is for detection, not for classification: use it with 'detect'"):
        PackagePredictor.load(copy, weights=str(tiny_weights))


@pytest.mark.parametrize("task", ["segmentation", None, ["detection"], 3])
def test_a_task_from_elsewhere_is_refused(copy: Path, task: object) -> None:
    edit(copy, lambda info: info.update(task=task))
    for load in (DetectorPackage.load, ModelPackage.load, load_package):
        with pytest.raises(PackageError, match="this library only knows classification and detection"):
            load(copy)


@pytest.mark.parametrize("name", [name for name in FILES if name != MODEL])
def test_a_changed_byte_shows(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    refused_detector(copy, f"the digest of {name} differs")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda i: i.pop("detector"), "damaged"),
        (lambda i: i["detector"].update(channels=0), "damaged"),
        (lambda i: i["detector"].update(depth=3), "Unknown field depth"),
        (lambda i: i["detector"].update(channels=-3), "channels of a detector must lie between 1 and 4096"),
        (lambda i: i["detector"].update(levels=10**9), "levels of a detector must lie between 1 and 8"),
        (lambda i: i["detector"].update(levels=2.5), "levels must be a whole number"),
        (lambda i: i["detector"].update(oriented="x"), "oriented must be true or false"),
        (lambda i: i["detector"].pop("oriented"), "oriented is missing"),
        (lambda i: i.update(detector=3), "must be an object"),
        (lambda i: i["input"]["tile"].update(strides="x"), "Unknown field strides"),
        (lambda i: i["input"]["tile"].update(scale="x"), "scale must be a number"),
        (lambda i: i["input"]["tile"].pop("size"), "size is missing"),
        (lambda i: i["input"].pop("tile"), "damaged"),
        (lambda i: i["input"]["tile"].update(size="64"), "damaged"),
        (lambda i: i["input"]["tile"].update(size=4097), "Tiles must be 8 to 4096 pixels wide; received 4097"),
        (lambda i: i["input"]["tile"].update(min_visible=0), "damaged"),
        (lambda i: i["provenance"].pop("training_objects"), "damaged"),
        (lambda i: i["backbone"].update(dim="128"), "damaged"),
    ],
)
def test_a_model_json_of_another_shape_is_refused(copy: Path, change: Edit, part: str) -> None:
    edit(copy, change)
    refused_detector(copy, part)


def test_no_damaged_leaf_ends_in_a_traceback(copy: Path, tiny_weights: Path) -> None:
    info, files = read_package(copy)
    tile = np.zeros((1, 3, SIDE, SIDE), np.uint8), np.ones((1, SIDE, SIDE), bool)
    refusals = []
    for change, other in damaged(info):
        try:
            package = DetectorPackage.parse("model", other, files)
            assert json.loads(json.dumps(package.to_json())) is not None, change
            if change.removeprefix("no ").startswith(("backbone", "input", "classes", "detector")):
                DetectorPredictor(package, weights=str(tiny_weights), precision="32").predict(*tile)
        except DebiasError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [text for text in refusals if "\n" in text or not text.endswith(".")]


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("detector", lambda t: t.update({"backbone.x": torch.ones(1)}), "part of neither neck nor head"),
        ("detector", lambda t: next(iter(t.values())).fill_(float("nan")), "is not finite"),
        ("raw/detector", lambda t: t.update(extra=torch.ones(1)), "part of neither neck nor head"),
        ("adapter/adapter_model", lambda t: t.update(extra=torch.ones(1)), "no part of an adapter"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    copy: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object], part: str
) -> None:
    rewrite(copy / f"{name}.safetensors", change)
    sign(copy)
    refused_detector(copy, part)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("head.scales"),
        lambda t: t.update({"head.classes.bias": torch.ones(5)}),
        lambda t: t.update({"neck.more": torch.ones(5)}),
    ],
)
def test_neck_and_head_of_another_form_are_refused_before_use(
    tiny_detector: DetectorPackage, tiny_weights: Path, change: Callable[[dict[str, torch.Tensor]], object], raw: bool
) -> None:
    part = tiny_detector.raw if raw else tiny_detector.model
    assert part is not None
    tensors = dict(part.tensors)
    change(tensors)
    other = replace(part, tensors=tensors)
    odd = replace(tiny_detector, raw=other) if raw else replace(tiny_detector, model=other)
    with pytest.raises(PackageError, match="Neck and head in the model package do not fit"):
        build_detector(odd, str(tiny_weights), raw=raw)


@pytest.mark.parametrize("change", [{"levels": 8}, {"convs": 16}, {"channels": 4096}, {"up": 5}, {"up": 0}])
def test_a_form_that_the_weights_do_not_have_is_refused_before_it_is_built(
    tiny_detector: DetectorPackage, tiny_weights: Path, change: dict[str, Any]
) -> None:
    odd = replace(tiny_detector, detector=replace(tiny_detector.detector, **change))
    with pytest.raises(PackageError, match="Neck and head in the model package do not fit"):
        build_detector(odd, str(tiny_weights))


def test_a_detector_takes_the_place_of_a_classifier(copy: Path, tiny_model: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_model, tmp_path / "place"))
    DetectorPackage.load(copy).save(target)
    assert sorted(files_of(target)) == FILES
    refused(target, "is for detection")
