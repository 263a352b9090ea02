"""geoai's ``predict_geotiff`` with its default blending.

It takes a torch module. Given the same net, it may run it in torch (``net: torch``) or through ONNX Runtime inside of
a module (``net: onnx``), which leaves no difference but the engine around the model.
"""

from __future__ import annotations

from typing import Any

from benchmarks.tiling.child import Job, Work, contend, session


def prepare(job: Job) -> Work:
    from pathlib import Path

    import numpy as np
    import onnxruntime  # noqa: F401 - part of the base line
    import torch
    from geoai import utils  # noqa: F401 - the function imports it on its first call
    from geoai.inference import predict_geotiff

    from benchmarks.tiling.grids import OVERLAP, TILE

    torch.set_num_threads(job.threads)

    class Onnx(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.session = session(job.model, job.threads)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.session.run(None, {"images": images.numpy()})[0])

    def net() -> torch.nn.Module:
        if job.options.get("net", "onnx") == "onnx":
            return Onnx()
        from benchmarks.tiling.models import load

        return load(Path(job.model))

    def work() -> None:
        def ids(scores: Any) -> Any:  # noqa: ANN401
            return scores.argmax(axis=0)[None].astype(np.uint8)

        predict_geotiff(
            net(),
            job.raster,
            job.out,
            tile_size=TILE,
            overlap=OVERLAP,
            batch_size=job.options.get("batch", 1),
            num_classes=2,
            output_dtype="uint8",
            output_nodata=255,
            postprocess_fn=ids,
            device="cpu",
            compress="deflate",
            verbose=False,
        )

    return work


if __name__ == "__main__":
    contend(prepare)
