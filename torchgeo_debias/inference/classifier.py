"""A model package made ready to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from torchgeo_debias.backbones import Backbone, Precision, create_backbone, pick_device, pick_dtype
from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import ChipSpec
from torchgeo_debias.debias import LinearHead
from torchgeo_debias.errors import PackageError
from torchgeo_debias.inference.predictor import Prediction
from torchgeo_debias.package import Adapter, ModelPackage

_MAIN, _RAW = "default", "raw"
_BATCH = 64


class PackagePredictor:
    """The :class:`~torchgeo_debias.inference.predictor.ChipPredictor` of a model package.

    Attributes:
        package: What it was made from.
    """

    def __init__(self, package: ModelPackage, *, weights: str = "auto", precision: Precision = "auto") -> None:
        """Build the backbone and attach the trained parts.

        Args:
            package: A loaded package.
            weights: Where the backbone's weights come from, as in training.
            precision: As in training; ``32`` gives the most repeatable scores across machines.

        Raises:
            PackageError: If the weights are not those the package was trained on, or a part does not fit.
            WeightsError: If the weights cannot be had.
        """
        self.package = package
        self.device = pick_device()
        self.dtype_ = pick_dtype(precision, self.device)
        self._backbone = _assemble(package, weights)
        self._backbone.to(self.device).eval()
        self._backbone.prefer(self.device, self.dtype_)

    @classmethod
    def load(cls, path: Path | str, *, weights: str = "auto", precision: Precision = "auto") -> PackagePredictor:
        """Read a package and make it ready; see :meth:`ModelPackage.load` and the constructor."""
        return cls(ModelPackage.load(path), weights=weights, precision=precision)

    @property
    def table(self) -> ClassTable:
        """The classes."""
        return self.package.table

    @property
    def spec(self) -> ChipSpec:
        """How chips are cut."""
        return self.package.spec

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the input bands."""
        return self.package.bands

    @property
    def dtype(self) -> str:
        """Pixel type of the training data."""
        return self.package.dtype

    def predict(self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> Prediction:
        """Class probabilities of one batch of chips (N, C, S, S), and those of the biased twin where there is one."""
        raw = self.package.raw
        main = self._probabilities(images, valid, _MAIN, self.package.model.head)
        return Prediction(main, None if raw is None else self._probabilities(images, valid, _RAW, raw.head))

    def features(
        self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_], raw: bool = False
    ) -> npt.NDArray[np.float32]:
        """Features (N, dim) of any number of chips under the de-biased LoRA, or under that of the biased twin."""
        adapter = _RAW if raw else _MAIN
        starts = range(0, max(len(images), 1), _BATCH)
        return np.concatenate([self._features(images[i : i + _BATCH], valid[i : i + _BATCH], adapter) for i in starts])

    def _probabilities(
        self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_], adapter: str, head: LinearHead
    ) -> npt.NDArray[np.float32]:
        logits = torch.from_numpy(head.logits(self._features(images, valid, adapter)))
        return cast(npt.NDArray[np.float32], logits.softmax(dim=1).numpy())

    def _features(
        self, images: npt.NDArray[Any], valid: npt.NDArray[np.bool_], adapter: str
    ) -> npt.NDArray[np.float32]:
        if self.package.raw is not None:
            cast(Any, self._backbone.model).set_adapter(adapter)
        plain = images.astype(np.int32) if images.dtype == np.uint16 else images
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype_, enabled=self.dtype_ != torch.float32),
        ):
            batch = torch.from_numpy(np.ascontiguousarray(plain)).to(self.device)
            mask = torch.from_numpy(np.ascontiguousarray(valid)).to(self.device)
            features = self._backbone(self.package.normalisation(batch, mask))
        return cast(npt.NDArray[np.float32], features.float().cpu().numpy())


def _assemble(package: ModelPackage, weights: str) -> Backbone:
    info = package.backbone
    # Where all weights were trained, the package carries them and the pretrained ones are not needed.
    source = weights if package.finetuned is None else "random"
    backbone = create_backbone(
        info.name, size=package.spec.size, bands=package.bands, pool=cast(Any, info.pool), weights=source
    )
    if package.finetuned is not None:
        wanted = {name: tuple(t.shape) for name, t in backbone.model.state_dict().items()}
        if wanted != {name: tuple(t.shape) for name, t in package.finetuned.items()}:
            raise PackageError(f"The weights in the model package do not fit the backbone {info.name}; train it again.")
        backbone.model.load_state_dict(package.finetuned)
    elif backbone.digest != info.digest:
        raise PackageError(
            f"The weights of {info.name} on this machine are not those the model was trained on (digest "
            f"{backbone.digest[:12]} instead of {info.digest[:12]}): give the right ones with --weights."
        )
    for name, part in ((_MAIN, package.model), (_RAW, package.raw)):
        if part is not None and part.adapter is not None:
            _attach(backbone, part.adapter, name)
    return backbone


def _attach(backbone: Backbone, adapter: Adapter, name: str) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    try:
        config = LoraConfig(**{key: value for key, value in adapter.config.items() if key in _LORA_FIELDS})
        if isinstance(backbone.model, PeftModel):
            backbone.model.add_adapter(name, config)
        else:
            backbone.model = get_peft_model(backbone.model, config, adapter_name=name)
    except (TypeError, ValueError) as error:  # peft found none of the named modules, or no sense in the settings
        raise PackageError(f"The adapter does not fit the backbone {backbone.spec.name}: {error}") from error
    model = cast(PeftModel, backbone.model)
    wanted = {key: tuple(t.shape) for key, t in get_peft_model_state_dict(model, adapter_name=name).items()}
    if wanted != {key: tuple(t.shape) for key, t in adapter.tensors.items()}:
        raise PackageError(f"The adapter does not fit the backbone {backbone.spec.name}; train the model again.")
    set_peft_model_state_dict(model, adapter.tensors, adapter_name=name)


_LORA_FIELDS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
