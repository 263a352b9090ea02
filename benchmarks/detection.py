"""Detectors: ships with oriented boxes, methods on a long tail (SIMD, a synthetic scene), and eight tiles of DOTA.

Run::

    python -m benchmarks.detection ships --data DIR            # HRSC2016, split by image 80/20: oriented AP50
    python -m benchmarks.detection longtail --data DIR         # SIMD, folds by image: AP50 by group and method
    python -m benchmarks.detection overfit --data DIR          # DOTA8, trained and tested on the same eight tiles
    python -m benchmarks.detection scene --data DIR            # synthetic, drawn into DIR: AP50 by group and method

Every run is a record in ``benchmarks/results/detection/``, named by a digest of all that it hangs on, and is not done
again; a table of what is there is printed at the end. No choice was made on the held-out images: epochs, learning rate
and sizes are fixed beforehand, alike for all methods, and no epoch is picked. Records of SIMD hold the boxes found,
so that average precision is taken once over the images of all folds, with groups by the counts of the whole set: a
class may have objects in one fold alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely

from benchmarks.measure import RESULTS, machine
from torchgeo_debias.cli.show import bar
from torchgeo_debias.data.objects import ObjectSet, TileSpec, objects_from_layer, read_yolo
from torchgeo_debias.data.synthetic import COUNTS, write_scene
from torchgeo_debias.debias import DebiasSettings
from torchgeo_debias.detection import DetectorConfig
from torchgeo_debias.evaluation import summarise
from torchgeo_debias.evaluation.detection import DetectionScores, Guess, Truth, average_precision
from torchgeo_debias.files import atomic
from torchgeo_debias.inference.detection_evaluation import find_objects
from torchgeo_debias.inference.detector import DetectorPredictor
from torchgeo_debias.training import versions
from torchgeo_debias.training.detection import DETECT_METHODS, DetectConfig, train_detector

FOLDER = RESULTS / "detection"
GROUPS = ("head", "middle", "tail", "macro")
DOTA = (
    "plane", "ship", "storage-tank", "baseball-diamond", "tennis-court", "basketball-court", "ground-track-field",
    "harbor", "bridge", "large-vehicle", "small-vehicle", "helicopter", "roundabout", "soccer-ball-field",
    "swimming-pool",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """How one set is used.

    Attributes:
        tiles: How images are cut.
        oriented: Form of the boxes.
        epochs: Of every stage of debLoRA, of which it has two and a half, and of a method with one stage where
            `fair` is not set.
        fair: How many times as many epochs methods with one stage get.
        batch_size: Tiles a step.
        method: The one that is trained unless others are named.
        up: Of the detector.
        fields: Of the configuration, other than the defaults.
    """

    tiles: TileSpec
    oriented: bool
    epochs: int
    batch_size: int = 8
    fair: float = 1.0
    method: str = "lora"
    up: int = DetectorConfig.up
    fields: Mapping[str, Any] = field(default_factory=dict)


# Sizes are such that two cores train one model in minutes to an hour: HRSC2016 at 55 % of the (already reduced) images,
# SIMD at 33 %. DOTA has its full resolution, since its ships are 17 pixels wide, and a frozen backbone, which sees each
# tile once. Its learning rate is lower than the default, which learns eight tiles slowly (docs/detection.md).
STUDIES = {
    "ships": Study(TileSpec(280, scale=280 / 512), oriented=True, epochs=20, batch_size=4),
    "longtail": Study(TileSpec(336, scale=336 / 1024), oriented=False, epochs=20, batch_size=4),
    "overfit": Study(
        TileSpec(1022, scale=1022 / 1024),
        oriented=True,
        epochs=180,
        batch_size=4,
        method="probe",
        up=0,
        fields={"augment": False, "lr": 3e-4},
    ),
    "scene": Study(TileSpec(336), oriented=True, epochs=10, batch_size=1, fair=2.5),
}


def ships(data: Path) -> ObjectSet:
    """HRSC2016, one class."""
    return read_yolo(data / "hrsc_ships/images", data / "hrsc_ships/labels", ["ship"])


def simd(data: Path) -> ObjectSet:
    """SIMD, a natural long tail."""
    names = (data / "simd/classes.txt").read_text().split("\n")
    return read_yolo(data / "simd/images", None, [name for name in names if name.strip()])


def dota(data: Path) -> ObjectSet:
    """Eight tiles of DOTA."""
    folder = data / "dota8"
    images = next(path for path in (folder / "images", folder) if path.is_dir())
    labels = folder / "labels"
    return read_yolo(images, labels if labels.is_dir() else None, DOTA)


def scene(data: Path, seed: int) -> tuple[ObjectSet, ObjectSet]:
    """Eight kinds of objects: 52 to 9 labelled ones of each in the west, 12 of each in the east to test on."""
    names = list(COUNTS)[:8]
    counts = {name: round(52 * (9 / 52) ** (rank / 7)) for rank, name in enumerate(names)}
    folder = data / f"scene-{seed}"
    files = write_scene(folder, size=2048, seed=seed, counts=counts, test_count=12)
    with rasterio.open(files.raster) as raster:
        left, bottom, right, top = raster.bounds
    middle = (left + right) / 2
    west, east = shapely.box(left, bottom, middle, top), shapely.box(middle, bottom, right, top)
    kept = objects_from_layer([files.raster], files.labels, "class", oriented=True, area=west)
    held = objects_from_layer([files.raster], files.truth, "class", oriented=True, area=east, names=kept.table.names)
    return kept, held


def methods(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Fields of the configuration by name of a row."""
    known: dict[str, dict[str, Any]] = {
        **{name: {"method": name} for name in DETECT_METHODS},
        "deblora, fresh, all": {"method": "deblora", "align_start": "fresh", "align_on": "all"},
        "deblora, all": {"method": "deblora", "align_on": "all"},
        "deblora, pull 0.5": {"method": "deblora", "debias": DebiasSettings(pull=0.5)},
        "deblora, pull 0": {"method": "deblora", "debias": DebiasSettings(pull=0.0)},
        "deblora, global centre": {"method": "deblora", "debias": DebiasSettings(centre="global")},
    }
    return {name: known[name] for name in names}


