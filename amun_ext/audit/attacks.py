"""Which attacks a model is audited with: scores of every sample, higher where it looks more like a member."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amun_ext.audit.references import References
from amun_ext.evaluation.lira import lira
from amun_ext.evaluation.rmia import PRESETS, rmia

Scores = NDArray[np.float64]
Signals = Mapping[str, Tensor]  # of the audited model, as those that references keep: name -> [N]
Groups = Mapping[str, Tensor]  # name of a set -> its rows


@dataclass(frozen=True)
class Attack:
    name: str
    explanation: str
    references: int  # that it needs at least
    scores: Callable[[Signals, References | None, Groups], Scores]


def _confidence(signals: Signals, references: References | None, groups: Groups) -> Scores:
    return signals["log-odds"].double().numpy()


def _rmia(signals: Signals, references: References | None, groups: Groups) -> Scores:
    assert references is not None
    # In float64, where the softmax of confident samples does not round to one.
    target, reference = (values.double().sigmoid() for values in (signals["log-odds"], references.signals["log-odds"]))
    return rmia(target, reference, references.membership, **PRESETS["robust"].arguments, groups=groups).log_ratio


def _rmia_as_published(signals: Signals, references: References | None, groups: Groups) -> Scores:
    assert references is not None
    target, reference = signals["sm-taylor"], references.signals["sm-taylor"]
    return rmia(target, reference, references.membership, **PRESETS["amun"].arguments, groups=groups).score


def _lira(signals: Signals, references: References | None, groups: Groups) -> Scores:
    assert references is not None
    return lira(signals["log-odds"], references.signals["log-odds"], references.membership)


# The first that can be made is the one of the verdict.
ATTACKS = (
    Attack("RMIA", "likelihood ratio to the references (Zarifzadeh et al. 2024)", 2, _rmia),
    Attack("LiRA", "likelihood ratio of two normals fitted to the references (Carlini et al. 2022)", 4, _lira),
    Attack("RMIA, as published", "with the cubic SM-Taylor-softmax and gamma 2 (paper)", 2, _rmia_as_published),
    Attack("confidence", "log-odds of the true class, without references", 0, _confidence),
)


def possible(references: References | None) -> list[Attack]:
    there = 0 if references is None else len(references)
    return [attack for attack in ATTACKS if attack.references <= there]
