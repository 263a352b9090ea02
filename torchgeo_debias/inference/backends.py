"""The engines that compute a model package: torch, ONNX Runtime, OpenVINO.

Torch builds the model from the package's parts; the others read the ONNX file that
:func:`~torchgeo_debias.inference.export.export_package` put into it, and need no pretrained weights. Libraries are
imported when an engine is first used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError, PackageError
from torchgeo_debias.inference.classifier import PackageFace, PackagePredictor, decided
from torchgeo_debias.inference.predictor import ChipPredictor, Prediction
from torchgeo_debias.package import ONNX, ONNX_INT8, ModelPackage

Backend = Literal["torch", "onnx", "openvino"]
Precision = Literal["auto", "32", "bf16", "16", "int8"]


class Engine(Protocol):
    """A graph ready to run; :meth:`run` may be called from several threads at once."""

    def run(self, images: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.float32]]:
        """Probabilities (N, classes) of the model and, where it has one, of its twin.

        Args:
            images: (N, C, S, S) raw units, contiguous.
            valid: (N, S, S), contiguous.
        """
        ...


class OnnxEngine:
    """ONNX Runtime on the CPU."""

    def __init__(self, graph: bytes, precision: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait for work in a busy loop would take the cores that readers need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(  # noqa: D102
        self, images: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
    ) -> list[npt.NDArray[np.float32]]:
        return cast(list[npt.NDArray[np.float32]], self._session.run(None, {"images": images, "valid": valid}))


class OpenVinoEngine:
    """OpenVINO on the CPU.

    As many streams as threads leave cores for, so that calls from several threads run side by side; each calling
    thread has an inference request of its own.
    """

    def __init__(self, graph: bytes, precision: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        streams = max(1, cores() // threads)
        settings = {
            "INFERENCE_PRECISION_HINT": {"32": "f32", "bf16": "bf16"}[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * streams,
            "ENABLE_CPU_PINNING": False,  # the threads that read move freely, and so must these
        }
        self._model = core.compile_model(core.read_model(graph), "CPU", settings)
        self._local = threading.local()

    def run(  # noqa: D102
        self, images: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
    ) -> list[npt.NDArray[np.float32]]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        found = request.infer({"images": images, "valid": valid}, share_inputs=True)
        return [found[output] for output in self._model.outputs]


class _Kind(NamedTuple):
    """What there is to know of an engine before its library is imported: its graph for each precision."""

    make: type[OnnxEngine] | type[OpenVinoEngine]
    library: str
    graphs: Mapping[str, str]


ENGINES: Mapping[str, _Kind] = {
    "onnx": _Kind(OnnxEngine, "onnxruntime", {"32": ONNX, "int8": ONNX_INT8}),
    # ONNX Runtime's int8 graph is slower in OpenVINO than float32: it does not fuse its operators.
    "openvino": _Kind(OpenVinoEngine, "openvino", {"32": ONNX, "bf16": ONNX}),
}
_TORCH = ("32", "bf16", "16")


class ExportPredictor(PackageFace):
    """The :class:`~torchgeo_debias.inference.predictor.ChipPredictor` of an exported package, on one of the engines."""

    def __init__(self, package: ModelPackage, backend: Backend, *, precision: Precision = "auto") -> None:
        """Check that the engine can run; it is made ready by the first prediction.

        Args:
            package: With its export.
            backend: ``onnx`` or ``openvino``.
            precision: ``onnx``: ``32`` or ``int8``; ``openvino``: ``32`` or ``bf16``. ``auto``: bf16 with OpenVINO on
                processors that have it, else 32.

        Raises:
            ConfigError: If the engine lacks the precision or is not installed.
            PackageError: If the package has no such export, or one of another model.
        """
        kind = ENGINES[backend]
        check_installed(kind.library)
        if precision == "auto":
            precision = "bf16" if "bf16" in kind.graphs and computes_bf16() else "32"
        _check_precision(backend, precision, tuple(kind.graphs))
        if precision == "bf16" and not computes_bf16():
            raise ConfigError("OpenVINO does not compute in bf16 on this processor: use --precision 32.")
        super().__init__(package, backend, precision, "cpu")
        name = kind.graphs[precision]
        if name not in package.onnx:
            what = "no ONNX model" if ONNX not in package.onnx else f"no {precision} model"
            raise PackageError(f"The model package holds {what}: run 'torchgeo-debias export --model M' first.")
        if package.exports.get("model") != package.digest:
            raise PackageError(
                "The ONNX model in the package was made from another state of it: run 'torchgeo-debias export "
                "--model M' again."
            )
        self._graph = package.onnx[name]
        self._kind = kind
        self._threads = cores()
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, path: Path | str, backend: Backend, *, precision: Precision = "auto", thresholds: bool = True
    ) -> ExportPredictor:
        """Read a package; see :meth:`ModelPackage.load`, ``decided`` and the constructor."""
        predictor = cls(decided(ModelPackage.load(path), thresholds), backend, precision=precision)
        predictor.origin = Path(path).resolve()
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes load the package anew, with the precision that was found here."""
        return _reload, (self._home(), self.backend, self.precision, self.thresholds is not None)

    def use_threads(self, n: int) -> None:
        """Compute each call of :meth:`predict` on ``n`` cores; another number makes the engine anew."""
        with self._lock:
            if n != self._threads:
                self._threads, self._engine = n, None

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        """Class probabilities of one batch of chips (N, C, S, S), and those of the biased twin where there is one."""
        found = self._ready().run(np.ascontiguousarray(images, dtype=np.float32), np.ascontiguousarray(valid))
        return self._answer(found)

    def _ready(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._kind.make(self._graph, self.precision, self._threads)
            return self._engine

    def _marks(self) -> list[str]:
        # Another export of the same model may give other numbers.
        return [*super()._marks(), hashlib.sha256(self._graph).hexdigest()]


def load_predictor(
    path: Path | str,
    *,
    weights: str = "auto",
    precision: Precision = "auto",
    backend: Backend = "torch",
    thresholds: bool = True,
    views: int | None = None,
) -> ChipPredictor:
    """Read a model package and make it ready to predict.

    Args:
        path: Folder or ``.tgd`` file.
        weights: Where the backbone's weights come from, as in training; the other backends than torch need none.
        precision: ``torch``: ``32``, ``bf16`` or ``16``; ``onnx``: ``32`` or ``int8``; ``openvino``: ``32`` or
            ``bf16``. ``auto``: bf16 where processor and backend have it, else 32.
        backend: What computes.
        thresholds: Whether the package's thresholds decide on classes and its temperature on scores, where it has any.
        views: Symmetries of a chip that its features are averaged over, 1, 4 or 8; None: as many as at the training.
            1 is the fastest. What ``export`` prepared has its number fixed.

    Raises:
        ConfigError: If there is no such backend, it lacks the precision or is not installed, or the views do not go
            with it or with the thresholds.
        PackageError: If the package cannot be read or holds no export for the backend, or the weights do not fit it.
        WeightsError: If the weights cannot be had.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"Unknown backend {backend!r}: choose one of {', '.join(get_args(Backend))}.")
    if backend != "torch":
        if views is not None:
            raise ConfigError(
                f"The number of views is fixed in what {backend} computes: choose the backend torch, or train with "
                "that number."
            )
        return ExportPredictor.load(path, backend, precision=precision, thresholds=thresholds)
    if precision == "int8" or precision not in get_args(Precision):
        _check_precision(backend, precision, _TORCH)
    return PackagePredictor.load(
        path, weights=weights, precision=cast(Any, precision), thresholds=thresholds, views=views
    )


def check_installed(*libraries: str) -> None:
    """Refuse an engine whose libraries are not there.

    Raises:
        ConfigError: Naming what to install.
    """
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} cannot be imported: install torchgeo-debias[export].")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _check_precision(backend: str, precision: str, known: tuple[str, ...]) -> None:
    if precision not in known:
        raise ConfigError(
            f"The backend {backend} does not compute in {precision}: choose auto or {' or '.join(known)}, or another "
            "--backend."
        )


def _reload(path: Path, backend: Backend, precision: Precision, thresholds: bool) -> ExportPredictor:
    return ExportPredictor.load(path, backend, precision=precision, thresholds=thresholds)
