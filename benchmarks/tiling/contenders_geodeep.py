"""GeoDeep as its command line runs it: ``segment``, then ``save_mask_to_raster``.

Two of its filters are off, in its favour, since no other contender has them: small segments (by the model file) and
the 5 x 5 median over the finished map, for which it has no switch and which is therefore replaced here.
"""

from __future__ import annotations

from benchmarks.tiling.child import Job, Work, contend


def prepare(job: Job) -> Work:
    import geodeep
    from geodeep import geodeep as implementation
    from geodeep.segmentation import save_mask_to_raster

    if not job.options.get("median", False):
        implementation.median_filter = lambda mask, size: mask

    def work() -> None:
        mask = geodeep.segment(job.raster, job.model, output_type="raw", max_threads=job.threads)
        save_mask_to_raster(job.raster, mask, job.out)

    return work


if __name__ == "__main__":
    contend(prepare)
