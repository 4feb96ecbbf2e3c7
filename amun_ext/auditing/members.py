"""Results per sample: which forget samples still look like members, and which other samples were harmed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amun_ext.metrics.measures import Observation

FPR = 1.0  # percent of the test samples above the threshold


@dataclass(frozen=True)
class SuspectedMember:
    """A forget sample above the threshold."""

    id: int
    score: float
    above: float  # percent of the test samples that it looks more like a member than
    confidence: float  # probability of its true class
    label: int


@dataclass(frozen=True)
class Members:
    attack: str
    samples: list[SuspectedMember]  # the most member-like first
    threshold: float  # of the score
    expected_by_chance: float  # mean number if the forget samples were like the test samples


def count_above_test(forget: NDArray[np.float64], test: NDArray[np.float64]) -> int:
    """How many of `forget` [n] score higher than all but FPR percent of `test` [m]."""
    return int((forget > _threshold(np.sort(test))).sum())


def _threshold(ordered: NDArray[np.float64]) -> float:
    return float(ordered[-1 - int(FPR * len(ordered) / 100)])


def find_suspected_members(observation: Observation, ids: Tensor, attack: str) -> Members:
    """The forget samples above the threshold of `attack` that at most FPR percent of the test samples exceed."""
    forget, test = observation.attacks[attack]["forget"], np.sort(observation.attacks[attack]["test"])
    allowed = int(FPR * len(test) / 100)
    threshold = _threshold(test)
    probability = (
        observation.logits["forget"].double().softmax(1).gather(1, observation.labels["forget"][:, None])[:, 0].numpy()
    )
    below = 100.0 * np.searchsorted(test, forget, side="left") / len(test)
    found = [
        SuspectedMember(
            int(ids[row]),
            float(forget[row]),
            float(below[row]),
            float(probability[row]),
            int(observation.labels["forget"][row]),
        )
        for row in np.argsort(-forget, kind="stable")
        if forget[row] > threshold
    ]
    return Members(attack, found, threshold, len(forget) * (allowed + 1) / (len(test) + 1))


def harm(observation: Observation, baseline: Observation | None) -> Mapping[str, float]:
    """Retained and test samples that the baseline classifies correctly and the model does not, and vice versa."""
    if baseline is None:
        return {}
    changes = {}
    for name in ("retain", "test"):
        ours, theirs = observation.right(name), baseline.right(name)
        changes[f"{name}_samples_lost"] = int((theirs & ~ours).sum())
        changes[f"{name}_samples_gained"] = int((ours & ~theirs).sum())
    return changes
