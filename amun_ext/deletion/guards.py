"""Checks of the new model. If it fails one, no result is written."""

import torch

from amun_ext.deletion.request import Outcome

UNCHANGED, BELOW_FLOOR = 4, 5  # exit statuses


class RefusedResultError(RuntimeError):
    """The new model was refused; `status` is the exit status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check(outcome: Outcome, before: torch.nn.Module, floor: float | None = None) -> None:
    """RefusedResultError for a model with the weights of the one before, and for one of less than `floor` percent of
    test accuracy."""
    pairs = zip(before.parameters(), outcome.model.parameters(), strict=True)
    if all(torch.equal(old, new) for old, new in pairs):
        raise RefusedResultError(UNCHANGED, "the model is unchanged: all its weights are bit-equal")
    accuracy = outcome.report.rows[outcome.report.highlight]["TA"]
    if floor is not None and accuracy < floor:
        raise RefusedResultError(BELOW_FLOOR, f"test accuracy is {accuracy:.2f} %, below the floor of {floor:g} %")
