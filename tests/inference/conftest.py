"""An exported package, which takes long enough to make it once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchgeo_debias.package import ModelPackage


@pytest.fixture(scope="session")
def tiny_export(tiny_package: ModelPackage, tiny_weights: Path) -> ModelPackage:
    """``tiny_package`` with its export in both formats; not to be changed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from torchgeo_debias.inference.export import export_package

    return export_package(tiny_package, weights=str(tiny_weights))
