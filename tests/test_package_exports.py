"""Exported files in a package: saved, read, refused where they are not those that were saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.test_package import FILES, files_of, refused, zip_of
from torchgeo_debias.package import MODEL, ONNX, ONNX_INT8, ModelPackage


def test_exports_travel_in_the_package(tiny_package: ModelPackage, tmp_path: Path) -> None:
    exported = replace(tiny_package, onnx={ONNX: b"graph", ONNX_INT8: b"small"}, exports={"opset": 20})
    for name in ("model", "model.tgd"):
        exported.save(tmp_path / name)
        back = ModelPackage.load(tmp_path / name)
        assert back.onnx == exported.onnx
        assert back.exports == {"opset": 20}
        replace(back, onnx={}, exports={}).save(tmp_path / name)  # takes the place of a package with an export
        assert ModelPackage.load(tmp_path / name).to_json() == tiny_package.to_json()
    exported.save(tmp_path / "model")
    assert sorted(files_of(tmp_path / "model")) == sorted([*FILES, ONNX, ONNX_INT8])
    zip_of(tmp_path / "model", tmp_path / "by-hand.tgd", **{"onnx/": b""})  # zip tools write an entry a folder
    assert ModelPackage.load(tmp_path / "by-hand.tgd").onnx == exported.onnx


def test_a_changed_export_is_refused(tiny_package: ModelPackage, tmp_path: Path) -> None:
    replace(tiny_package, onnx={ONNX: b"graph"}, exports={"opset": 20}).save(tmp_path / "model")
    (tmp_path / "model" / ONNX).write_bytes(b"other")
    refused(tmp_path / "model", f"the digest of {ONNX} differs")
    (tmp_path / "model" / ONNX).unlink()
    refused(tmp_path / "model", "its files are not those")


def test_packages_without_exports_are_written_as_ever(tiny_package: ModelPackage, tiny_model: Path) -> None:
    assert "exports" not in json.loads((tiny_model / MODEL).read_text())
    assert ModelPackage.load(tiny_model).exports == {}