def folds(objects: ObjectSet, count: int, seed: int) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Images to train on and to test on; those with the rarest classes are dealt out first, so each fold gets some."""
    counts = np.array(objects.table.counts)
    rng = np.random.default_rng(seed)
    rarest = np.array([counts[image.labels[~image.ignored]].min(initial=counts.max()) for image in objects.images])
    order = np.lexsort((rng.random(len(objects)), rarest))
    fold = np.empty(len(objects), np.int64)
    fold[order] = np.arange(len(objects)) % count
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]


def splits(study: str, data: Path, seed: int) -> list[tuple[ObjectSet, ObjectSet]]:
    """What is trained on and what is tested on, once or for each fold."""
    if study == "scene":
        return [scene(data, seed)]
    if study == "overfit":
        return [(dota(data), dota(data))]
    objects = ships(data) if study == "ships" else simd(data)
    parts = [objects.split(0.2, seed)] if study == "ships" else folds(objects, 5, 0)
    return [(objects.subset(train), objects.subset(test)) for train, test in parts]


def run(name: str, kept: ObjectSet, held: ObjectSet, config: DetectConfig, row: str, fold: int) -> Path:
    """Train and test once; returns the record, which may have been there."""
    study = STUDIES[name]
    facts = {
        "study": name, "row": row, "fold": fold, "config": config.to_json(), "tiles": study.tiles.to_json(),
        "train": [image.name for image in kept.images], "test": [image.name for image in held.images],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    path = FOLDER / f"{name}-{row.replace(', ', '-').replace(' ', '')}-s{config.seed}-f{fold}-{digest}.json"
    if path.exists():
        return path
    start, cpu = time.perf_counter(), time.process_time()
    with bar(quiet=False) as progress:
        trained = train_detector(kept, study.tiles, config, progress=progress)
        seconds = {"train": time.perf_counter() - start, "train_cpu": time.process_time() - cpu, **trained.seconds}
        # Random weights are nowhere else: a package of finetune brings its own.
        predictor = DetectorPredictor(trained.package, weights=config.weights)
        guesses = find_objects(predictor, held, batch_size=1, progress=progress)
    scores = average_precision(truths(held, study.oriented), guesses, trained.package.table)
    record = {
        **facts, "seconds": {stage: round(value, 1) for stage, value in seconds.items()}, "scores": scores.to_json(),
        "machine": machine(),
        "versions": versions(),
    }  # fmt: skip
    if name == "longtail":  # whose folds are scored together
        record["found"] = [_surest(guess) for guess in guesses]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        part.write_text(json.dumps(record))
    print(row, f"seed {config.seed} fold {fold}", {k: round(v, 3) for k, v in scores.ap50.items()}, seconds, flush=True)
    return path


def _surest(guess: Guess) -> list[Any]:
    """The 300 surest boxes of an image, to a tenth of a pixel; scores to four digits."""
    boxes, scores, classes = (np.asarray(part) for part in guess)
    order = np.argsort(-scores, kind="stable")[:300]
    found = boxes[order].round(1), scores[order].astype(np.float64).round(4), classes[order]
    return [part.tolist() for part in found]


def truths(objects: ObjectSet, oriented: bool) -> list[Truth]:
    """What is to be found in each image."""
    formed = objects if oriented else objects.horizontal()
    return [Truth(image.boxes, image.labels, image.ignored) for image in formed.images]


def pooled(objects: ObjectSet, records: Sequence[dict[str, Any]], oriented: bool) -> DetectionScores:
    """Scores over the test images of all folds together."""
    by_name = {image.name: image for image in objects.images}
    names = [name for record in records for name in record["test"]]
    table = objects.table
    images = replace(objects, images=tuple(by_name[name] for name in names))
    width = 5 if oriented else 4
    guesses = [
        Guess(np.array(boxes, np.float64).reshape(-1, width), np.array(scores), np.array(classes, np.int64))
        for record in records
        for boxes, scores, classes in record["found"]
    ]
    return average_precision(truths(images, oriented), guesses, table)


def table(objects: ObjectSet | None, records: Sequence[dict[str, Any]], oriented: bool) -> str:
    """Markdown: AP50 over all folds, mean ± std over seeds, and the time of one training.

    Args:
        objects: All of the set, where folds are scored together.
        records: Of its runs.
        oriented: Form of the boxes.
    """
    found: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        found[record["row"]][record["config"]["seed"]].append(record)
    lines = ["| method | head | middle | tail | all | seeds x folds | training, s |", "|---|---|---|---|---|---|---|"]
    for row, seeds in found.items():
        scores = [
            _recorded(runs[0]) if objects is None else pooled(objects, runs, oriented).ap50 for runs in seeds.values()
        ]
        cells = []
        for group in GROUPS:
            values = [100 * score[group] for score in scores]
            spread = summarise(values)
            cells.append(f"{spread.mean:.1f}" + (f" ± {spread.std:.1f}" if len(values) > 1 else ""))
        runs = [run for some in seeds.values() for run in some]
        seconds = np.median([run["seconds"]["train"] for run in runs])
        lines.append(f"| {row} | {' | '.join(cells)} | {len(seeds)} x {len(runs) // len(seeds)} | {seconds:.0f} |")
    return "\n".join(lines)


def _recorded(record: Mapping[str, Any]) -> dict[str, float]:
    return DetectionScores.from_json(record["scores"]).ap50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets; of scene, where it is drawn")
    parser.add_argument("--methods", nargs="+", help="default: the study's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folds", type=int, nargs="+", help="of the five of longtail; default: all")
    parser.add_argument("--epochs", type=int, help="other than the study's")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    study = STUDIES[options.study]
    chosen = methods(options.methods or [study.method])
    for seed in options.seeds if not options.table else ():
        for fold, (kept, held) in enumerate(splits(options.study, options.data, seed)):
            if options.folds is not None and fold not in options.folds:
                continue
            for row, fields in chosen.items():
                stages = 1.0 if fields["method"] == "deblora" else study.fair
                config = DetectConfig(
                    detector=DetectorConfig(oriented=study.oriented, up=study.up),
                    epochs=round(stages * (options.epochs or study.epochs)),
                    batch_size=study.batch_size, seed=seed, **study.fields, **fields,
                )  # fmt: skip
                run(options.study, kept, held, config, row, fold)
    records = [json.loads(path.read_text()) for path in sorted(FOLDER.glob(f"{options.study}-*.json"))]
    print(table(simd(options.data) if options.study == "longtail" else None, records, study.oriented))


if __name__ == "__main__":
    main()
