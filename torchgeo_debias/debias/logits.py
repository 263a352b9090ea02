"""Logit adjustment (Menon et al., ICLR 2021): take the label prior into account, in training or afterwards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable


def logit_adjustment(table: ClassTable, tau: float) -> npt.NDArray[np.float32]:
    """The adjustment ``tau * log(pi_c / q_c)`` of each class, shape (C,).

    In training it is *added* to the logits inside the cross-entropy (with ``tau = 1`` this is balanced softmax);
    after training on plain cross-entropy it is *subtracted* from the logits. Both aim the decision at the label
    distribution ``q`` instead of the training priors ``pi``; ``tau = 0`` changes nothing.

    ``q`` is even over the object classes. A background class keeps its share of the training chips: most of a map is
    background, and to call it as likely as each object class would fill the map with rare things.
    """
    priors = table.priors
    objects = table.objects
    aim = np.where(objects, priors[objects].sum() / objects.sum(), priors)
    return (tau * np.log(priors / aim)).astype(np.float32)
