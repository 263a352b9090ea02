"""Long-tail methods side by side, on the same chips, the same features and the same seeds.

Run::

    python -m benchmarks.longtail --data DIR --part validation                       # where choices are made
    python -m benchmarks.longtail --data DIR --part test --seeds 0 1 2 3 4 5 6 7 8 9 --suite finalists
    python -m benchmarks.longtail --data DIR --suite adapters                        # or ranks, clusters, pulls
    python -m benchmarks.longtail --table --part test                                # only what is there

A problem is a set, an imbalance and a seed, which decides which classes are rare, which of their chips stay, and the
training. The backbone (DINOv2 ViT-S/14 at 112 px) is adapted once for each way, and every head is fitted on those
features. Features are kept in ``--cache``, scores in ``benchmarks/results/longtail/``; what is there is not done again.
F1 is that of the full confusion matrix, a group's the mean over its classes. Differences are paired by seed.
Only scores of the same epochs, splits and versions stand in one table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.longtail.data import make_task
from benchmarks.longtail.features import Problem, digest_of, facts_of, features_of, setting_of
from benchmarks.longtail.rows import SUITES, Row, predict, rows
from benchmarks.longtail.tables import by_setting, heading, plot, table
from benchmarks.measure import RESULTS
from torchgeo_debias.evaluation import score
from torchgeo_debias.files import atomic

FOLDER = RESULTS / "longtail"
PROBLEMS = (("ucmerced", 40.0), ("ucmerced", 80.0), ("mstar", 100.0))


def run(problem: Problem, suite: Sequence[Row], data: Path, cache: Path, epochs: int) -> None:
    """Score the rows of one problem that have no record yet."""
    path = FOLDER / f"{problem}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    task = make_task(data, problem.source, problem.imbalance, problem.seed, problem.part)
    for row in suite:
        made = digest_of(facts_of(problem, row.way, task, epochs))
        facts = {"row": row.to_json(), "features": made, "setting": setting_of(problem, epochs)}
        digest = digest_of(facts)
        if record["rows"].get(row.name, {}).get("digest") == digest:
            continue
        features = features_of(problem, row.way, task, cache, epochs)
        logits = predict(row, features, task.train.labels, task.train.table, problem.seed)
        scores = score(task.score.labels, None, task.train.table, y_pred=logits.argmax(axis=1))
        record["rows"][row.name] = {"digest": digest, **facts, "f1": scores.f1, "g_mean": scores.g_mean}
        record["ways"] = {**record.get("ways", {}), row.way: features.facts}
        record |= {"problem": str(problem), "training_chips": len(task.train), "scored_chips": len(task.score)}
        record["imbalance"] = {"nominal": problem.imbalance, "real": task.imbalance}
        FOLDER.mkdir(parents=True, exist_ok=True)
        with atomic(path) as part:
            part.write_text(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds ucmerced and mstar_soc10")
    parser.add_argument("--cache", type=Path, default=Path("longtail_features"), help="folder for features")
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--suite", choices=tuple(SUITES), default="heads")
    parser.add_argument("--sources", nargs="+", help="only these sets")
    parser.add_argument("--imbalance", type=float, nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--plot", type=Path, help="draw it as well")
    options = parser.parse_args()
    if not options.table and options.data is None:
        parser.error("--data is needed, unless --table")
    chosen = [
        (source, imbalance)
        for source, imbalance in PROBLEMS
        if source in (options.sources or [source]) and imbalance in (options.imbalance or [imbalance])
    ]
    for seed, (source, imbalance) in () if options.table else product(options.seeds, chosen):
        run(
            Problem(source, imbalance, seed, options.part),
            rows(options.suite),
            options.data,
            options.cache,
            options.epochs,
        )
    for source, imbalance in chosen:
        found = sorted(FOLDER.glob(f"{source}-{imbalance:g}-{options.part}-s*.json"))
        for number, records in enumerate(by_setting([json.loads(path.read_text()) for path in found])):
            print(f"\n{source}, {options.part}, {heading(records)}\n\n{table(records)}")
            if options.plot:
                plot(records, options.plot.with_stem(f"{options.plot.stem}-{source}-{imbalance:g}-{number}"))


if __name__ == "__main__":
    main()
