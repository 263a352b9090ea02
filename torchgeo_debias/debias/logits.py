"""Logit adjustment (Menon et al., ICLR 2021): take the label prior into account, in training or afterwards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable


def log_priors(table: ClassTable, tau: float) -> npt.NDArray[np.float32]:
    """The adjustment ``tau * log(pi)`` of each class, shape (C,).

    In training it is *added* to the logits inside the cross-entropy (with ``tau = 1`` this is balanced softmax);
    after training on plain cross-entropy it is *subtracted* from the logits. Both make the decision one of balanced
    error instead of plain error; ``tau = 0`` changes nothing.
    """
    return (tau * np.log(table.priors)).astype(np.float32)
