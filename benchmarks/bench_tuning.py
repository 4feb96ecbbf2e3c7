"""How much is lost by choosing options without a retrained model? `amun tune` by each objective, then the real request.

The demo's network and data, 10 % to be forgotten. For every seed and method the same trials, made on samples that stand
in for the request; every objective chooses one of them; each choice unlearns the request, and is measured by the gap to
a model retrained for the request, on the half of the test set that the trials have not seen. The trials follow the gap
to the stand-in's retrained model, which if anything favours the choice by it.
"""

import argparse
import json
import math
import statistics
from dataclasses import asdict
from typing import Any

import torch
from common import timed, write
from scipy.stats import spearmanr
from torch import nn
from zoo import FOLDER

from amun_ext import evaluate, find_min_adversarial, tuning
from amun_ext.data import load
from amun_ext.defaults import MAX_ACCURACY_DROP
from amun_ext.deletion import forget_ids, split
from amun_ext.deletion.request import RETRAIN_SEED
from amun_ext.experiments import demo
from amun_ext.models import build
from amun_ext.training import DataPart, Pass, RunOptions, fit
from amun_ext.tuning.space import options
from amun_ext.unlearning.config import MethodConfig, resolve_config

METHODS = ("amun", "rl", "ft", "ga")
# Way to choose -> column of a trial's row that is to be small, points of held-out accuracy that may be lost.
CHOICES = {
    "gap": ("gap", math.inf),
    "expected gap": ("expected gap", MAX_ACCURACY_DROP),
    "KS, 5 points": ("KS", 5.0),
    "KS, 2 points": ("KS", 2.0),
}
COLUMNS = ("UA", "RA", "TA", "FT AUC", "gap")


def chosen(result: tuning.Tuning, method: str, way: str) -> MethodConfig | None:
    column, may_be_lost = CHOICES[way]
    least = result.original.row["TA"] - may_be_lost
    rows = [(trial.result.row, trial.parameters) for trial in result.trials[method] if trial.result is not None]
    fit = [(row[column], parameters) for row, parameters in rows if row["TA"] >= least]
    if not fit:
        return None
    _, parameters = min(fit, key=lambda entry: entry[0])
    return resolve_config(method, default=options(parameters, result.recipe))


def run(seed: int, trials: int) -> dict[str, Any]:
    """Rows of the real request by method and way to choose, what was chosen, and what the search took."""
    splits = load(demo.DATA)
    torch.manual_seed(seed)
    original = build(demo.MODEL, num_classes=len(splits.classes), in_channels=splits.train.tensors[0].shape[1])
    fit(original, [Pass([DataPart(splits.train)])], demo.TRAINING, RunOptions(seed=seed))
    ids = forget_ids(len(splits.train), fraction=demo.FRACTION, seed=seed)
    metadata = {"recipe": json.dumps(asdict(demo.TRAINING))}
    folder = FOLDER.with_name("tuning") / str(seed)
    how = {"objective": "retrain", "trials": trials, "metadata": metadata, "seed": seed, "progress": True}
    result, took = timed(lambda: tuning.tune(original, splits, ids, METHODS, out=folder, **how))

    forget, retain = split(splits.train, ids)
    _, test = tuning.split_test_set(splits.test, seed)
    adversarial = find_min_adversarial(original, *forget.tensors, method=demo.SEARCH)
    retraining = resolve_config("retrain", default={"recipe": demo.TRAINING})

    def unlearned(how: MethodConfig, seed: int = seed) -> nn.Module:
        return how.unlearn(original, forget, retain, adversarial=adversarial, seed=seed)

    configs = {f"{method}: {way}": chosen(result, method, way) for method in METHODS for way in CHOICES}
    configs |= {f"{method}: untuned": resolve_config(method) for method in METHODS}
    models = {"no-op": original} | {name: unlearned(how) for name, how in configs.items() if how is not None}
    models["retrain"] = unlearned(retraining, seed + RETRAIN_SEED)
    report = evaluate(models, forget=forget, retain=retain, test=test)
    print(report.to_text(), flush=True)
    return {
        "seed": seed,
        "rows": {name: {column: row[column] for column in COLUMNS} for name, row in report.rows.items()},
        "options": {name: how and how.to_dict() for name, how in configs.items()},
        "trials": result.to_dict()["trials"],
        "cpu": took["cpu"],
    }


def agreement(trials: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Rank correlation with the gap over the trials of a seed, mean of the methods."""
    by_method = [[trial for trial in made if trial["failure"] is None] for made in trials.values()]
    return {
        column: statistics.mean(
            float(spearmanr([t[column] for t in made], [t["gap"] for t in made]).statistic) for made in by_method
        )
        for column in ("expected gap", "KS")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=10, help="no recipe was chosen on these")
    parser.add_argument("--trials", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)  # as amun demo does
    runs = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        runs.append(run(seed, given.trials))
        names = [name for name in runs[0]["rows"] if all(name in each["rows"] for each in runs)]
        table = {name: [each["rows"][name]["gap"] for each in runs] for name in names}
        means = {name: {"mean": statistics.mean(gaps), "each": gaps} for name, gaps in table.items()}
        agree = [agreement(each["trials"]) for each in runs]
        write("tuning", {"seeds": len(runs), "trials": given.trials, "gap": means, "agreement": agree, "runs": runs})


if __name__ == "__main__":
    main()
