"""A package made ready to predict: on the right weights, or not at all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from torchgeo_debias import PackagePredictor, TrainConfig, read_folder, train
from torchgeo_debias.backbones import create_backbone
from torchgeo_debias.errors import ConfigError, PackageError, WeightsError
from torchgeo_debias.evaluation.thresholds import ClassThreshold, Thresholds
from torchgeo_debias.inference import classifier
from torchgeo_debias.package import Adapter, ModelPackage

Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]


@pytest.fixture
def images() -> Images:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 3, tiny.CHIP, tiny.CHIP), dtype=np.uint8)
    return pixels, np.ones((6, tiny.CHIP, tiny.CHIP), dtype=bool)


@pytest.fixture
def predictor(tiny_package: ModelPackage, tiny_weights: Path) -> PackagePredictor:
    return PackagePredictor(tiny_package, weights=str(tiny_weights), precision="32")


def test_it_tells_what_the_package_says(predictor: PackagePredictor, tiny_package: ModelPackage) -> None:
    assert predictor.table is tiny_package.table
    assert predictor.spec is tiny_package.spec
    assert predictor.bands == ("red", "green", "blue")
    assert predictor.dtype == "uint8"


def test_probabilities_come_from_features_and_head(predictor: PackagePredictor, images: Images) -> None:
    found = predictor.predict(*images)
    assert found.raw is not None
    assert predictor.package.raw is not None
    for probabilities, part, raw in (
        (found.probabilities, predictor.package.model, False),
        (found.raw, predictor.package.raw, True),
    ):
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        logits = predictor.features(*images, raw=raw) @ part.head.weight.T + part.head.bias
        wanted = np.exp(logits - logits.max(axis=1, keepdims=True))
        assert np.allclose(probabilities, wanted / wanted.sum(axis=1, keepdims=True), atol=1e-5)


def test_an_adapter_whose_sums_run_over_is_refused(tiny_package: ModelPackage, tiny_weights: Path) -> None:
    adapter = tiny_package.model.adapter
    assert adapter is not None
    huge = Adapter(adapter.config, {name: torch.full_like(value, 3e38) for name, value in adapter.tensors.items()})
    damaged = replace(tiny_package, model=replace(tiny_package.model, adapter=huge))
    with pytest.raises(PackageError, match="makes weights that are not finite"):
        PackagePredictor(damaged, weights=str(tiny_weights), precision="32")


def test_the_twins_do_not_get_mixed_up(predictor: PackagePredictor, images: Images) -> None:
    plain, debiased = predictor.features(*images, raw=True), predictor.features(*images)
    assert not np.allclose(plain, debiased)
    assert np.array_equal(predictor.features(*images, raw=True), plain)
    assert np.array_equal(predictor.features(*images), debiased)


def test_features_of_many_chips_are_taken_in_batches(
    predictor: PackagePredictor, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sizes = predictor.features(*images), []
    predictor._backbones[0].register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    monkeypatch.setattr(classifier, "_BATCH", 4)
    assert np.allclose(predictor.features(*images), whole, atol=1e-5)
    assert sizes == [4, 2]


def test_a_chip_is_classified_alike_in_any_company(predictor: PackagePredictor, images: Images) -> None:
    pixels, valid = images
    together = predictor.predict(pixels, valid).probabilities
    alone = np.concatenate([predictor.predict(pixels[i : i + 1], valid[i : i + 1]).probabilities for i in range(6)])
    assert np.allclose(together, alone, atol=1e-5)


def test_invalid_pixels_have_no_say(predictor: PackagePredictor, images: Images) -> None:
    pixels, valid = images
    valid[:, :10] = False
    other = pixels.copy()
    other[:, :, :10] = 255
    assert np.array_equal(predictor.predict(pixels, valid).probabilities, predictor.predict(other, valid).probabilities)


def test_uint16_is_read_as_it_is(tiny_package: ModelPackage, tiny_weights: Path, images: Images) -> None:
    pixels, valid = images
    wide = PackagePredictor(replace(tiny_package, dtype="uint16"), weights=str(tiny_weights), precision="32")
    same = PackagePredictor(tiny_package, weights=str(tiny_weights), precision="32")
    assert np.array_equal(
        wide.predict(pixels.astype(np.uint16), valid).probabilities, same.predict(pixels, valid).probabilities
    )
    assert np.isfinite(wide.predict(np.full_like(pixels, 65535, dtype=np.uint16), valid).probabilities).all()


@pytest.mark.parametrize("precision", ["auto", "bf16", "16"])
def test_lower_precision_says_nearly_the_same(
    tiny_package: ModelPackage, tiny_weights: Path, predictor: PackagePredictor, images: Images, precision: Any
) -> None:
    lower = PackagePredictor(tiny_package, weights=str(tiny_weights), precision=precision)
    assert np.allclose(lower.predict(*images).probabilities, predictor.predict(*images).probabilities, atol=0.05)


def test_random_weights_must_be_drawn_as_they_were(tiny_images: Path, images: Images) -> None:
    config = TrainConfig(method="lora", backbone=tiny.BACKBONE, weights="random", epochs=1, precision="32", seed=3)
    package = train(read_folder(tiny_images, tiny.CHIP, split="train"), config).package
    torch.manual_seed(4)
    with pytest.raises(PackageError, match="are not those the model was trained on"):
        PackagePredictor(package, weights="random")
    torch.manual_seed(3)
    assert PackagePredictor(package, weights="random").predict(*images).raw is None


def test_other_weights_of_the_same_architecture_are_refused(
    tiny_package: ModelPackage, tiny_weights: Path, tmp_path: Path
) -> None:
    state = load_file(tiny_weights)
    state["norm.bias"] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(PackageError, match="give the right ones with --weights"):
        PackagePredictor(tiny_package, weights=str(tmp_path / "other.safetensors"))


def test_weights_that_cannot_be_had_are_named(tiny_package: ModelPackage, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No weights at"):
        PackagePredictor(tiny_package, weights=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ["layers.0.attention"]},
        {"target_modules": []},
        {"target_modules": 5},
        {"r": 0},
        {"r": 4},
        {"r": "eight"},
    ],
)
def test_an_adapter_of_another_backbone_is_refused(
    tiny_package: ModelPackage, tiny_weights: Path, change: dict[str, Any]
) -> None:
    adapter = tiny_package.model.adapter
    assert adapter is not None
    foreign = Adapter({**adapter.config, **change}, adapter.tensors)
    for package in (
        replace(tiny_package, model=replace(tiny_package.model, adapter=foreign), raw=None),
        replace(tiny_package, raw=replace(tiny_package.model, adapter=foreign)),
    ):
        with pytest.raises(PackageError, match="adapter does not fit the backbone timm:test_vit") as caught:
            PackagePredictor(package, weights=str(tiny_weights))
        assert "\n" not in str(caught.value)


def test_adapter_tensors_of_another_shape_are_refused(tiny_package: ModelPackage, tiny_weights: Path) -> None:
    adapter = tiny_package.model.adapter
    assert adapter is not None
    name = next(iter(adapter.tensors))
    for tensors in (
        {**adapter.tensors, name: adapter.tensors[name][:4].clone()},
        {key: value for key, value in adapter.tensors.items() if key != name},
    ):
        foreign = replace(tiny_package.model, adapter=Adapter(adapter.config, tensors))
        with pytest.raises(PackageError, match="does not fit"):
            PackagePredictor(replace(tiny_package, model=foreign), weights=str(tiny_weights))


def test_merging_the_lora_changes_nothing_but_rounding(
    predictor: PackagePredictor, tiny_package: ModelPackage, tiny_weights: Path, images: Images
) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    pixels, valid = images
    raw = predictor.predict(*images).raw
    assert tiny_package.raw is not None
    assert raw is not None
    for part, found in ((tiny_package.model, predictor.predict(*images).probabilities), (tiny_package.raw, raw)):
        views = tiny_package.backbone.views
        backbone = create_backbone(tiny.BACKBONE, size=tiny.CHIP, weights=str(tiny_weights), views=views)
        adapter = part.adapter
        assert adapter is not None
        known = {key: adapter.config[key] for key in ("r", "lora_alpha", "target_modules")}
        model: Any = get_peft_model(backbone.model, LoraConfig(**known))
        set_peft_model_state_dict(model, adapter.tensors)
        backbone.model = model
        with torch.inference_mode():
            features = backbone.eval()(tiny_package.normalisation(torch.from_numpy(pixels), torch.from_numpy(valid)))
        wanted = torch.from_numpy(part.head.logits(features.numpy())).softmax(dim=1).numpy()
        assert np.abs(found - wanted).max() < 1e-5
        assert np.abs(found - wanted).max() < np.abs(predictor.predict(*images).probabilities - raw).max()


def test_another_number_of_views_may_be_asked_for(
    tiny_model: Path, tiny_package: ModelPackage, tiny_weights: Path, images: Images
) -> None:
    load = partial(PackagePredictor.load, tiny_model, weights=str(tiny_weights), precision="32")
    own, fast = load(), load(views=1)
    assert tiny_package.backbone.views == 4
    assert np.array_equal(load(views=4).predict(*images).probabilities, own.predict(*images).probabilities)
    turned = [(np.rot90(images[0], k, axes=(2, 3)).copy(), images[1]) for k in range(4)]
    mean = np.mean([fast.features(*one) for one in turned], axis=0)
    assert np.allclose(own.features(*images), mean, atol=1e-5)
    assert own.identity != fast.identity
    copied = pickle.loads(pickle.dumps(fast))
    assert np.array_equal(copied.predict(*images).probabilities, fast.predict(*images).probabilities)


def test_thresholds_hold_for_the_views_they_were_found_with(
    tiny_package: ModelPackage, tiny_weights: Path, tmp_path: Path
) -> None:
    names = tiny_package.table.names
    thresholds = Thresholds(names, (ClassThreshold(0.5, 20, True),) * len(names), 0.9)
    replace(tiny_package, thresholds=thresholds).save(tmp_path / "m")
    load = partial(PackagePredictor.load, tmp_path / "m", weights=str(tiny_weights))
    with pytest.raises(ConfigError, match="found with 4 views of a chip and promise nothing with 1"):
        load(views=1)
    assert load(views=1, thresholds=False).package.backbone.views == 1
    assert load(views=4).thresholds == thresholds


def test_twins_share_what_no_lora_touches(predictor: PackagePredictor) -> None:
    main, raw = ({n: p.data_ptr() for n, p in b.named_parameters()} for b in predictor._backbones)
    assert main.keys() == raw.keys()
    assert {name for name in main if main[name] != raw[name]} == {n for n in main if ".attn." in n and "weight" in n}


def test_threads_do_not_disturb_each_other(predictor: PackagePredictor) -> None:
    rng = np.random.default_rng(3)
    batches = [rng.integers(0, 256, (5, 3, tiny.CHIP, tiny.CHIP), dtype=np.uint8) for _ in range(16)]
    valid = rng.random((5, tiny.CHIP, tiny.CHIP)) < 0.9
    alone = [predictor.predict(batch, valid) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: predictor.predict(batch, valid), batches))
    for one, other in zip(alone, together, strict=True):
        assert one.raw is not None
        assert other.raw is not None
        assert np.array_equal(one.probabilities, other.probabilities)
        assert np.array_equal(one.raw, other.raw)


def test_the_number_of_threads_holds_in_every_thread(predictor: PackagePredictor, images: Images) -> None:
    def used() -> int:
        predictor.predict(*images)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(used).result()  # this thread has met torch before the number changes
            predictor.use_threads(2)
            assert used() == 2
            assert pool.submit(used).result() == 2
    finally:
        torch.set_num_threads(before)


def test_the_identity_tells_models_and_precisions_apart(
    predictor: PackagePredictor, tiny_package: ModelPackage, tiny_model: Path, tiny_weights: Path
) -> None:
    weights = str(tiny_weights)
    same = [
        PackagePredictor.load(tiny_model, weights=weights, precision="32"),
        PackagePredictor(replace(tiny_package, metrics={"new": 1}), weights=weights, precision="32"),
        PackagePredictor(replace(tiny_package, exports={"new": 1}), weights=weights, precision="32"),
    ]
    assert {p.identity for p in same} == {predictor.identity}
    head = tiny_package.model.head
    shifted = replace(tiny_package.model, head=head.shifted(np.array([1e-3, 0, 0], np.float32)))
    others = [
        PackagePredictor(tiny_package, weights=weights, precision="bf16"),
        PackagePredictor(replace(tiny_package, raw=None), weights=weights, precision="32"),
        PackagePredictor(replace(tiny_package, model=shifted), weights=weights, precision="32"),
        PackagePredictor(replace(tiny_package, spec=replace(tiny_package.spec, gsd=3.0)), weights=weights),
    ]
    assert len({predictor.identity, *(p.identity for p in others)}) == 1 + len(others)
    assert (predictor.backend, predictor.precision) == ("torch", "32")


def test_the_identity_is_that_of_every_process(tiny_model: Path, tiny_weights: Path) -> None:
    script = (
        "import sys; from torchgeo_debias.inference.classifier import PackagePredictor; "
        "sys.stdout.write(PackagePredictor.load(sys.argv[1], weights=sys.argv[2], precision='32').identity)"
    )
    command = [sys.executable, "-c", script, str(tiny_model), str(tiny_weights)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == PackagePredictor.load(tiny_model, weights=str(tiny_weights), precision="32").identity


def test_a_loaded_model_travels_to_other_processes(
    tiny_model: Path, tiny_weights: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    weights = os.path.relpath(tiny_weights)
    first = PackagePredictor.load(tiny_model.name, weights=weights, precision="bf16")
    sent = pickle.dumps(first)
    assert len(sent) < 10_000
    monkeypatch.chdir("/")
    back = pickle.loads(sent)
    assert back.identity == first.identity
    assert np.array_equal(back.predict(*images).probabilities, first.predict(*images).probabilities)


def test_a_model_in_memory_does_not_travel(predictor: PackagePredictor) -> None:
    with pytest.raises(ConfigError, match="save its package"):
        pickle.dumps(predictor)


def test_cnns_compute_with_channels_last(tiny_images: Path, images: Images) -> None:
    config = TrainConfig(method="lora", backbone="timm:test_resnet", weights="random", epochs=1, precision="32", seed=3)
    package = train(read_folder(tiny_images, tiny.CHIP, split="train"), config).package
    torch.manual_seed(3)
    predictor = PackagePredictor(package, weights="random", precision="32")
    found = predictor.predict(*images).probabilities
    weights = [p for p in predictor._backbones[0].parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    for backbone in predictor._backbones:
        cast(Any, backbone.model).to(memory_format=torch.contiguous_format)
    assert np.allclose(predictor.predict(*images).probabilities, found, atol=1e-5)
