"""Images with boxes round their objects: readers, sets of them, and the tiles that a detector is trained on.

Names are loaded on first use, so that importing this package imports neither torch nor torchgeo.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgeo_debias.data.objects.coco import read_coco
    from torchgeo_debias.data.objects.crops import chips_from_objects
    from torchgeo_debias.data.objects.dota import read_dota
    from torchgeo_debias.data.objects.layer import objects_from_layer
    from torchgeo_debias.data.objects.objects import LabelledImage, ObjectSet
    from torchgeo_debias.data.objects.picture import ArrayPicture, FilePicture, Picture, SourcePicture
    from torchgeo_debias.data.objects.tiles import ObjectTiles, Tile, TileSpec
    from torchgeo_debias.data.objects.torchgeo_objects import objects_from_torchgeo
    from torchgeo_debias.data.objects.yolo import read_yolo

__all__ = [
    "ArrayPicture",
    "FilePicture",
    "LabelledImage",
    "ObjectSet",
    "ObjectTiles",
    "Picture",
    "SourcePicture",
    "Tile",
    "TileSpec",
    "chips_from_objects",
    "objects_from_layer",
    "objects_from_torchgeo",
    "read_coco",
    "read_dota",
    "read_yolo",
]

_HOMES = {
    "coco": ("read_coco",),
    "crops": ("chips_from_objects",),
    "dota": ("read_dota",),
    "layer": ("objects_from_layer",),
    "objects": ("LabelledImage", "ObjectSet"),
    "picture": ("ArrayPicture", "FilePicture", "Picture", "SourcePicture"),
    "tiles": ("ObjectTiles", "Tile", "TileSpec"),
    "torchgeo_objects": ("objects_from_torchgeo",),
    "yolo": ("read_yolo",),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
