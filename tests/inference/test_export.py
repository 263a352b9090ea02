"""The whole model as ONNX, in its package, with its agreement with torch."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from torchgeo_debias import Chips, TrainConfig, read_folder, train
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.errors import Cancelled, ConfigError, DataError
from torchgeo_debias.inference import export
from torchgeo_debias.inference.backends import ExportPredictor, load_predictor
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.export import export_package
from torchgeo_debias.package import ONNX, ONNX_INT8, ModelPackage
from torchgeo_debias.progress import Progress

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def chips(tiny_images: Path) -> Chips:
    return read_folder(tiny_images, tiny.CHIP, split="test")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the comparison."""
    monkeypatch.setattr(export, "_agreement", lambda *_: {})


def test_the_graph_takes_raw_pixels_of_any_number(tiny_export: ModelPackage) -> None:
    graph = onnx.load_from_string(tiny_export.onnx[ONNX]).graph
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert list(shapes) == ["images", "valid", "probabilities", "raw"]
    assert shapes["images"][1:] == [3, tiny.CHIP, tiny.CHIP]
    assert shapes["valid"][1:] == [tiny.CHIP, tiny.CHIP]
    assert shapes["probabilities"][1:] == shapes["raw"][1:] == [3]
    assert {type(shape[0]) for shape in shapes.values()} == {str}


def test_what_the_twins_share_is_written_once(tiny_export: ModelPackage) -> None:
    large = [t.raw_data for t in onnx.load_from_string(tiny_export.onnx[ONNX]).graph.initializer]
    large = [data for data in large if len(data) > 1000]
    assert len(set(large)) == len(large)


def test_int8_has_small_weights(tiny_export: ModelPackage) -> None:
    kinds = [t.data_type for t in onnx.load_from_string(tiny_export.onnx[ONNX_INT8]).graph.initializer if t.dims]
    assert kinds.count(onnx.TensorProto.INT8) >= 4 * 6
    assert len(tiny_export.onnx[ONNX_INT8]) < len(tiny_export.onnx[ONNX])


def test_the_package_tells_of_its_export(tiny_export: ModelPackage, tiny_package: ModelPackage) -> None:
    about = tiny_export.exports
    assert about["formats"] == ["fp32", "int8"]
    assert about["model"] == tiny_package.digest == tiny_export.digest
    assert about["opset"] == onnx.load_from_string(tiny_export.onnx[ONNX]).opset_import[0].version
    assert {"torch", "onnx", "onnxruntime"} <= set(about["versions"])
    agreement = about["agreement"]
    assert agreement["chips"] == 64
    assert agreement["source"] == "textures drawn from seed 0"
    assert {"torch bf16", "onnx 32", "onnx int8"} <= set(agreement["of"])
    for name, figures in agreement["of"].items():
        assert set(figures) == {"same_class", "max_difference", "mean_difference"}
        assert figures["mean_difference"] <= figures["max_difference"] < (1e-4 if name.endswith(" 32") else 0.2)
        assert figures["same_class"] > 0.8


