"""Drift over many requests: forgotten samples look like members again, and test accuracy falls."""

from collections.abc import Sequence

from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.data.images import stored
from amun_ext.deletion.ledger import Entry
from amun_ext.metrics.auc import auc
from amun_ext.metrics.signals import scaled_logit
from amun_ext.models import predict
from amun_ext.validation import is_number

BOUND = 2.0  # points of test accuracy since the first request of the ledger
RETRAIN = "retraining is recommended"


def relapse(before: nn.Module, after: nn.Module, earlier: TensorDataset, test: TensorDataset) -> dict[str, float]:
    """FT AUC of the samples of `earlier` requests, before and after this one, and the low end of its 95 % interval."""

    def measured(model: nn.Module) -> tuple[float, float]:
        forgotten, others = (scaled_logit(predict(model, data), stored(data)[1]) for data in (earlier, test))
        found = auc(forgotten, others)
        return found.value, found.interval()[0]

    (old, _), (new, low) = measured(before), measured(after)
    return {"samples": len(earlier), "ft_auc_before": old, "ft_auc": new, "ft_auc_low": low}


def remarks(relapsed: dict[str, float] | None, history: Sequence[Entry], accuracy: float, original: str) -> list[str]:
    """That samples of earlier requests look more like members than before this request, beyond chance; and that test
    accuracy, in percent, has fallen since the first request of the ledger."""
    found = []
    if relapsed is not None and relapsed["ft_auc_low"] > relapsed["ft_auc_before"]:
        found.append(
            f"samples of earlier requests look more like members again: their FT AUC is {relapsed['ft_auc']:.1f} "
            f"and was {relapsed['ft_auc_before']:.1f}; {RETRAIN}"
        )
    first = history[0].get("results") if history else None
    row = first.get(original) if isinstance(first, dict) else None
    start = row.get("TA") if isinstance(row, dict) else None
    if is_number(start) and start - accuracy > BOUND:
        found.append(
            f"test accuracy is {accuracy:.1f} %, was {start:.1f} % before the first of {len(history) + 1} requests: "
            f"more than {BOUND:g} points are lost, {RETRAIN}"
        )
    return found
