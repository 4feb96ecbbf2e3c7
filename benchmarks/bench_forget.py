"""Does AMUN forget better with closer examples? Every search, the same fine-tuning, against retraining.

The demo's network and recipes, 10 % to be forgotten; on the embedded 2,000 images, and on 5,000 of Fashion-MNIST
(where the data set is there). All else of a seed is equal: original, forget set, shuffling, retrained model.
"""

import argparse
import math
import statistics
import time
from typing import Any

import torch
from bench_demo import COLUMNS
from common import read, write
from torch.utils.data import TensorDataset

from amun_ext import evaluate, find_min_adversarial, unlearn
from amun_ext.data import Splits, load
from amun_ext.deletion import forget_ids, split
from amun_ext.deletion.request import RETRAIN_SEED
from amun_ext.experiments import demo
from amun_ext.models import build
from amun_ext.training import DataPart, Pass, RunOptions, fit

SEARCHES: dict[str, dict[str, Any]] = {
    "pgd": {},
    "ddn": {"method": "ddn"},
    "ddn, margin 1": {"method": "ddn", "min_margin": 1.0},
    "deepfool": {"method": "deepfool"},
    "ffgsm": {"method": "ffgsm"},
}
FORMS = {"D_R + D_A": False, "D_R + D_F + D_A": True}
IMAGES = {"fashion-mnist-mini": 2000, "fashion-mnist": 5000}


def run(splits: Splits, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report's rows, and what each search found."""
    images, _ = splits.train.tensors
    torch.manual_seed(seed)
    original = build(demo.MODEL, num_classes=len(splits.classes), in_channels=images.shape[1])
    fit(original, [Pass([DataPart(splits.train)])], demo.TRAINING, RunOptions(seed=seed))
    forget, retain = split(splits.train, forget_ids(len(images), fraction=demo.FRACTION, seed=seed))
    again = seed + RETRAIN_SEED
    models = {"no-op": original}
    found = {}
    for name, options in SEARCHES.items():
        start = time.process_time()
        adversarial = find_min_adversarial(original, *forget.tensors, **options)
        found[name] = {
            "found": float(adversarial.found.float().mean()),
            "median distance": float(adversarial.distance[adversarial.found].median()),
            "gradients": float(adversarial.grad_evals.float().mean()),
            "cpu": time.process_time() - start,
        }
        for form, include in FORMS.items():
            models[f"{name}: {form}"] = unlearn(
                original,
                forget,
                retain,
                include_forget=include,
                adversarial=adversarial,
                recipe=demo.FINE_TUNING,
                seed=seed,
            )
    models["retrain"] = unlearn(original, forget, retain, method="retrain", recipe=demo.TRAINING, seed=again)
    report = evaluate(models, forget=forget, retain=retain, test=splits.test)
    print(report.to_text(), flush=True)
    keep = [column for column in COLUMNS if column != "seconds"]
    rows = {
        row: {column: values[column] for column in keep if not math.isnan(values[column])}
        for row, values in report.rows.items()
    }
    return rows, found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: mean and deviation of each column, and the mean distance from the retrained model of the seed."""

    def over(values: list[float]) -> dict[str, float]:
        return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}

    rows = [run["rows"] for run in runs]
    table = {
        row: {column: over([each[row][column] for each in rows]) for column in values}
        for row, values in rows[0].items()
    }
    for row, values in table.items():
        for column in ("UA", "TA", "FT AUC"):
            values[f"{column} from retrain"] = over([abs(each[row][column] - each["retrain"][column]) for each in rows])
    searches = {
        name: {key: statistics.mean(run["searches"][name][key] for run in runs) for key in values}
        for name, values in runs[0]["searches"].items()
    }
    return {"table": table, "searches": searches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10, help="no recipe was chosen on these")
    parser.add_argument("--data", default=",".join(IMAGES))
    options = parser.parse_args()
    torch.set_num_threads(1)  # as amun demo does
    result = read("forget") or {}
    for data in options.data.split(","):
        splits = load(data)
        images, labels = splits.train[: IMAGES[data]]
        splits = Splits(TensorDataset(images, labels), splits.test, splits.classes)
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            print(f"{data}, seed {seed}", flush=True)
            rows, searches = run(splits, seed)
            runs.append({"seed": seed, "rows": rows, "searches": searches})
        result[data] = {"images": len(images), "seeds": options.seeds, **summary(runs), "runs": runs}
        write("forget", {key: value for key, value in result.items() if key != "machine"})


if __name__ == "__main__":
    main()
