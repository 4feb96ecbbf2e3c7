"""What does U-LiRA see that other attacks do not? python benchmarks/bench_shadows.py

Shadows of AMUN and of retraining, on the cases of bench_audit and a request of a tenth of the samples. Every shadow is
a model that has forgotten half of the samples in question and never seen the others, so every one is attacked in turn:
by its confidence, by RMIA with references, and by U-LiRA with the other shadows. A right attack finds 50 in those that
were retrained; the more it finds in the others the better. Shadows and references are kept under build/.
"""

import argparse
import statistics
from typing import Any

import torch
from bench_audit import CASES, Case
from common import write
from zoo import FOLDER

from amun_ext import models
from amun_ext.auditing import ModelSignals, Shadows, train_references, train_shadows
from amun_ext.auditing.shadows import auc_over_shadows
from amun_ext.data import Splits
from amun_ext.deletion import forget_ids
from amun_ext.experiments import demo
from amun_ext.metrics import auc, rmia
from amun_ext.unlearning.config import MethodConfig, resolve_config


def methods(case: Case) -> dict[str, MethodConfig]:
    return {
        "AMUN": resolve_config("amun", default={"include_forget": False, "recipe": demo.FINE_TUNING}),
        "retrained": resolve_config("retrain", default={"recipe": case.training}),
    }


def others(shadows: Shadows, references: ModelSignals) -> dict[str, dict[str, float]]:
    """What attacks that do not know the method find in the same models."""
    odds, forgot = shadows.signals["log-odds"], shadows.membership
    prior = references.signals["log-odds"][:, shadows.rows].double().sigmoid()
    seen = references.membership[:, shadows.rows]
    scores = {
        "confidence": list(odds),
        f"RMIA, {len(references)} references": [rmia(of.double().sigmoid(), prior, seen).log_ratio for of in odds],
    }
    areas = {
        name: [auc(of[mine], of[~mine]).value for of, mine in zip(each, forgot, strict=True)]
        for name, each in scores.items()
    }
    return {
        name: {"runs": len(of), "mean": statistics.mean(of), "deviation": statistics.stdev(of)}
        for name, of in areas.items()
    }


def run(name: str, case: Case, given: argparse.Namespace) -> dict[str, Any]:
    splits: Splits = case.splits()
    channels = splits.train.tensors[0].shape[1]
    like = models.build(demo.MODEL, num_classes=len(splits.classes), in_channels=channels)
    folder = name.split(",")[0].replace(" ", "-")
    references = train_references(
        like,
        splits,
        case.training,
        out=FOLDER.with_name("audit") / folder,
        models=given.references,
        num_workers=given.workers,
        progress=True,
    )
    ids = forget_ids(len(splits.train), fraction=demo.FRACTION, seed=0)
    found = {}
    for method, chosen in methods(case).items():
        shadows = train_shadows(
            like,
            splits,
            ids,
            chosen,
            case.training,
            out=FOLDER.with_name("shadows") / f"{folder}-{method}",
            models=given.models,
            num_workers=given.workers,
            progress=True,
        )
        told = auc_over_shadows(shadows)
        found[method] = {**others(shadows, references), f"U-LiRA, {given.models - 2} shadows": told}
    return {"ids": len(ids), "areas": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--references", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.workers)  # one each
    write("shadows", {"tables": {name: run(name, case, given) for name, case in CASES.items()}})


if __name__ == "__main__":
    main()
