"""Checks of the new model. If it fails one, no result is written."""

import torch

from amun_ext.deletion.request import Outcome
from amun_ext.validation import RefusedResultError

UNCHANGED, BELOW_FLOOR = 4, 5  # exit statuses


def check(outcome: Outcome, before: torch.nn.Module, floor: float | None = None) -> None:
    """RefusedResultError for a model with the weights of the one before, and for one of less than `floor` percent of
    test accuracy."""
    pairs = zip(before.parameters(), outcome.model.parameters(), strict=True)
    if all(torch.equal(old, new) for old, new in pairs):
        raise RefusedResultError(UNCHANGED, "the model is unchanged: all its weights are bit-equal")
    accuracy = outcome.report.rows[outcome.report.highlight]["TA"]
    if floor is not None and accuracy < floor:
        raise RefusedResultError(BELOW_FLOOR, f"test accuracy is {accuracy:.2f} %, below the floor of {floor:g} %")
