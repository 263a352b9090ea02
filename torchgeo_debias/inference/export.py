"""A model package written as ONNX, for engines other than torch, with its agreement with torch measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.errors import ConfigError, DataError
from torchgeo_debias.inference.backends import ENGINES, ExportPredictor, check_installed, computes_bf16
from torchgeo_debias.inference.classifier import PackagePredictor, merged_backbones
from torchgeo_debias.inference.predictor import ChipPredictor
from torchgeo_debias.package import ONNX, ONNX_INT8, ModelPackage
from torchgeo_debias.progress import Progress, ProgressCallback, silent, track

Format = Literal["fp32", "int8"]

_OPSET = 20
_BATCH = 16
_MOST_CHIPS = 512
_TEXTURES = 64
_SEED = 0


def export_package(
    package: ModelPackage | Path | str,
    out: Path | str | None = None,
    *,
    formats: Sequence[Format] = ("fp32", "int8"),
    weights: str = "auto",
    chips: Chips | None = None,
    progress: ProgressCallback = silent,
) -> ModelPackage:
    """Put the whole model, from raw pixels to probabilities, into its package as ONNX.

    The graph takes ``images`` (N, C, S, S) float32 in raw units and ``valid`` (N, S, S) bool, any N, and gives
    ``probabilities`` (N, classes) float32 and, where the package has a biased twin, ``raw``. ``int8`` has the weights
    of all matrix products as small integers, one scale a column, and scales activations as they come (ONNX Runtime's
    dynamic quantisation). Convolutions stay float32: a pure CNN gets no such file.

    Every engine that is installed then classifies the same chips as torch in float32 does; how often and how far they
    differ goes into ``exports["agreement"]`` of the package.

    Args:
        package: The package or where it is.
        out: Where the package with its export goes; by default the place it was read from. A package given in memory
            without ``out`` is written nowhere.
        formats: ``fp32``, which is always there, and ``int8``.
        weights: Where the backbone's weights come from, as in training.
        chips: To measure the agreement on; by default patterns drawn from a seed, which say less about real images.
        progress: Told about the stages; may cancel.

    Returns:
        The package with its export.

    Raises:
        ConfigError: If a format is unknown or a library is missing.
        DataError: If the chips do not fit the model.
        PackageError: If the package cannot be read or its model cannot be written as ONNX.
        WeightsError: If the backbone's weights cannot be had.
        OutputError: If the package cannot be written.
    """
    unknown = sorted(set(formats) - set(get_args(Format)))
    if unknown:
        raise ConfigError(f"Unknown export format {unknown[0]!r}: choose among {', '.join(get_args(Format))}.")
    check_installed("onnx", "onnxscript", *(["onnxruntime"] if "int8" in formats else []))
    if not isinstance(package, ModelPackage):
        out = package if out is None else out
        package = ModelPackage.load(package)
    if chips is not None:
        _check_chips(chips, package)

    progress(Progress("export", 0, 2))
    files = {ONNX: _graph(package, weights)}
    progress(Progress("export", 1, 2))
    if "int8" in formats and (small := _quantise(files[ONNX])) is not None:
        files[ONNX_INT8] = small
    progress(Progress("export", 2, 2))
    about = {
        "model": package.digest,
        "opset": _OPSET,
        "formats": ["fp32", *(["int8"] if ONNX_INT8 in files else [])],
        "versions": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }
    exported = replace(package, onnx=files, exports=about)
    exported = replace(exported, exports={**about, "agreement": _agreement(exported, weights, chips, progress)})
    if out is not None:
        exported.save(out)
    return exported


_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


class _Whole(nn.Module):
    """From raw pixels to probabilities, of the model and its twin."""

    def __init__(self, package: ModelPackage, weights: str) -> None:
        super().__init__()
        self._normalisation: Normalisation = package.normalisation
        self.backbones = nn.ModuleList(merged_backbones(package, weights))
        self.heads = nn.ModuleList()
        for part in (package.model, package.raw):
            if part is not None:
                head = nn.Linear(*part.head.weight.shape[::-1])
                head.load_state_dict(
                    {"weight": torch.from_numpy(part.head.weight), "bias": torch.from_numpy(part.head.bias)}
                )
                self.heads.append(nn.Sequential(_UnitLength(), head) if part.head.cosine else head)
        for first, second in zip(*(b.named_modules() for b in self.backbones), strict=True) if package.raw else ():
            _tie(first[1], second[1])

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        normal = self._normalisation(images, valid)
        pairs = zip(self.backbones, self.heads, strict=True)
        return tuple(cast(Tensor, head(backbone(normal))).softmax(dim=1) for backbone, head in pairs)


class _UnitLength(nn.Module):
    """What a cosine head does to features (N, D) first."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features)


def _tie(first: nn.Module, second: nn.Module) -> None:
    """Give ``second`` the very parameters of ``first`` where both stand in the same memory: they are written once."""
    for name, parameter in first.named_parameters(recurse=False):
        other = getattr(second, name)
        if other.data_ptr() == parameter.data_ptr():
            setattr(second, name, parameter)


