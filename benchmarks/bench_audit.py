"""Does the audit tell what was forgotten, and how many references does it need? python benchmarks/bench_audit.py

The demo's network and data, and digits of which a fifth has random labels, so that there is something to memorise. For
every seed an original, a model retrained without a tenth of the samples, and one that AMUN has made forget them; one
set of references for all. A right attack finds FT AUC 50 for the retrained model and FR AUC 50 for the original, and
the more it finds in the original the better. References are kept under build/audit.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import write
from torch import Tensor
from torch.utils.data import TensorDataset
from zoo import FOLDER

from amun_ext import models, unlearn
from amun_ext.auditing import ModelSignals, train_references
from amun_ext.auditing.attacks import Signals, all_scores
from amun_ext.auditing.model_signals import concat_splits, signals_from
from amun_ext.auditing.references import KIND as REFERENCES
from amun_ext.data import Splits, load
from amun_ext.deletion import forget_ids, split
from amun_ext.deletion.request import RETRAIN_SEED
from amun_ext.experiments import demo
from amun_ext.metrics import auc
from amun_ext.metrics.measures import PAIRS
from amun_ext.models import predict
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit

COUNTS = (2, 4, 8, 16, 32)


def noisy_digits() -> Splits:
    """Of the test set too: else it were another distribution, to whose samples no retrained model is as close."""
    digits, generator = load("digits"), torch.Generator().manual_seed(0)

    def noisy(data: TensorDataset) -> TensorDataset:
        images, labels = data.tensors
        wrong = torch.randperm(len(labels), generator=generator)[: len(labels) // 5]
        labels = labels.clone()
        labels[wrong] = torch.randint(0, len(digits.classes), (len(wrong),), generator=generator)
        return TensorDataset(images, labels)

    return Splits(noisy(digits.train), noisy(digits.test), digits.classes)


@dataclass(frozen=True)
class Case:
    splits: Callable[[], Splits]
    training: Recipe


CASES = {
    "embedded images": Case(lambda: load(demo.DATA), demo.TRAINING),
    "digits, 20 % of the labels random": Case(
        noisy_digits, Recipe(epochs=40, lr=0.1, schedule="cosine", batch_size=64)
    ),
}


def areas(signals: Signals, references: ModelSignals, groups: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Attack -> FT, FR, RT AUC."""
    return {
        name: {
            key: auc(scores[groups[members].numpy()], scores[groups[others].numpy()]).value
            for key, (members, others) in PAIRS.items()
        }
        for name, scores in all_scores(signals, {REFERENCES: references}, groups).items()
    }


def audited(case: Case, splits: Splits, seed: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The signals of each model under audit, by its name, and the rows of each set."""
    torch.manual_seed(seed)
    channels = splits.train.tensors[0].shape[1]
    original = models.build(demo.MODEL, num_classes=len(splits.classes), in_channels=channels)
    fit(original, [Pass([DataPart(splits.train)])], case.training, RunOptions(seed=seed))
    ids = forget_ids(len(splits.train), fraction=demo.FRACTION, seed=seed)
    forget, retain = split(splits.train, ids)
    again = seed + RETRAIN_SEED
    kept = torch.ones(len(splits.train), dtype=torch.bool)
    kept[ids] = False
    start, end = len(splits.train), len(splits.train) + len(splits.test)
    groups = {"forget": ids, "retain": kept.nonzero()[:, 0], "test": torch.arange(start, end)}
    made = {
        "original": original,
        "retrained": unlearn(original, forget, retain, method="retrain", recipe=case.training, seed=again),
        "AMUN": unlearn(original, forget, retain, include_forget=False, recipe=demo.FINE_TUNING, seed=seed),
    }
    images, labels = concat_splits(splits).tensors
    return {name: signals_from(predict(model, images), labels) for name, model in made.items()}, groups


def run(case: Case, references: ModelSignals, splits: Splits, seed: int) -> dict[str, Any]:
    """Model -> number of references -> attack -> areas."""
    signals, groups = audited(case, splits, seed)

    def first(count: int) -> ModelSignals:
        rows = {name: values[:count] for name, values in references.signals.items()}
        return replace(references, membership=references.membership[:count], signals=rows)

    return {
        name: {str(count): areas(each, first(count), groups) for count in COUNTS if count <= len(references)}
        for name, each in signals.items()
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The same with mean and standard error over seeds."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: joined([value[key] for value in values]) for key in values[0]}
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return {"mean": statistics.mean(values), "standard error": spread}

    made: dict[str, Any] = joined(runs)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--references", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for name, case in CASES.items():
        splits = case.splits()
        channels = splits.train.tensors[0].shape[1]
        like = models.build(demo.MODEL, num_classes=len(splits.classes), in_channels=channels)
        out = FOLDER.with_name("audit") / name.split(",")[0].replace(" ", "-")
        how = {"out": out, "models": given.references, "progress": True}
        references = train_references(like, splits, case.training, **how)
        runs = [run(case, references, splits, seed) for seed in range(given.seeds)]
        tables[name] = {"seeds": given.seeds, "references": len(references), "areas": summary(runs)}
        write("audit", {"tables": tables})


if __name__ == "__main__":
    main()
