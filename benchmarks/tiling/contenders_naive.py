"""The loop that one writes first: read a window, ask the model, keep its middle, write the map at the end."""

from __future__ import annotations

from benchmarks.tiling.child import Job, Work, contend, session


def prepare(job: Job) -> Work:
    import numpy as np
    import onnxruntime  # noqa: F401 - part of the base line
    import rasterio
    from rasterio.windows import Window

    from benchmarks.tiling.grids import TILE, lay, starts

    def work() -> None:
        model = session(job.model, job.threads)
        with rasterio.open(job.raster) as source:
            ids = np.zeros(source.shape, dtype=np.uint8)
            for top in starts(source.height):
                for left in starts(source.width):
                    pixels = source.read(window=Window(left, top, TILE, TILE)) / np.float32(255)
                    lay(ids, model.run(None, {"images": pixels[None]})[0][0].argmax(axis=0), left, top)
            profile = source.profile | {"count": 1, "nodata": None}
        with rasterio.open(job.out, "w", **profile) as target:
            target.write(ids, 1)

    return work


if __name__ == "__main__":
    contend(prepare)
