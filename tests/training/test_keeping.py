from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.training.conftest import toy_chips
from torchgeo_debias.data.chips import Chips
from torchgeo_debias.debias import calibrate
from torchgeo_debias.errors import ConfigError, OutputError
from torchgeo_debias.evaluation.feature_space import FeatureSpace
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.training import TrainConfig, train

Configure = Callable[..., TrainConfig]


def features_of(package: ModelPackage, chips: Chips, config: TrainConfig, *, twin: bool) -> npt.NDArray[np.float32]:
    """Features by a saved model or by its plain twin, with nothing of the training in between."""
    used = package
    if twin:
        assert package.raw is not None
        used = replace(package, model=package.raw, raw=None)
    return PackagePredictor(used, weights=config.weights, precision="32").features(chips.images, chips.valid)


def test_it_keeps_what_the_stages_made(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=2)
    package = train(toy, config, keep_features=tmp_path / "kept").package
    space = FeatureSpace.load(tmp_path / "kept")
    np.testing.assert_allclose(space.before, features_of(package, toy, config, twin=True), atol=1e-4)
    np.testing.assert_allclose(space.after, features_of(package, toy, config, twin=False), atol=1e-4)
    assert not np.allclose(space.before, space.after, atol=0.1)
    expected = calibrate(space.before, toy.labels, toy.table, config.debias, config.seed)
    np.testing.assert_array_equal(space.calibrated, expected.targets)
    np.testing.assert_array_equal(space.clusters, expected.clusters.assignment)
    np.testing.assert_array_equal(space.centres, expected.clusters.centres)
    np.testing.assert_array_equal(space.debiased, expected.centres)
    np.testing.assert_array_equal(space.pull, expected.pull)
    np.testing.assert_array_equal(space.labels, toy.labels)
    assert space.table == toy.table
    assert list(space.sources) == toy.sources.tolist()
    assert TrainConfig.from_json(space.settings) == config
    assert (space.seed, space.backbone, space.digest) == (0, "timm:test_vit", package.backbone.digest)
    assert "torch" in space.versions


def test_keeping_changes_no_model(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=1)
    one = train(toy, config).package
    other = train(toy, config, keep_features=tmp_path).package
    np.testing.assert_array_equal(one.model.head.weight, other.model.head.weight)
    assert one.model.adapter is not None
    assert other.model.adapter is not None
    for name, tensor in one.model.adapter.tensors.items():
        assert tensor.equal(other.model.adapter.tensors[name]), name


def test_of_several_rounds_it_keeps_the_last(toy: Chips, configure: Configure, tmp_path: Path) -> None:
    config = configure(epochs=1, rounds=2)
    package = train(toy, config, keep_features=tmp_path).package
    space = FeatureSpace.load(tmp_path)
    assert not np.allclose(space.before, features_of(package, toy, config, twin=True), atol=1e-3)
    np.testing.assert_allclose(space.after, features_of(package, toy, config, twin=False), atol=1e-4)


@pytest.mark.parametrize("method", ["probe", "lora", "finetune"])
def test_a_method_without_a_second_stage_is_refused_before_any_work(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"The method {method} calibrates no features"):
        train(toy_chips(), configure(method=method), keep_features=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_file_in_its_place_is_refused_before_any_work(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(OutputError, match="is a file"):
        train(toy_chips(), configure(), keep_features=tmp_path / "kept", progress=lambda _: pytest.fail("it began"))
