"""Data and models for the plugin's tests, made in the worker's own environment: ``python make_sample.py FOLDER``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import timm
import torch
from rasterio.enums import ColorInterp
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import tiny, tiny_objects  # noqa: E402 (found through the line above)
from tests.inference.masks.test_sam import sam  # noqa: E402
from torchgeo_debias import TrainConfig, train  # noqa: E402
from torchgeo_debias.data.chips import ChipSpec  # noqa: E402
from torchgeo_debias.data.layers import chips_from_layer  # noqa: E402
from torchgeo_debias.data.objects import objects_from_layer  # noqa: E402
from torchgeo_debias.training.detection import train_detector  # noqa: E402

SIDE = 256
FIELD = 32
CRS = "EPSG:32633"
LEFT, TOP = 500_000.0, 5_400_000.0


def write_scene(folder: Path) -> None:
    """A raster of 1 m pixels with a coloured rectangle in each field of 32, blue ones rare, and a layer of these."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 130, (3, SIDE, SIDE)).astype(np.uint8)
    classes = rng.choice(3, (SIDE // FIELD) ** 2, p=[0.6, 0.3, 0.1])
    shapes = []
    for number, label in enumerate(classes):
        row, column = (FIELD * place for place in divmod(number, SIDE // FIELD))
        width, height = rng.integers(10, 22, 2)
        x, y = column + rng.integers(3, 30 - width), row + rng.integers(3, 30 - height)
        pixels[:, y : y + height, x : x + width] = tiny_objects.COLOURS[label][:, None, None]
        shapes.append(shapely.box(LEFT + x, TOP - y - height, LEFT + x + width, TOP - y))
    transform = rasterio.transform.from_origin(LEFT, TOP, 1, 1)
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8", "crs": CRS}
    with rasterio.open(folder / "scene.tif", "w", transform=transform, **profile) as file:
        file.write(pixels)
    gpkg = {**profile, "driver": "GPKG"}
    profile |= {"count": 5, "photometric": "MINISBLACK"}
    with rasterio.open(folder / "five.tif", "w", transform=transform, **profile) as file:
        file.write(np.concatenate([pixels[::-1], pixels[:2]]))
    with rasterio.open(folder / "rasters.gpkg", "w", transform=transform, RASTER_TABLE="scene", **gpkg) as file:
        file.write(pixels)
    degrees = {**gpkg, "driver": "GTiff", "crs": "EPSG:4326"}
    place = rasterio.transform.from_origin(15, 48.753013, 1 / 73_400, 1 / 111_200)  # 1 m
    with rasterio.open(folder / "degrees.tif", "w", transform=place, **degrees) as file:
        file.write(pixels)
    special = {**gpkg, "driver": "GTiff", "count": 2, "dtype": "int16", "nodata": -7}
    with rasterio.open(folder / "special.tif", "w", transform=transform, **special) as file:
        file.write(pixels[:2].astype(np.int16) - 97)
        file.set_band_description(1, "depth")
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    names = np.array(tiny_objects.NAMES)[classes]
    layer = gpd.GeoDataFrame({"kind": names, "number": range(len(names))}, geometry=shapes, crs=CRS)
    layer.to_file(folder / "labels.gpkg", layer="labels", VERSION="1.2")


def write_models(folder: Path) -> None:
    """The cheapest classifier and detector that keep a twin, and a SAM that knows nothing."""
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict(), weights)
    raster, labels = [folder / "scene.tif"], folder / "labels.gpkg"
    chips = chips_from_layer(raster, labels, "kind", ChipSpec(tiny.CHIP, 32))
    config = TrainConfig(backbone=tiny.BACKBONE, weights=str(weights), epochs=2, precision="32")
    train(chips, config).package.save(folder / "classifier.tgd")
    objects = objects_from_layer(raster, labels, "kind", oriented=True, block=64)
    settings = tiny_objects.settings(weights, method="deblora", oriented=True, epochs=4)
    train_detector(objects, tiny_objects.TILES, settings).package.save(folder / "detector.tgd")
    encoder = ImageEncoderViT(
        img_size=128, embed_dim=32, depth=2, num_heads=2, mlp_ratio=3.0, out_chans=256, use_rel_pos=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), window_size=14, global_attn_indexes=(1,),
    )  # fmt: skip
    torch.save(sam(encoder, grid=8).state_dict(), folder / "sam.pth")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_scene(target)
    write_models(target)
