"""All engines through the same behaviour, and what is refused before an engine is made."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests import tiny
from torchgeo_debias.errors import ConfigError, PackageError
from torchgeo_debias.inference import backends
from torchgeo_debias.inference.backends import ExportPredictor, load_predictor
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction
from torchgeo_debias.package import ONNX, ModelPackage

WAYS = [("torch", "32"), ("torch", "bf16"), ("onnx", "32"), ("onnx", "int8"), ("openvino", "32"), ("openvino", "bf16")]
TOLERANCE = {"32": 2e-5, "bf16": 0.05, "int8": 0.05}

Make = Callable[[ModelPackage], ChipPredictor]
Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]


@pytest.fixture(params=WAYS, ids=[" ".join(way) for way in WAYS])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    backend, precision = cast(tuple[str, str], request.param)
    for library in {"onnx": ["onnxruntime"], "openvino": ["openvino"]}.get(backend, []):
        pytest.importorskip(library)
    if (backend, precision) == ("openvino", "bf16") and not backends.computes_bf16():
        pytest.skip("no bf16 on this processor")
    return backend, precision


@pytest.fixture
def make(way: tuple[str, str], tiny_weights: Path) -> Make:
    backend, precision = cast(Any, way)

    def made(package: ModelPackage) -> ChipPredictor:
        if backend == "torch":
            return PackagePredictor(package, weights=str(tiny_weights), precision=precision)
        return ExportPredictor(package, backend, precision=precision)

    return made


@pytest.fixture
def predictor(make: Make, tiny_export: ModelPackage) -> ChipPredictor:
    return make(tiny_export)


@pytest.fixture
def reference(tiny_export: ModelPackage, tiny_weights: Path) -> PackagePredictor:
    return PackagePredictor(tiny_export, weights=str(tiny_weights), precision="32")


@pytest.fixture
def images() -> Images:
    rng = np.random.default_rng(1)
    colours = np.array(list(tiny.COLOURS.values()))[np.arange(9) % 3]
    pixels = colours[:, :, None, None] + rng.integers(-25, 26, (9, 3, tiny.CHIP, tiny.CHIP))
    return pixels.astype(np.uint8), np.ones((9, tiny.CHIP, tiny.CHIP), dtype=bool)


def apart(one: Prediction, other: Prediction) -> float:
    assert one.raw is not None
    assert other.raw is not None
    return float(max(abs(one.probabilities - other.probabilities).max(), abs(one.raw - other.raw).max()))


def test_it_says_what_torch_in_float32_says(
    predictor: ChipPredictor, reference: PackagePredictor, way: tuple[str, str], images: Images
) -> None:
    found, wanted = predictor.predict(*images), reference.predict(*images)
    for part in found:
        assert part is not None
        assert part.dtype == np.float32
        assert part.shape == (9, 3)
        assert np.allclose(part.sum(axis=1), 1, atol=1e-4)
    assert apart(found, wanted) < TOLERANCE[way[1]]
    assert np.array_equal(found.probabilities.argmax(axis=1), wanted.probabilities.argmax(axis=1))
    assert predictor.twin
    assert abs(found.probabilities - cast(Any, found.raw)).max() > TOLERANCE["32"]


def test_a_chip_is_classified_alike_in_any_company(
    predictor: ChipPredictor, way: tuple[str, str], images: Images
) -> None:
    pixels, valid = images
    together = predictor.predict(pixels, valid)
    alone = [predictor.predict(pixels[i : i + 1], valid[i : i + 1]) for i in range(9)]
    joined = Prediction(*(np.concatenate(part) for part in zip(*alone, strict=True)))
    # int8 scales the activations of a batch together.
    assert apart(together, joined) < TOLERANCE[way[1]]


def test_invalid_pixels_have_no_say(predictor: ChipPredictor, images: Images) -> None:
    pixels, valid = images
    valid[:, :10] = False
    other = pixels.copy()
    other[:, :, :10] = 255
    assert apart(predictor.predict(pixels, valid), predictor.predict(other, valid)) == 0
    assert apart(predictor.predict(pixels, valid), predictor.predict(pixels, np.ones_like(valid))) > 1e-6


def test_threads_do_not_disturb_each_other(predictor: ChipPredictor, images: Images) -> None:
    pixels, valid = images
    batches = [np.roll(pixels, i, axis=3) for i in range(12)]
    predictor.use_threads(1)
    alone = [predictor.predict(batch, valid) for batch in batches]
    assert apart(alone[0], alone[1]) > 0
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda batch: predictor.predict(batch, valid), batches))
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other) < 1e-6


def test_answers_stay_when_the_engine_goes_on(predictor: ChipPredictor, images: Images) -> None:
    pixels, valid = images
    first = predictor.predict(pixels, valid)
    kept = first.probabilities.copy()
    predictor.predict(255 - pixels, valid)
    assert np.array_equal(first.probabilities, kept)


def test_the_number_of_threads_changes_nothing_but_rounding(
    predictor: ChipPredictor, way: tuple[str, str], images: Images
) -> None:
    before = torch.get_num_threads()
    try:
        predictor.use_threads(2)
        two = predictor.predict(*images)
        predictor.use_threads(1)
        assert apart(two, predictor.predict(*images)) < TOLERANCE[way[1]]
    finally:
        torch.set_num_threads(before)


def test_uint16_and_windows_of_larger_arrays_are_read_as_they_are(
    make: Make, predictor: ChipPredictor, tiny_export: ModelPackage, images: Images
) -> None:
    pixels, valid = images
    wanted = predictor.predict(pixels, valid)
    large = np.zeros((9, 3, 40, 50), np.uint16)
    large[:, :, 3:35, 5:37] = pixels
    assert apart(predictor.predict(large[:, :, 3:35, 5:37], valid), wanted) == 0
    assert np.isfinite(predictor.predict(np.full_like(pixels, 65535, dtype=np.uint16), valid).probabilities).all()


def test_identities_differ_by_backend_and_precision(tiny_export: ModelPackage, tiny_weights: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    found = [
        ExportPredictor(tiny_export, "onnx", precision="32"),
        ExportPredictor(tiny_export, "onnx", precision="int8"),
        ExportPredictor(tiny_export, "openvino", precision="32"),
        PackagePredictor(tiny_export, weights=str(tiny_weights), precision="32"),
    ]
    assert len({p.identity for p in found}) == len(found)
    again = replace(tiny_export, onnx={name: data + b"\n" for name, data in tiny_export.onnx.items()})
    assert ExportPredictor(again, "onnx", precision="32").identity != found[0].identity
    assert PackagePredictor(again, weights=str(tiny_weights), precision="32").identity == found[3].identity


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_it_travels_to_other_processes(
    tiny_export: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Images, backend: str
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    tiny_export.save(tmp_path / "model.tgd")
    monkeypatch.chdir(tmp_path)
    first = load_predictor("model.tgd", backend=cast(Any, backend), precision="32")
    wanted = first.predict(*images)
    sent = pickle.dumps(first)
    assert len(sent) < 10_000
    monkeypatch.chdir("/")
    back = pickle.loads(sent)
    assert back.identity == first.identity
    assert apart(back.predict(*images), wanted) == 0
    with pytest.raises(ConfigError, match="save its package"):
        pickle.dumps(ExportPredictor(tiny_export, cast(Any, backend)))


def test_load_predictor_finds_the_backend(tiny_model: Path, tiny_weights: Path) -> None:
    found = load_predictor(tiny_model, weights=str(tiny_weights), precision="bf16")
    assert isinstance(found, PackagePredictor)
    assert (found.backend, found.precision) == ("torch", "bf16")


@pytest.mark.parametrize(
    ("backend", "precision", "part"),
    [
        ("torch", "int8", "torch does not compute in int8: choose auto or 32 or bf16 or 16"),
        ("torch", "64", "torch does not compute in 64"),
        ("onnx", "bf16", "onnx does not compute in bf16: choose auto or 32 or int8"),
        ("openvino", "int8", "openvino does not compute in int8: choose auto or 32 or bf16"),
        ("tensorrt", "32", "Unknown backend 'tensorrt': choose one of torch, onnx, openvino"),
    ],
)
def test_impossible_pairs_are_refused(tiny_model: Path, backend: Any, precision: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        load_predictor(tiny_model, backend=backend, precision=precision)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_missing_library_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cannot be imported: install torchgeo-debias\[export\]"):
        load_predictor(tiny_model, backend=backend)


def test_a_package_without_what_is_asked_for_is_refused(tiny_model: Path, tiny_export: ModelPackage) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(PackageError, match=r"no ONNX model: run 'torchgeo-debias export --model M' first"):
        load_predictor(tiny_model, backend="onnx")
    alone = replace(tiny_export, onnx={ONNX: tiny_export.onnx[ONNX]})
    with pytest.raises(PackageError, match="no int8 model"):
        ExportPredictor(alone, "onnx", precision="int8")
    head = tiny_export.model.head.shifted(np.array([1, 0, 0], np.float32))
    stale = replace(tiny_export, model=replace(tiny_export.model, head=head))
    with pytest.raises(PackageError, match="made from another state"):
        ExportPredictor(stale, "onnx")


def test_bf16_is_refused_where_the_processor_lacks_it(
    tiny_export: ModelPackage, monkeypatch: pytest.MonkeyPatch, images: Images
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(backends, "computes_bf16", lambda: False)
    assert ExportPredictor(tiny_export, "openvino").precision == "32"
    with pytest.raises(ConfigError, match="use --precision 32"):
        ExportPredictor(tiny_export, "openvino", precision="bf16")


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= backends.cores() <= (os.cpu_count() or 1)
