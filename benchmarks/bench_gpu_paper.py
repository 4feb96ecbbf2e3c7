"""Table 1 and 2 of the paper at its own scale, on Fashion-MNIST: python benchmarks/bench_gpu_paper.py --data FOLDER

A ResNet-18 on all 60,000 images, requests of 10 and 50 percent drawn at random, AMUN with and without the retain set
against retraining, and RMIA with reference models trained on halves of all 70,000 images. One process keeps such a card
busy for a part of the time only, so references and models are made side by side, --workers of each: their seconds say
little. Learning rates of the fine-tuning are not selected: each is a row. References that are not done after --seconds
are left out; those that are done come in pairs.

    python benchmarks/bench_gpu_paper.py --device cpu --small      a rehearsal: does it run? Writes nothing
"""

import argparse
import math
import multiprocessing
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import gpu_benchmark, write_gpu
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext import AdversarialSet, find_min_adversarial, parallel
from amun_ext.auditing import ModelSignals, load_references, train_references
from amun_ext.auditing.attacks import all_scores
from amun_ext.auditing.model_signals import concat_splits, signals_from
from amun_ext.data import Splits, load
from amun_ext.deletion import forget_ids, split
from amun_ext.metrics.measures import Observation as Audited
from amun_ext.metrics.measures import attack_auc, set_accuracy, tpr_at
from amun_ext.models import build, predict
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning import unlearn

FRACTIONS = (0.1, 0.5)
RATES = (0.01, 0.03)
RETRAINED = (1001, 1002)  # seeds
ATTACKS = ("RMIA", "RMIA, as published", "confidence")


def images(root: str | None, small: bool) -> Splits:
    splits = load("fashion-mnist-mini" if small else "fashion-mnist", root)
    if not small:
        return splits
    few = (TensorDataset(*(tensor[:300] for tensor in part.tensors)) for part in (splits.train, splits.test))
    return Splits(*few, splits.classes)


def new(splits: Splits, device: str, small: bool) -> nn.Module:
    return build("resnet18", num_classes=len(splits.classes), in_channels=1, width=4 if small else None).to(device)


def references(like: nn.Module, splits: Splits, recipe: Recipe, out: Path, models: int, workers: int) -> None:
    torch.set_num_threads(workers)
    train_references(like, splits, recipe, out=out, models=models, num_workers=workers)


def finished(folder: Path) -> ModelSignals:
    """Of the references those that are done, in whole pairs."""
    done = len([*folder.glob("reference-*.safetensors")])
    return load_references(folder, done - done % 2)


def works(splits: Splits, ids: Tensor, search: AdversarialSet, training: Recipe) -> dict[str, dict[str, Any]]:
    """Arguments of `unlearn` by row, the longest work first: retrained models, and AMUN in its forms."""
    rows: dict[str, dict[str, Any]] = {
        f"retrained, seed {seed}": {"method": "retrain", "recipe": training, "seed": seed} for seed in RETRAINED
    }
    # The paper leaves D_F out of large requests.
    forms = [("D_R + D_A", True, False)] + [("D_R + D_F + D_A", True, True)] * (2 * len(ids) < len(splits.train))
    forms += [("D_F + D_A, no D_R", False, True), ("D_A, no D_R", False, False)]
    for title, retains, include_forget in forms:
        for rate in RATES if retains else RATES[:1]:
            recipe = replace(training, epochs=min(10, training.epochs), lr=rate)
            given = {"include_forget": include_forget, "adversarial": search, "recipe": recipe}
            rows[f"{title}, lr {rate}"] = given if retains else {**given, "retain": None}
    return rows


def answered(
    root: str | None, small: bool, original: nn.Module, ids: Tensor, given: dict[str, Any]
) -> tuple[Tensor, float]:
    """What a model that has forgotten `ids` says of all samples, and the seconds that it took."""
    splits = images(root, small)
    forget, retain = split(splits.train, ids)
    start = time.perf_counter()
    model = unlearn(original, forget, **{"retain": retain, **given})
    return predict(model, concat_splits(splits).tensors[0], 4096), time.perf_counter() - start


