"""Plain TorchGeo: ``RasterDataset``, ``GridGeoSampler`` and a ``DataLoader`` around the model, rasterio for the map."""

from __future__ import annotations

from benchmarks.tiling.child import Job, Work, contend, session


def prepare(job: Job) -> Work:
    import numpy as np
    import onnxruntime  # noqa: F401 - part of the base line
    import rasterio
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    from benchmarks.tiling.grids import STRIDE, TILE, lay

    torch.set_num_threads(job.threads)

    def work() -> None:
        dataset = RasterDataset(paths=[job.raster])
        sampler = GridGeoSampler(dataset, size=TILE, stride=STRIDE)
        loader = DataLoader(
            dataset, batch_size=1, sampler=sampler, num_workers=job.options["workers"], collate_fn=stack_samples
        )
        with rasterio.open(job.raster) as source:
            profile, to_pixels = source.profile | {"count": 1, "nodata": None}, ~source.transform
        ids = np.zeros((profile["height"], profile["width"]), dtype=np.uint8)
        batches = iter(loader)  # forks its workers before there is a session with threads
        model = session(job.model, job.threads)
        for batch in batches:
            x, y, _ = batch["bounds"][0]
            left, top = to_pixels @ (x.start, y.stop)
            scores = model.run(None, {"images": (batch["image"] / 255).numpy()})[0][0]
            lay(ids, scores.argmax(axis=0), round(left), round(top))
        del batches  # ends the workers, whose processor time counts only then
        with rasterio.open(job.out, "w", **profile) as target:
            target.write(ids, 1)

    return work


if __name__ == "__main__":
    contend(prepare)
