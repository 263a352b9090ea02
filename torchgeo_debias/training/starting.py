"""The model that a training goes on from: its adapter is where the new one begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torchgeo_debias.backbones import AdapterSettings, Backbone, add_adapter, attach_adapter, continue_adapter
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.package import Adapter, ModelPackage


def check_start(path: str | None) -> None:
    """Refuse a model that no training can start from, before the work that leads to it.

    Args:
        path: Of its package, None for none.

    Raises:
        PackageError, ConfigError: See :meth:`Start.load`.
    """
    if path is not None:
        Start.load(path)


class Start(NamedTuple):
    """What is taken of an earlier model.

    Attributes:
        name: Of its package, for sentences.
        adapter: As it was trained.
        backbone: SHA-256 of the pretrained tensors that it belongs on.
        digest: Of the whole model.
    """

    name: str
    adapter: Adapter
    backbone: str
    digest: str

    @classmethod
    def load(cls, path: str) -> Start:
        """Read a model package.

        Raises:
            PackageError: If it is missing or damaged, or for another task.
            ConfigError: If it has no adapter.
        """
        package = ModelPackage.load(path)
        if package.model.adapter is None:
            raise ConfigError(
                f"The model {path} has no adapter to start from, it was trained by the method "
                f"{package.method.get('method')}: give one of lora or deblora."
            )
        return cls(Path(path).name, package.model.adapter, package.backbone.digest, package.digest)

    @property
    def facts(self) -> dict[str, Any]:
        """What a package remembers of the model that it came from."""
        return {"model": self.name, "digest": self.digest}

    def trainable(self, backbone: Backbone, settings: AdapterSettings) -> Backbone:
        """Put the adapter on a backbone, in place, to be trained on.

        Raises:
            ConfigError: If it belongs on another one, or is of another kind or size than the settings say.
        """
        self._check(backbone)
        try:
            return continue_adapter(add_adapter(backbone, settings), *self._state)
        except ConfigError as error:
            raise ConfigError(f"The training cannot start from the model {self.name}: {error}") from error

    def frozen(self, backbone: Backbone) -> Backbone:
        """Put the adapter on a backbone, in place, to be used as it is.

        Raises:
            ConfigError: If it belongs on another one.
        """
        self._check(backbone)
        return attach_adapter(backbone, *self._state)

    @property
    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.adapter.config, self.adapter.tensors

    def _check(self, backbone: Backbone) -> None:
        if self.backbone != backbone.digest:
            raise ConfigError(
                f"The training cannot start from the model {self.name}: it was trained on other weights than those of "
                f"{backbone.spec.name} here; give its backbone and weights."
            )
