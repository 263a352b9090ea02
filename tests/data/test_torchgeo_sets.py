from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch.utils.data import DataLoader

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.data.chips import Chips, ChipSpec
from torchgeo_debias.data.torchgeo_sets import ChipDataset, load
from torchgeo_debias.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
CLASSES = ("forest", "river")


def save_image(path: Path, side: int = 256) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return array


def zip_up(root: Path, folder: str, archive: str) -> None:
    shutil.make_archive(str(root / Path(archive).stem), "zip", root, folder)
    shutil.rmtree(root / folder.split("/")[0])


@pytest.fixture
def ucmerced(tmp_path: Path) -> Path:
    for name in CLASSES:
        for i in range(3):
            save_image(tmp_path / "UCMerced_LandUse" / "Images" / name / f"{name}{i:02d}.tif")
    zip_up(tmp_path, "UCMerced_LandUse", "UCMerced_LandUse.zip")
    for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (2,))):
        (tmp_path / f"uc_merced-{split}.txt").write_text("\n".join(f"{c}{i:02d}.tif" for c in CLASSES for i in numbers))
    return tmp_path


def test_ucmerced(ucmerced: Path) -> None:
    chips = load("ucmerced", ucmerced, "train", 32)
    assert chips.images.shape == (4, 3, 32, 32)
    assert chips.images.dtype == np.uint8
    assert chips.table.names == CLASSES
    assert chips.labels.tolist() == [0, 0, 1, 1]
    assert chips.sources[0] == "UCMerced_LandUse/Images/forest/forest00.tif"
    assert (chips.spec.window, chips.bands) == (256, ("red", "green", "blue"))
    assert not set(chips.sources) & set(load("ucmerced", ucmerced, "test", 32).sources)


def test_resisc45(tmp_path: Path) -> None:
    arrays = {name: save_image(tmp_path / "NWPU-RESISC45" / name / f"{name}_001.jpg", 64) for name in CLASSES}
    zip_up(tmp_path, "NWPU-RESISC45", "NWPU-RESISC45.zip")
    for split in ("train", "val", "test"):
        (tmp_path / f"resisc45-{split}.txt").write_text("\n".join(f"{c}_001.jpg" for c in CLASSES))
    chips = load("resisc45", tmp_path, "val", 64)
    assert chips.labels.tolist() == [0, 1]
    assert abs(chips.images[1].mean() - arrays["river"].mean()) < 3


def test_eurosat_keeps_thirteen_bands_and_their_values(tmp_path: Path) -> None:
    base = tmp_path / "ds" / "images" / "remote_sensing" / "otherDatasets" / "sentinel_2" / "tif"
    array = RNG.integers(0, 10_000, (13, 64, 64), dtype=np.uint16)
    for name in CLASSES:
        (base / name).mkdir(parents=True)
        with rasterio.open(
            base / name / f"{name}_1.tif", "w", driver="GTiff", count=13, height=64, width=64, dtype="uint16"
        ) as target:
            target.write(array)
    zip_up(tmp_path, "ds", "EuroSATallBands.zip")
    (tmp_path / "eurosat-train.txt").write_text("\n".join(f"{c}_1.jpg" for c in CLASSES))
    chips = load("eurosat", tmp_path, "train", 64)
    assert chips.images.dtype == np.uint16
    np.testing.assert_array_equal(chips.images[0], array)
    assert chips.bands[-1] == "B8A"
    assert chips.spec.gsd == 10


def write_dota(root: Path, split: str, image: str, boxes: list[tuple[list[float], str]], header: bool = False) -> None:
    """Annotations, and the list of samples, in the form of TorchGeo's archives."""
    lines = ["imagesource:GoogleEarth", "gsd:0.14"] if header else []
    lines += [" ".join(f"{v:.1f}" for v in corners) + f" {name} 0" for corners, name in boxes]
    stem = Path(image).stem
    annotation = root / split / "annotations" / "version1.0" / f"{stem}.txt"
    annotation.parent.mkdir(parents=True, exist_ok=True)
    annotation.write_text("\n".join(lines))
    table = root / "samples.csv"
    if not table.exists():
        table.write_text("image_path,annotation_path,split,version\n")
    with table.open("a") as file:
        file.write(f"{split}/images/{image},{annotation.relative_to(root).as_posix()},{split},1.0\n")


def pack_dota(root: Path, split: str) -> None:
    for part in ("images", "annotations"):
        with tarfile.open(root / f"dotav1.0_{part}_{split}.tar.gz", "w:gz") as archive:
            archive.add(root / split / part, f"{split}/{part}")
    shutil.rmtree(root / split)


