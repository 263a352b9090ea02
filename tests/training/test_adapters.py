"""Every kind of adapter goes through training, package and prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from torchgeo_debias.backbones import KINDS, AdapterSettings
from torchgeo_debias.backbones.adapters import Kind
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.package import Classifier, ModelPackage
from torchgeo_debias.progress import silent
from torchgeo_debias.training import TrainConfig, train
from torchgeo_debias.training.detection import DetectConfig
from torchgeo_debias.training.features import extract_features
from torchgeo_debias.training.parts import adapter_of, package_parts
from torchgeo_debias.training.stages import Run, adapt
from torchgeo_debias.training.trainer import normalisation_for

Configure = Callable[..., TrainConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_gives_the_features_that_were_trained(
    kind: Kind, toy: Chips, configure: Configure, tmp_path: Path
) -> None:
    config = configure(method="lora", epochs=1, adapter=AdapterSettings(kind, rank=2, experts=2))
    run = Run(toy, None, normalisation_for(toy, config), config, silent, None)
    backbone, head = adapt(run)
    wanted = extract_features(backbone, toy, run.normalisation, precision="32")
    package = ModelPackage(
        table=toy.table, spec=toy.spec, bands=toy.bands, model=Classifier(adapter_of(backbone), head), raw=None,
        **package_parts(backbone, config, run.normalisation, run.seconds, toy.images.dtype, {"training_chips": 45}),
    )  # fmt: skip
    package.save(tmp_path / "model.tgd")
    predictor = PackagePredictor.load(tmp_path / "model.tgd", weights=config.weights, precision="32")
    found = predictor.features(toy.images, toy.valid)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    frozen = extract_features(run.backbone(), toy, run.normalisation, precision="32")
    assert np.abs(found - frozen).max() > 1e-3
    assert TrainConfig.from_json(predictor.package.method).adapter == config.adapter


@pytest.mark.parametrize("kind", ["houlsby", "clora"])
def test_debiasing_works_on_adapters_of_our_own(kind: Kind, toy: Chips, configure: Configure) -> None:
    config = configure(method="deblora", epochs=2, adapter=AdapterSettings(kind, rank=2))
    package = train(toy, config).package
    assert package.raw is not None
    assert package.model.adapter is not None
    assert package.model.adapter.config["experts"] == 4  # as many as classes
    predictor = PackagePredictor(package, weights=config.weights, precision="32")
    own, twin = (predictor.features(toy.images, toy.valid, raw=raw) for raw in (False, True))
    assert np.abs(own - twin).max() > 1e-3
    again = PackagePredictor(package, weights=config.weights, precision="32")
    np.testing.assert_array_equal(again.features(toy.images, toy.valid), own)


def test_a_detector_refuses_mixtures() -> None:
    with pytest.raises(ConfigError, match="A detector takes no mixture such as plora"):
        DetectConfig(adapter=AdapterSettings("plora"))
