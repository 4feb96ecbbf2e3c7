"""The demo on the embedded images: train, forget 10 %, retrain for comparison, measure."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from amun_ext.data import load, manifest_of, training_data
from amun_ext.deletion import Record, forget_ids, split
from amun_ext.deletion.request import RETRAIN_SEED
from amun_ext.evaluation import Report, evaluate
from amun_ext.files import atomic_folder, workplace
from amun_ext.info import versions
from amun_ext.models import build, save_checkpoint
from amun_ext.random_state import own_random_state
from amun_ext.recipe import FINE_TUNING, TRAINING
from amun_ext.search import find_min_adversarial
from amun_ext.training import DataPart, Pass, RunOptions, fit
from amun_ext.unlearning import unlearn

DATA, MODEL, FRACTION, SEARCH = "fashion-mnist-mini", "small-cnn", 0.1, "ddn"
FILES = ("original.safetensors", "unlearned.safetensors", "report.json", "report.html")
ORIGINAL, HEADLINE, WITH_FORGET, RETRAIN = "no-op (original)", "AMUN (D_R + D_A)", "AMUN (D_R + D_F + D_A)", "retrain"

Result = TypeVar("Result")


def run(seed: int = 0, progress: bool = False) -> tuple[Report, dict[str, nn.Module], list[int]]:
    """Everything follows from `seed`: weights, forget set, shuffling. Returns report, models by row, forgotten ids."""
    seconds: dict[str, float] = {}

    def timed(row: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        seconds[row] = time.perf_counter() - start
        return result

    splits = load(DATA)
    channels = splits.train[0][0].shape[0]
    with own_random_state():
        torch.manual_seed(seed)
        original = build(MODEL, num_classes=len(splits.classes), in_channels=channels)
    run_of_training = RunOptions(seed=seed, progress=progress)
    timed("training", lambda: fit(original, [Pass([DataPart(splits.train)])], TRAINING, run_of_training))

    ids = forget_ids(len(splits.train), fraction=FRACTION, seed=seed)
    forget, retain = split(splits.train, ids)
    adversarial = timed("search", lambda: find_min_adversarial(original, forget, method=SEARCH, progress=progress))

    def amun(include_forget: bool) -> nn.Module:
        return unlearn(
            original,
            forget,
            retain,
            include_forget=include_forget,
            adversarial=adversarial,
            recipe=FINE_TUNING,
            seed=seed,
            progress=progress,
        )

    def retrained() -> nn.Module:
        again = seed + RETRAIN_SEED
        return unlearn(original, forget, retain, method="retrain", recipe=TRAINING, seed=again, progress=progress)

    models = {
        ORIGINAL: original,
        HEADLINE: timed(HEADLINE, lambda: amun(include_forget=False)),
        WITH_FORGET: timed(WITH_FORGET, lambda: amun(include_forget=True)),
        RETRAIN: timed(RETRAIN, retrained),
    }
    training_seconds, search_seconds = seconds.pop("training"), seconds.pop("search")
    for row in (HEADLINE, WITH_FORGET):
        seconds[row] += search_seconds

    report = evaluate(
        models,
        forget=forget,
        retain=retain,
        test=splits.test,
        seconds=seconds,
        baseline=RETRAIN,
        highlight=HEADLINE,
        adversarial=adversarial,
        classes=splits.classes,
        facts={
            "data": DATA,
            "model": MODEL,
            "seed": seed,
            "training": asdict(TRAINING),
            "search": SEARCH,
            "original_training_seconds": round(training_seconds, 1),
            "fine-tuning": asdict(FINE_TUNING),
            "versions": versions(),
        },
    )
    return report, models, ids.tolist()


def write(
    report: Report, models: dict[str, nn.Module], ids: list[int], folder: Path, *, with_images: bool = False
) -> None:
    """The report, and the models before and after as checkpoints like any other."""
    splits = load(DATA)
    about = Record(arch=MODEL, training_data=training_data(splits), recipe=TRAINING, manifest=manifest_of(splits))
    with workplace(folder, "demo") as place, atomic_folder(folder, place) as files:
        original, unlearned, json_file, page = (files / name for name in FILES)
        save_checkpoint(original, models[ORIGINAL], about.to_metadata())
        save_checkpoint(unlearned, models[HEADLINE], replace(about, forgotten=tuple(ids)).to_metadata())
        report.to_json(json_file)
        report.to_html(page, with_images=with_images)