def test_agreement_is_measured_on_the_chips_given(
    tiny_export: ModelPackage, tiny_weights: Path, chips: Chips, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = str(tiny_weights)
    found = export._agreement(tiny_export, weights, chips, lambda progress: None)
    assert (found["chips"], found["source"]) == (len(chips), "given")
    wanted = PackagePredictor(tiny_export, weights=weights, precision="32").predict(chips.images, chips.valid)[0]
    apart = abs(ExportPredictor(tiny_export, "onnx", precision="int8").predict(chips.images, chips.valid)[0] - wanted)
    assert found["of"]["onnx int8"]["max_difference"] == pytest.approx(apart.max(), rel=0.05)
    # An engine that answers something else is found out.
    monkeypatch.setattr(ExportPredictor, "predict", lambda self, images, valid: (wanted[: len(images)][:, [1, 2, 0]],))
    found = export._agreement(tiny_export, weights, chips, lambda progress: None)
    assert found["of"]["onnx 32"]["same_class"] == 0
    assert found["of"]["torch bf16"]["same_class"] == 1


@pytest.mark.usefixtures("fast")
def test_it_goes_into_the_package_it_came_from(
    tiny_package: ModelPackage,
    tiny_export: ModelPackage,
    tiny_weights: Path,
    tmp_path: Path,
    chips: Chips,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "_graph", lambda *_: tiny_export.onnx[ONNX])
    path = tmp_path / "model.tgd"
    tiny_package.save(path)
    exported = export_package(path, formats=("fp32",), weights=str(tiny_weights))
    back = ModelPackage.load(path)
    assert back.to_json() == exported.to_json()
    assert list(back.onnx) == [ONNX]
    assert back.exports["formats"] == ["fp32"]
    found = load_predictor(path, backend="onnx", precision="32").predict(chips.images, chips.valid)
    wanted = PackagePredictor.load(path, weights=str(tiny_weights), precision="32").predict(chips.images, chips.valid)
    assert np.allclose(found.probabilities, wanted.probabilities, atol=2e-5)
    export_package(path, tmp_path / "other", formats=("fp32",), weights=str(tiny_weights))
    assert ModelPackage.load(tmp_path / "other").onnx.keys() == {ONNX}


class Averages(nn.Module):
    """In place of a backbone, so that the export takes no time."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(3, dim)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.project(images.mean(dim=(2, 3))))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("stretch", ["none", "sqrt", "log", "percentile"])
def test_normalisation_and_mask_are_in_the_graph(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch, stretch: Any
) -> None:
    rng = np.random.default_rng(0)
    images = rng.gamma(2, 40, (4, 3, tiny.CHIP, tiny.CHIP)).astype(np.float32)
    valid = rng.random((4, tiny.CHIP, tiny.CHIP)) < 0.8
    spread = Normalisation.fit(images, valid, stretch=stretch)
    package = replace(tiny_package, dtype="float32", raw=None, normalisation=spread)
    backbone = Averages(package.backbone.dim)
    monkeypatch.setattr(export, "merged_backbones", lambda *_: [backbone])
    found = ExportPredictor(export_package(package, formats=("fp32",)), "onnx", precision="32").predict(images, valid)
    normal = spread(torch.from_numpy(images), torch.from_numpy(valid))
    with torch.inference_mode():
        wanted = torch.from_numpy(package.model.head.logits(backbone(normal).numpy())).softmax(dim=1).numpy()
    assert found.raw is None
    assert np.allclose(found.probabilities, wanted, atol=1e-5)

    drawn, where = export._textures(package)
    assert drawn.dtype == np.float32
    assert not where.all()
    assert 0.3 < spread(torch.from_numpy(drawn), torch.from_numpy(where)).std() < 3


@pytest.mark.usefixtures("fast")
def test_a_pure_cnn_has_nothing_for_int8(tiny_images: Path, chips: Chips) -> None:
    config = TrainConfig(method="lora", backbone="timm:test_resnet", weights="random", epochs=1, precision="32", seed=3)
    package = train(read_folder(tiny_images, tiny.CHIP, split="train"), config).package
    torch.manual_seed(3)
    exported = export_package(package, weights="random")
    assert exported.exports["formats"] == ["fp32"]
    torch.manual_seed(3)
    wanted = PackagePredictor(package, weights="random", precision="32").predict(chips.images, chips.valid)
    found = ExportPredictor(exported, "onnx", precision="32").predict(chips.images, chips.valid)
    assert np.allclose(found.probabilities, wanted.probabilities, atol=2e-5)


def test_what_cannot_be_done_is_refused_before_anything_is_computed(
    tiny_package: ModelPackage, chips: Chips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_graph", None)
    with pytest.raises(ConfigError, match="Unknown export format 'fp8': choose among fp32, int8"):
        export_package(tiny_package, formats=cast(Any, ("fp32", "fp8")))
    with pytest.raises(DataError, match="read them with the chip size and the bands of the model"):
        export_package(tiny_package, chips=replace(chips, images=chips.images[:, :1], bands=("red",)))
    monkeypatch.setattr(export, "check_installed", lambda *names: (_ for _ in ()).throw(ConfigError(" ".join(names))))
    with pytest.raises(ConfigError, match=r"^onnx onnxscript onnxruntime$"):
        export_package(tiny_package)
    with pytest.raises(ConfigError, match=r"^onnx onnxscript$"):
        export_package(tiny_package, formats=("fp32",))


def test_cancelling_leaves_the_package_as_it_was(
    tiny_model: Path, tiny_export: ModelPackage, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_graph", lambda *_: tiny_export.onnx[ONNX])
    before = {path: path.read_bytes() for path in tiny_model.rglob("*") if path.is_file()}

    def stop(progress: Progress) -> None:
        if progress.stage == "compare":
            raise Cancelled("Enough.")

    with pytest.raises(Cancelled):
        export_package(tiny_model, weights=str(tiny_weights), formats=("fp32",), progress=stop)
    assert {path: path.read_bytes() for path in tiny_model.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("fast")
def test_it_says_nothing_of_its_own(
    tiny_package: ModelPackage,
    tiny_export: ModelPackage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "merged_backbones", lambda *_: [Averages(tiny_package.backbone.dim)])
    handlers = list(logging.getLogger().handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_package(replace(tiny_package, raw=None), formats=("fp32",))
        assert export._quantise(tiny_export.onnx[ONNX]) == tiny_export.onnx[ONNX_INT8]
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert logging.getLogger().handlers == handlers


def test_engines_are_imported_late() -> None:
    script = (
        "import sys; import torchgeo_debias.inference.backends, torchgeo_debias.inference.export; "
        "sys.exit(sorted({'onnx', 'onnxruntime', 'onnxscript', 'openvino'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stderr == ""