def _graph(package: ModelPackage, weights: str) -> bytes:
    size, bands = package.spec.size, len(package.bands)
    example = (torch.zeros(2, bands, size, size), torch.ones(2, size, size, dtype=torch.bool))
    program = torch.onnx.export(
        _Whole(package, weights).eval(),
        example,
        dynamo=True,
        verbose=False,
        opset_version=_OPSET,
        input_names=["images", "valid"],
        output_names=["probabilities", "raw"][: 1 if package.raw is None else 2],
        dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}, "valid": {0: torch.export.Dim.DYNAMIC}},
    )
    model = cast(torch.onnx.ONNXProgram, program).model_proto
    # Shapes of what lies between, which other tools work out anew and trip over where they change the graph.
    del model.graph.value_info[:]
    return cast(bytes, model.SerializeToString())


def _quantise(graph: bytes) -> bytes | None:
    """The graph with the weights of its matrix products in 8 bits; None where the backbone has none."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load_from_string(graph)
    add_pre_process_metadata(model)  # says that constants are folded, as torch's exporter did, or it warns of it
    weights = {tensor.name for tensor in model.graph.initializer}
    if not any(node.op_type == "MatMul" and weights & set(node.input) for node in model.graph.node):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Processors without VNNI add products up in 16 bits, which weights of the full 8 bits overflow.
            reduce_range=True,
        )
        return path.read_bytes()


def _agreement(package: ModelPackage, weights: str, chips: Chips | None, progress: ProgressCallback) -> dict[str, Any]:
    """How often and how far the installed engines differ from torch in float32, on the model without its twin."""
    if chips is None:
        images, valid = _textures(package)
    else:
        take = np.unique(np.linspace(0, len(chips) - 1, min(len(chips), _MOST_CHIPS)).astype(int))
        images, valid = chips.images[take], chips.valid[take]

    def probabilities(predictor: ChipPredictor) -> npt.NDArray[np.float32]:
        starts = range(0, len(images), _BATCH)
        return np.concatenate([predictor.predict(images[i : i + _BATCH], valid[i : i + _BATCH])[0] for i in starts])

    wanted = probabilities(PackagePredictor(package, weights=weights, precision="32"))
    pairs = [("torch", "bf16")] + [
        (backend, precision)
        for backend, kind in ENGINES.items()
        if _version(kind.library) is not None
        for precision, name in kind.graphs.items()
        if name in package.onnx and (precision != "bf16" or computes_bf16())
    ]
    table: dict[str, Any] = {}
    for backend, precision in track(pairs, "compare", progress):
        if backend == "torch":
            found = probabilities(PackagePredictor(package, weights=weights, precision=cast(Any, precision)))
        else:
            found = probabilities(ExportPredictor(package, cast(Any, backend), precision=cast(Any, precision)))
        apart = np.abs(found - wanted)
        table[f"{backend} {precision}"] = {
            "same_class": round(float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()), 4),
            "max_difference": float(f"{apart.max():.2g}"),
            "mean_difference": float(f"{apart.mean():.2g}"),
        }
    source = f"textures drawn from seed {_SEED}" if chips is None else "given"
    return {"chips": len(images), "source": source, "with": "torch 32", "of": table}


def _textures(package: ModelPackage) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Chips of noise on four scales, spread as the training data was; a quarter of them half without data."""
    rng = np.random.default_rng(_SEED)
    size, bands = package.spec.size, len(package.bands)
    noise = np.zeros((_TEXTURES, bands, size, size))
    for scale in (1, 4, 16, size):
        side = -(-size // scale)
        coarse = rng.normal(size=(_TEXTURES, bands, side, side)).repeat(scale, axis=2).repeat(scale, axis=3)
        noise += coarse[:, :, :size, :size] * rng.uniform(0.2, 1, (_TEXTURES, 1, 1, 1))
    spread = package.normalisation
    mean, std = (np.reshape(part, (-1, 1, 1)) for part in (spread.mean, spread.std))
    values = mean + std * noise
    if spread.stretch != "none":
        low = np.reshape(spread.low, (-1, 1, 1))
        high = np.reshape(spread.high, (-1, 1, 1))
        unstretch: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
            "sqrt": np.square,
            "log": np.expm1,
            "percentile": lambda x: x * (high - low),
        }
        values = low + unstretch[spread.stretch](values.clip(min=0))
    dtype = np.dtype(package.dtype)
    if dtype.kind in "iu":
        values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    valid = np.ones((_TEXTURES, size, size), dtype=bool)
    valid[::4, :, : size // 2] = False
    return np.where(valid[:, None], values, 0).astype(dtype), valid


def _check_chips(chips: Chips, package: ModelPackage) -> None:
    shape = (len(package.bands), package.spec.size, package.spec.size)
    if not len(chips) or chips.images.shape[1:] != shape:
        raise DataError(
            f"The chips to compare on have the shape {chips.images.shape}, the model takes {('any number', *shape)}; "
            "read them with the chip size and the bands of the model."
        )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