def measured(logits: Tensor, splits: Splits, ids: Tensor, answers: ModelSignals) -> dict[str, Any]:
    """Accuracies, and what attacks find."""
    _, labels = concat_splits(splits).tensors
    kept = torch.ones(len(splits.train), dtype=torch.bool)
    kept[ids] = False
    train, total = len(splits.train), len(labels)
    rows = {"forget": ids, "retain": kept.nonzero()[:, 0], "test": torch.arange(train, total)}
    scores = all_scores(signals_from(logits, labels), {"references": answers}, rows)
    seen = Audited(
        logits={name: logits[at] for name, at in rows.items()},
        labels={name: labels[at] for name, at in rows.items()},
        attacks={name: {of: scores[name][at.numpy()] for of, at in rows.items()} for name in ATTACKS},
    )
    result: dict[str, Any] = {
        name: set_accuracy(seen, part).value for name, part in (("UA", "forget"), ("RA", "retain"), ("TA", "test"))
    }
    for name, of in seen.attacks.items():
        areas = {f"{sets} AUC": asdict(attack_auc(of, sets)) for sets in ("FT", "FR", "RT")}
        result[name] = areas | {"TPR @ 1 % FPR": asdict(tpr_at(of, 1.0))}
    return result


def gap(row: dict[str, Any], others: list[dict[str, Any]]) -> float:
    """Mean distance of UA, RA, TA and FT AUC from the mean of the retrained models, points (paper, section 3.3)."""

    def of(each: dict[str, Any]) -> list[float]:
        return [each["UA"], each["RA"], each["TA"], each["RMIA"]["FT AUC"]["value"]]

    middle = [sum(values) / len(values) for values in zip(*map(of, others), strict=True)]
    return sum(abs(ours - theirs) for ours, theirs in zip(of(row), middle, strict=True)) / 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder with the full data set")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4, help="references, and models beside them, at once")
    parser.add_argument("--seconds", type=float, default=280, help="after which nothing is begun or waited for")
    given = gpu_benchmark(parser)
    small, device, start = given.small, given.device, time.perf_counter()
    workers = 1 if small else given.workers

    def passed() -> float:
        return time.perf_counter() - start

    splits = images(given.data, small)
    training = Recipe(
        epochs=1 if small else given.epochs,
        lr=0.1,
        schedule="cosine",
        batch_size=256,
        precision="bfloat16",
        channels_last=True,
    )
    torch.manual_seed(0)
    original = new(splits, device, small)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "references"
        # Not a daemon: it has processes of its own.
        beside = multiprocessing.get_context("spawn").Process(
            target=references, args=(new(splits, device, small), splits, training, out, given.references, workers)
        )
        beside.start()
        try:
            fit(original, [Pass([DataPart(splits.train)])], training, RunOptions())
            print(f"{passed():6.0f} s  original trained", flush=True)
            requests = {f"{fraction:.0%}": forget_ids(len(splits.train), fraction=fraction) for fraction in FRACTIONS}
            jobs: dict[tuple[str, str], tuple[Tensor, dict[str, Any]]] = {}
            for name, ids in requests.items():
                forget, _ = split(splits.train, ids)
                search = find_min_adversarial(original, *forget.tensors, method="ddn").to("cpu")
                share, middle = search.found.float().mean(), search.distance[search.found].median()
                print(f"{passed():6.0f} s  {name} searched: {share:.2%} found, median L2 {middle:.3f}", flush=True)
                jobs |= {(name, row): (ids, work) for row, work in works(splits, ids, search, training).items()}
            everything = concat_splits(splits).tensors[0]
            logits = {name: {"original": predict(original, everything, 4096)} for name in requests}
            seconds: dict[str, float] = {}
            with parallel.workers(partial(answered, given.data, small), original, workers) as made:
                in_time = ((key, job) for key, job in jobs.items() if passed() < given.seconds)
                for (name, row), (answer, taken) in made(in_time):
                    logits[name][row], seconds[f"{name}, {row}"] = answer, taken
                    print(f"{passed():6.0f} s  {name}, {row}: {taken:.1f} s", flush=True)
            beside.join(None if small else max(0.0, given.seconds - passed()))
        finally:
            beside.terminate()
            beside.join()
        answers = finished(out)
    print(f"{passed():6.0f} s  {len(answers)} references", flush=True)
    tables: dict[str, Any] = {}
    for name, ids in requests.items():
        rows = {row: measured(each, splits, ids, answers) for row, each in logits[name].items()}
        retrained = [row for title, row in rows.items() if title.startswith("retrained")]
        for title, row in rows.items():
            row["gap"] = gap(row, retrained) if retrained else math.nan  # those come first
            told = " ".join(f"{key} {row[key]:.2f}" for key in ("UA", "RA", "TA", "gap"))
            areas = ", ".join(f"{attack} {row[attack]['FT AUC']['value']:.2f}" for attack in ATTACKS)
            print(f"{name:4} {title:30} {told}; FT AUC {areas}", flush=True)
        tables[name] = {"ids": len(ids), "rows": rows}
        result = {"recipe": asdict(training), "references": len(answers), "seconds": seconds, "tables": tables}
        write_gpu("paper", result, given)


if __name__ == "__main__":
    main()
