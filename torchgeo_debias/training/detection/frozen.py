"""Maps of a backbone of which nothing is trained, computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from torchgeo_debias.backbones import Backbone
from torchgeo_debias.data.normalise import Normalisation
from torchgeo_debias.training.detection.batches import Batch, Draw


class FrozenMaps:
    """Each tile passes the backbone once in each position, as far as memory allows.

    The backbone computes as when it predicts (no dropout), and for one tile at a time: what comes out then hangs
    neither on what is kept nor on the company in a batch, so that an interrupted run goes on to the same end.
    """

    def __init__(self, backbone: Backbone, normalisation: Normalisation, cache_mb: int) -> None:
        """Nothing is computed yet.

        Args:
            backbone: Has no parameter that is trained.
            normalisation: Of the pixels.
            cache_mb: Memory for maps, MiB.
        """
        self._backbone = backbone
        self._normalisation = normalisation
        self._kept: dict[Draw, list[Tensor]] = {}
        self._room = cache_mb * 2**20

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Maps (B, channels, S / stride, S / stride) of the tiles of a batch, from fine to coarse, without gradient."""
        tiles = [self._of_tile(batch, index, draw) for index, draw in enumerate(batch.draws())]
        return [torch.cat(level) for level in zip(*tiles, strict=True)]

    @torch.no_grad()
    def _of_tile(self, batch: Batch, index: int, draw: Draw) -> list[Tensor]:
        device = batch.images.device
        if draw in self._kept:
            return [each.to(device) for each in self._kept[draw]]
        self._backbone.eval()
        one = slice(index, index + 1)
        maps = self._backbone.maps(self._normalisation(batch.images[one], batch.valid[one]))
        self._room -= sum(each.nbytes for each in maps)
        if self._room >= 0:  # once there was no room for one, there is none for any other
            self._kept[draw] = [each.cpu() for each in maps]
        return maps
