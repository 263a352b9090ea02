"""This library: ``classify_pixels``.

Options: ``blend`` (False keeps of each tile the part that is its alone, at the same stride), ``layer`` (a file for the
polygons of the map as well) and ``resources`` (else one call of the model a core).
"""

from __future__ import annotations

from benchmarks.tiling.child import Job, Work, contend


def prepare(job: Job) -> Work:
    from pathlib import Path

    import onnxruntime  # noqa: F401 - part of the base line

    from benchmarks.tiling.grids import OVERLAP, TILE
    from benchmarks.tiling.predictor import OnnxPixels
    from torchgeo_debias.inference import pixels
    from torchgeo_debias.inference.mapping import MapOptions, Outputs, Resources

    if not job.options.get("blend", True):

        class Cropping(pixels.CountingMerger):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments)  # type: ignore[arg-type]
                self._overlap = 0  # as if each tile were alone: its own part is taken as it is

        pixels.CountingMerger = Cropping  # type: ignore[misc, assignment]

    layer = job.options.get("layer")
    shares = {"batch_size": 1, "workers": job.threads, "threads": 1, "readers": 1}

    def work() -> dict[str, object]:
        summary = pixels.classify_pixels(
            Path(job.raster),
            OnnxPixels(Path(job.model)),
            Outputs(Path(layer) if layer else None, Path(job.out), shape="regions" if layer else "tiles"),
            MapOptions(overlap=OVERLAP / TILE),
            resources=Resources(**(job.options.get("resources", shares))),
        )
        return {"notes": summary.notes}

    return work


if __name__ == "__main__":
    contend(prepare)
