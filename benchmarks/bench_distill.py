"""Out-of-fold distillation beside AMUN, retraining and doing nothing: python benchmarks/bench_distill.py

The demo's network, data and recipes; every seed has its own original, forget set (a tenth) and cross-fit, and every row
three models. The learning rates, the weight and the epochs of both methods were chosen on the seeds 100 to 102. U-LiRA
attacks the whole procedure: every shadow is trained, cross-fitted and made to forget by itself, and KLoM compares the
shadows that forgot a sample with retrained ones; one request is timed. --mixed trains on soft labels and adversarial
examples of the forget set at once. Cells, targets and shadows are kept under build/distill: a stopped benchmark goes on
where it was.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import read, timed, write
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext import models
from amun_ext.auditing import load_references, prepare_from_references, train_references, train_shadows
from amun_ext.auditing.shadows import Shadows, auc_over_shadows
from amun_ext.data import Splits, load
from amun_ext.deletion import Record, forget_ids, split
from amun_ext.deletion.request import sets
from amun_ext.experiments import demo
from amun_ext.experiments.compare import compare
from amun_ext.files import to_jsonable
from amun_ext.metrics import klom
from amun_ext.search import AdversarialSet
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning import METHODS, Targets, UnlearningMethod, prepare
from amun_ext.unlearning.config import MethodConfig, resolve_config

FOLDER = Path(__file__).parent.parent / "build/distill"
Table = dict[str, dict[str, dict[str, float]]]
FOLDS = 5  # of the tables
COLUMNS = ("UA", "RA", "TA", "FT AUC", "gap", "seconds")
FINE_TUNING = {  # by whether the retain set is used
    "distill": {True: {"lr": 0.05}, False: {"lr": 0.02}},
    "amun": {True: {"lr": 0.03, "schedule": "cosine"}, False: {"lr": 0.003, "schedule": "cosine"}},
}
NO_OP = resolve_config("ft", recipe={"epochs": 1, "lr": 0.0, "batch_norm": "eval"})


def untrained(splits: Splits, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(demo.MODEL, num_classes=len(splits.classes), in_channels=splits.train.tensors[0].shape[1])


def configs(with_retain: bool, targets: Targets) -> dict[str, MethodConfig]:
    def config(method: str, **options: Any) -> MethodConfig:
        return resolve_config(method, with_retain, recipe=FINE_TUNING[method][with_retain], targets=targets, **options)

    return {"amun:no-forget": config("amun", include_forget=False), "distill": config("distill")}


def trained(splits: Splits, seed: int) -> nn.Module:
    """The original of a seed."""
    original, checkpoint = untrained(splits, seed), FOLDER / f"seed-{seed}/original.safetensors"
    if checkpoint.exists():
        models.load_checkpoint(checkpoint, original)
    else:
        fit(original, [Pass([DataPart(splits.train)])], demo.TRAINING, RunOptions(seed=seed))
        models.save_checkpoint(checkpoint, original, {})
    return original


def prepared(splits: Splits, seed: int, folds: int = FOLDS) -> Targets:
    """The cross-fit of a seed."""
    out = FOLDER / f"seed-{seed}/targets{'' if folds == FOLDS else f'-{folds}'}.safetensors"
    return prepare(untrained(splits, seed), splits, demo.TRAINING, out=out, folds=folds, seed=seed, progress=True)


def prepared_from(count: int, splits: Splits, seed: int) -> Targets:
    """The mean of `count` reference models of a seed."""
    folder, model = FOLDER / f"seed-{seed}/references", untrained(splits, seed)
    how = {"models": count, "keep_logits": True, "seed": seed}
    train_references(model, splits, demo.TRAINING, out=folder, progress=True, **how)
    references, out = load_references(folder, count, logits=True), folder / f"targets-{count}.safetensors"
    return prepare_from_references(references, model, splits, out=out)


def mixed(
    model: nn.Module,
    forget: TensorDataset,
    retain: Dataset[Any] | None,
    run: RunOptions,
    *,
    targets: Tensor,
    adversarial: AdversarialSet | None = None,
    search: str = demo.SEARCH,
    weight: float = 1.0,
    recipe: Recipe = demo.FINE_TUNING,
) -> None:
    """Distillation with the adversarial examples of AMUN as further samples."""
    assert adversarial is not None
    found = adversarial.found
    examples = TensorDataset(adversarial.images[found], adversarial.labels[found])
    parts = [DataPart(forget, targets=weight * targets.double().softmax(1)), DataPart(examples)]
    fit(model, [Pass([*parts, *([] if retain is None else [DataPart(retain)])])], recipe, run, settings=weight)


def both(splits: Splits, seed: int, repeats: int, fraction: float) -> Table:
    """AMUN and distillation for one request."""
    targets = prepared(splits, seed)
    return gaps(splits, seed, repeats, {"with": configs(True, targets), "without": configs(False, targets)}, fraction)


def with_examples(splits: Splits, seed: int, repeats: int) -> Table:
    """Both methods, and both trained on at once with the options of either, for one request."""
    METHODS["mixed"] = UnlearningMethod(mixed, "Mixed", "distillation and AMUN at once")
    targets, rows = prepared(splits, seed), {}
    for setting, retain in (("with", True), ("without", False)):
        own = configs(retain, targets)
        rows[setting] = own | {
            f"mixed:{name}": resolve_config(
                "mixed", retain, default={"recipe": of.recipe}, targets=targets, weight=of.options.get("weight", 1.0)
            )
            for name, of in own.items()
        }
    return gaps(splits, seed, repeats, rows)


def by_folds(splits: Splits, seed: int, repeats: int, numbers: list[int], references: int) -> Table:
    """Distillation by cross-fits of so many folds, and by so many references, if any, for one request."""
    targets = {str(folds): prepared(splits, seed, folds) for folds in numbers}
    if references:
        targets[f"{references} references"] = prepared_from(references, splits, seed)
    rows = {
        setting: {f"distill:{name}": configs(retain, of)["distill"] for name, of in targets.items()}
        for setting, retain in (("with", True), ("without", False))
    }
    return gaps(splits, seed, repeats, rows)


def gaps(
    splits: Splits,
    seed: int,
    repeats: int,
    rows: Mapping[str, Mapping[str, MethodConfig | None]],
    fraction: float = demo.FRACTION,
) -> Table:
    """The tables of `amun compare` for one request: setting -> title -> measure -> mean."""
    ids = forget_ids(len(splits.train), fraction=fraction, seed=seed)
    compared = compare(
        trained(splits, seed),
        splits.test,
        sets(splits, ids, Record()),
        rows,
        resolve_config("retrain", default={"recipe": demo.TRAINING}),
        seeds=repeats,
        out=FOLDER / f"seed-{seed}",
        progress=True,
    )
    return {
        setting: {
            line.title: {name: compared.statistics(setting, row)[name].mean for name in COLUMNS}
            for row, line in lines.items()
        }
        for setting, lines in compared.tables.items()
    }


def over_seeds(runs: list[Table]) -> dict[str, Any]:
    """Mean and deviation of every measure over the requests."""

    def statistic(values: list[float | None]) -> dict[str, float]:
        known = np.array(values, dtype=float)  # None, of a file, is NaN
        return {"mean": float(np.mean(known)), "deviation": float(np.std(known, ddof=1))}

    return {
        setting: {
            row: {name: statistic([run[setting][row][name] for run in runs]) for name in COLUMNS} for row in lines
        }
        for setting, lines in runs[0].items()
    }


def u_lira(splits: Splits, seed: int, count: int, workers: int, named: list[str]) -> dict[str, dict[str, Any]]:
    """On shadows of the whole procedure: U-LiRA's area, 50 where nothing is found, and KLoM from retrained shadows; and
    the CPU seconds of a request. Of all methods if none is `named`.
    """
    model, ids = untrained(splits, seed), forget_ids(len(splits.train), fraction=demo.FRACTION, seed=seed)
    targets = prepared(splits, seed)
    with_retain, without = (configs(each, targets) for each in (True, False))
    methods = {
        "Retrain": resolve_config("retrain", default={"recipe": demo.TRAINING}),
        "no-op": NO_OP,
        "AMUN, with D_R": with_retain["amun:no-forget"],
        "distill, with D_R": with_retain["distill"],
        "AMUN, D_F only": without["amun:no-forget"],
        "distill, D_F only": without["distill"],
    }
    for method, each in (read("unlearning_methods") or {"chosen": {"methods": {}}})["chosen"]["methods"].items():
        if method in ("amun+salun", "neggrad+", "ct"):
            methods[f"{METHODS[method].title}, with D_R"] = resolve_config(method, **each["options"])

    def shadows(name: str) -> Shadows:
        out, how = FOLDER / f"shadows-{seed}-{name}", {"models": count, "seed": seed, "num_workers": workers}
        return train_shadows(model, splits, ids, methods[name], demo.TRAINING, out=out, progress=True, **how)

    found, retrained, original = {}, shadows("Retrain"), trained(splits, seed)
    forget, retain = split(splits.train, ids)
    for name in named or methods:
        own = shadows(name)
        _, taken = timed(lambda name=name: methods[name].unlearn(original, forget, retain, seed=seed))
        seconds = None if methods[name] is NO_OP else taken["cpu"]
        found[name] = {**auc_over_shadows(own), "klom": klom_over_samples(own, retrained), "seconds": seconds}
        print(f"{name}: {found[name]}", flush=True)
    return found


def klom_over_samples(shadows: Shadows, retrained: Shadows) -> dict[str, float]:
    """KLoM of the shadows that forgot a sample from the retrained ones of the other half, as many, none a pair."""
    forgot = shadows.membership.T  # [samples, shadows], half of each row
    ours, theirs = (each.signals["log-odds"].T for each in (shadows, retrained))
    values = klom(ours[forgot].view(len(forgot), -1).T, theirs[~forgot].view(len(forgot), -1).T)
    return {"mean": float(values.mean()), "deviation": float(values.std(ddof=1) / len(values) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--repeats", type=int, default=3, help="models of every row and seed")
    parser.add_argument("--shadows", type=int, default=0, help="of each method; 0 measures the gaps")
    parser.add_argument("--methods", default="", help="rows of U-LiRA to make, separated by ;, such as 'CT, with D_R'")
    parser.add_argument("--workers", type=int, default=2, help="shadows at once")
    parser.add_argument("--fraction", type=float, default=demo.FRACTION, help="of the data, to forget")
    parser.add_argument("--mixed", action="store_true", help="train on soft labels and adversarial examples at once")
    parser.add_argument("--folds", default="", help="compare cross-fits of these numbers of folds, such as 2,5")
    parser.add_argument("--references", type=int, default=0, help="with --folds: also the mean of so many references")
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = load(demo.DATA)
    seeds = [*map(int, options.seeds.split(","))]
    if options.shadows:
        torch.set_num_threads(options.workers)  # one each
        before, named = read("distill") or {}, options.methods
        areas = u_lira(splits, seeds[0], options.shadows, options.workers, named.split(";") if named else [])
        found = before | {"u_lira": before.get("u_lira", {}) | areas}
        write("distill", {name: to_jsonable(value) for name, value in found.items() if name != "machine"})
        return
    name, table = (
        "distill" if options.fraction == demo.FRACTION else "distill_large",
        partial(both, fraction=options.fraction),
    )
    if options.folds:
        numbers = [*map(int, options.folds.split(","))]
        name, table = "distill_folds", partial(by_folds, numbers=numbers, references=options.references)
    if options.mixed:
        name, table = "distill_mixed", with_examples
    runs = {seed: table(splits, seed, options.repeats) for seed in seeds}
    found = {"repeats": options.repeats, "tables": over_seeds([*runs.values()]), "runs": runs}
    kept = {key: value for key, value in (read(name) or {}).items() if key == "u_lira"}
    write(name, {key: to_jsonable(value) for key, value in {**kept, **found}.items()})


if __name__ == "__main__":
    main()
