"""What the backends of a ViT-S package compute in a second, and how often they agree with torch in float32.

Chips/s of DINOv2 ViT-S/14 at 112 and 224 pixels for torch, ONNX Runtime and OpenVINO in each of their precisions, with
one thread and with two. All run in turn, repeat after repeat, so that each sees about the same foreign load; of the
ratios to torch in float32, that of processor time with one thread hardly feels it. With two threads it does: those of
torch wait for each other in a busy loop, for as long as others hold a core.

Run::

    python -m benchmarks.backends --data ../data/ucmerced

The weights of the head, which cost nothing, are fitted to noise. With ``--data`` (a scene folder with ``train`` and
``test``) a linear probe is fitted on 25 training images of each class, and agreement is measured on all of ``test``.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import ForeignLoad, Spread, Times, save, timed
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.folders import read_folder
from torchgeo_debias.inference.backends import ExportPredictor
from torchgeo_debias.inference.classifier import PackagePredictor
from torchgeo_debias.inference.evaluation import predict_chips
from torchgeo_debias.inference.export import export_package
from torchgeo_debias.inference.predictor import ChipPredictor
from torchgeo_debias.package import ModelPackage
from torchgeo_debias.training import TrainConfig, train

WAYS = [("torch", "32"), ("torch", "bf16"), ("onnx", "32"), ("onnx", "int8"), ("openvino", "32"), ("openvino", "bf16")]
BATCH, CLASSES, PER_CLASS = 8, 8, 25


def noise(chip: int) -> Chips:
    rng = np.random.default_rng(0)
    labels = np.arange(2 * CLASSES) % CLASSES
    return Chips(
        images=rng.integers(0, 256, (len(labels), 3, chip, chip), dtype=np.uint8),
        valid=np.ones((len(labels), chip, chip), dtype=bool),
        labels=labels,
        sources=np.arange(len(labels)).astype(str),
        table=ClassTable.from_counts({f"class {c}": 2 for c in range(CLASSES)}),
        spec=ChipSpec(chip, chip),
        bands=("red", "green", "blue"),
    )


def exported(chips: Chips) -> ModelPackage:
    return export_package(train(chips, TrainConfig(method="probe", views=1)).package)


def predictors(package: ModelPackage) -> dict[str, ChipPredictor]:
    return {
        f"{backend} {precision}": PackagePredictor(package, precision=cast(Any, precision))
        if backend == "torch"
        else ExportPredictor(package, cast(Any, backend), precision=cast(Any, precision))
        for backend, precision in WAYS
    }


def speed(package: ModelPackage, threads: int, repeats: int, calls: int) -> dict[str, Any]:
    size = package.spec.size
    images = np.random.default_rng(1).integers(0, 256, (BATCH, 3, size, size), dtype=np.uint8)
    valid = np.ones((BATCH, size, size), dtype=bool)
    models = predictors(package)
    for model in models.values():
        model.use_threads(threads)
        model.predict(images, valid)  # the first call makes it ready
    times: dict[str, list[Times]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            times[name].append(timed(lambda: [model.predict(images, valid) for _ in range(calls)]))  # noqa: B023
    reference = times["torch 32"]
    return {
        name: {
            "chips_per_s": round(Spread.of([BATCH * calls / t.wall for t in mine]).median, 1),
            "chips_per_cpu_s": round(Spread.of([BATCH * calls / t.cpu for t in mine]).median, 1),
            "times_torch_32_wall": Spread.of([r.wall / t.wall for r, t in zip(reference, mine, strict=True)]).median,
            "times_torch_32_cpu": Spread.of([r.cpu / t.cpu for r, t in zip(reference, mine, strict=True)]).median,
        }
        for name, mine in times.items()
    }


def agreement(data: Path, chip: int) -> dict[str, Any]:
    chips = read_folder(data, chip, split="train")
    rng = np.random.default_rng(0)
    classes = range(len(chips.table.names))
    take = np.concatenate([rng.permutation(np.flatnonzero(chips.labels == c))[:PER_CLASS] for c in classes])
    package = exported(chips.subset(np.sort(take)))
    test = read_folder(data, chip, split="test", classes=chips.table.names)
    found: dict[str, npt.NDArray[np.float32]] = {
        name: predict_chips(model, test, batch_size=BATCH).probabilities for name, model in predictors(package).items()
    }
    wanted = found["torch 32"]
    return {
        "chips": len(test),
        "of": {
            name: {
                "same_class": round(float((mine.argmax(axis=1) == wanted.argmax(axis=1)).mean()), 4),
                "accuracy": round(float((mine.argmax(axis=1) == test.labels).mean()), 4),
                "mean_difference": float(f"{np.abs(mine - wanted).mean():.2g}"),
                "max_difference": float(f"{np.abs(mine - wanted).max():.2g}"),
            }
            for name, mine in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="scene folder with train and test, for the agreement")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4, help="in one repeat")
    options = parser.parse_args()
    load = ForeignLoad()
    engines = {name: version(name) for name in ("onnxruntime", "openvino")}
    figures: dict[str, Any] = {"engines": engines, "batch": BATCH, "repeats": options.repeats}
    if options.data is not None:
        figures["agreement at 112 px"] = agreement(options.data, 112)
    for size in options.sizes:
        package = exported(noise(size))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            figures[f"{size} px, {threads} threads"] = speed(package, threads, options.repeats, options.calls)
    save("backends", load, figures)


if __name__ == "__main__":
    main()