def test_dota_crops_squares_round_its_boxes(tmp_path: Path) -> None:
    array = save_image(tmp_path / "train" / "images" / "P0001.png", 100)
    tilted = [40.0, 20.0, 60.0, 40.0, 40.0, 60.0, 20.0, 40.0]
    corner = [90.0, 0.0, 99.0, 0.0, 99.0, 19.0, 90.0, 19.0]
    write_dota(tmp_path, "train", "P0001.png", [(tilted, "helicopter"), (corner, "ship")], header=True)
    save_image(tmp_path / "train" / "images" / "P0002.png", 100)
    write_dota(tmp_path, "train", "P0002.png", [])
    pack_dota(tmp_path, "train")
    chips = load("dota", tmp_path, "train", 40, margin=0.0)
    assert len(chips.table.names) == 15
    assert [chips.table.names[c] for c in chips.labels] == ["helicopter", "ship"]
    assert chips.sources.tolist() == ["P0001", "P0001"]
    np.testing.assert_array_equal(chips.images[0], array[20:60, 20:60].transpose(2, 0, 1))
    assert chips.valid[0].all()
    # 9 x 19 box at the right edge: 19 px square, of which the image holds the left 15 columns
    assert chips.valid[1, :, :28].all()
    assert not chips.valid[1, :, 35:].any()
    assert chips.spec.window is None


@pytest.mark.parametrize("name", ["ucmerced", "eurosat", "resisc45", "dota"])
def test_missing_sets_say_what_to_do(tmp_path: Path, name: Any) -> None:
    with pytest.raises(DataError, match=f"data set {name} is not complete in .*let it be downloaded"):
        load(name, tmp_path, "train", 32)


def test_missing_list_of_files_is_a_missing_set(ucmerced: Path) -> None:
    (ucmerced / "uc_merced-val.txt").unlink()
    with pytest.raises(DataError, match="not complete"):
        load("ucmerced", ucmerced, "val", 32)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown data set 'mnist'; there are ucmerced"):
        load("mnist", tmp_path, "train", 32)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dota has no split 'test', only train, val"):
        load("dota", tmp_path, "test", 32)
    with pytest.raises(ConfigError, match=r"versions 1\.0"):
        load("dota", tmp_path, "train", 32, version="3")  # type: ignore[arg-type]


def test_chip_dataset_in_a_loader_and_on_paper() -> None:
    labels = np.asarray([0, 1, 1], dtype=np.int64)
    images = RNG.integers(0, 5000, (3, 4, 16, 16), dtype=np.uint16)
    chips = Chips(
        images,
        np.ones((3, 16, 16), dtype=bool),
        labels,
        np.asarray(["a", "b", "c"]),
        ClassTable.from_labels(labels, CLASSES),
        ChipSpec(16),
        ("nir", "red", "green", "blue"),
    )
    dataset = ChipDataset(chips, transforms=lambda sample: {**sample, "prediction": torch.tensor(0)})
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["image"].dtype == torch.float32
    np.testing.assert_array_equal(batch["image"].numpy(), images)
    assert batch["label"].tolist() == [0, 1, 1]
    with pytest.raises(IndexError):
        dataset[3]
    figure = dataset.plot(dataset[1], suptitle="chip")
    assert figure.axes[0].get_title() == "Label: river\nPrediction: forest"
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    # red, green and blue by name, not the first three bands
    colours = images[1, 1:].transpose(1, 2, 0).astype(float)
    low, high = np.percentile(colours, (2, 98))
    np.testing.assert_allclose(drawn, np.clip((colours - low) / (high - low), 0, 1))
    plt.close(figure)


@pytest.mark.real_data
def test_dota8_through_torchgeo(real_data: Path, tmp_path: Path) -> None:
    from torchgeo.datasets import DOTA

    total = 0
    for image in sorted((real_data / "dota8" / "images" / "val").iterdir()):
        (tmp_path / "val" / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "val" / "images")
        rows = [
            line.split() for line in (real_data / "dota8/labels/val" / f"{image.stem}.txt").read_text().splitlines()
        ]
        boxes = [([float(v) * 1024 for v in row[1:9]], DOTA.classes[int(row[0])]) for row in rows if row]
        total += len(boxes)
        write_dota(tmp_path, "val", image.name, boxes)
    chips = load("dota", tmp_path, "val", 32)
    assert len(chips) == total
    assert sum(chips.table.counts) == total
    assert len(set(chips.sources)) == 4
    assert chips.images.std() > 10
