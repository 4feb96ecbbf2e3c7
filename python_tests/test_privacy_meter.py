"""Signals and scores beside those of privacy-meter, on the same arrays (recorded by privacy_meter/record.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from amun_ext.metrics import rmia
from amun_ext.metrics.signals import SIGNALS

Recorded = dict[str, np.ndarray]

SIGNAL_OF = {
    "softmax": ("softmax", {"temperature": 2.0}),
    "taylor": ("taylor", {"order": 4}),
    "soft-margin": ("soft-margin", {"margin": 0.6, "temperature": 2.0}),
    "taylor-soft-margin": ("sm-taylor", {"order": 4, "margin": 0.6, "temperature": 2.0}),
    "log-logit-scaling": ("log-odds", {}),
}
SCORES = {
    "online": {},
    "online, trimmed": {"trim": 0.3},
    "offline": {"mode": "offline", "a": 0.3},
    "online, augmented": {"aggregate": "vote"},
}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with np.load(Path(__file__).with_name("privacy_meter") / "recorded.npz") as file:
        return dict(file)


@pytest.mark.parametrize("theirs", SIGNAL_OF)
def test_signals(recorded: Recorded, theirs: str) -> None:
    ours, options = SIGNAL_OF[theirs]
    logits, labels = torch.from_numpy(recorded["logits"]), torch.from_numpy(recorded["labels"])
    assert_allclose(SIGNALS[ours](logits, labels, **options), recorded[f"signal {theirs}"], rtol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_published_scores(recorded: Recorded, name: str) -> None:
    """Theirs are negative, and count a member of the population once too often, where the pair with itself is none."""
    target, references = recorded["target"].T, recorded["references"].transpose(2, 0, 1)
    if "augmented" not in name:
        target, references = target[0], references[0]
    population = recorded["population"]
    made = rmia(target, references, recorded["membership"], population=population, gamma=2.0, **SCORES[name])
    theirs = -recorded[f"score {name}"]
    theirs[population] -= 1 / (len(population) - 1)
    assert len(np.unique(theirs)) > 20
    assert_allclose(made.score, theirs, atol=1e-7)  # theirs are means in float32


def test_scores_of_version_2(recorded: Recorded) -> None:
    """gamma is 1 there, and the prior of the population the mean of the larger half of its signals."""
    population = recorded["population"]
    reference, membership = recorded["references"][:, :, 0], recorded["membership"].copy()
    ranks = reference[:, population].argsort(0).argsort(0)
    membership[:, population] = ranks < len(reference) // 2
    made = rmia(
        recorded["target"][:, 0], reference, membership, population=population, gamma=1.0, mode="offline", a=0.3
    )
    others = np.setdiff1d(np.arange(reference.shape[1]), population)
    assert_array_equal(made.score[others], recorded["score version 2"])
