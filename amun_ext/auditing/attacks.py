"""The table of attacks: each scores every sample, higher where the sample looks more like a member."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amun_ext.auditing import references, shadows
from amun_ext.auditing.model_signals import ModelSignals
from amun_ext.auditing.shadows import Shadows
from amun_ext.metrics.lira import lira
from amun_ext.metrics.rmia import PRESETS, rmia

U_LIRA = "U-LiRA"
Scores = NDArray[np.float64]  # [N], NaN for a sample without a score
Signals = Mapping[str, Tensor]  # of the audited model: name in KEPT_SIGNALS -> [N]
Groups = Mapping[str, Tensor]  # name of a set -> its rows


@dataclass(frozen=True)
class Attack:
    name: str
    explanation: str
    scores: Callable[..., Scores]  # of (signals, groups), or of (signals, models, groups)
    needs: str | None = None  # the kind of models
    min_models: int = 0


def _confidence(signals: Signals, groups: Groups) -> Scores:
    return signals["log-odds"].double().numpy()


def _softmax(signals: Signals) -> Tensor:
    return signals["log-odds"].double().sigmoid()  # float32 rounds confident predictions to one


def _rmia(signals: Signals, models: ModelSignals, groups: Groups) -> Scores:
    target, reference = _softmax(signals), _softmax(models.signals)
    return rmia(target, reference, models.membership, **PRESETS["robust"].arguments, groups=groups).log_ratio


def _rmia_offline(signals: Signals, models: ModelSignals, groups: Groups) -> Scores:
    target, reference = _softmax(signals), _softmax(models.signals)
    return rmia(target, reference, models.membership, mode="offline", a=0.3).log_ratio


def _rmia_as_published(signals: Signals, models: ModelSignals, groups: Groups) -> Scores:
    target, reference = signals["sm-taylor"], models.signals["sm-taylor"]
    return rmia(target, reference, models.membership, **PRESETS["amun"].arguments, groups=groups).score


def _lira(signals: Signals, models: ModelSignals, groups: Groups) -> Scores:
    return lira(signals["log-odds"], models.signals["log-odds"], models.membership)


def _u_lira(signals: Signals, models: Shadows, groups: Groups) -> Scores:
    scores = np.full(len(signals["log-odds"]), np.nan)
    of = signals["log-odds"][models.rows]
    scores[models.rows.numpy()] = lira(of, models.signals["log-odds"], models.membership)
    return scores


# The measures use the first attack whose models are given.
ATTACKS = (
    Attack("RMIA", "likelihood ratio to the references (Zarifzadeh et al. 2024)", _rmia, references.KIND, 2),
    Attack(
        "LiRA",
        "likelihood ratio of two normals fitted to the references (Carlini et al. 2022)",
        _lira,
        references.KIND,
        4,
    ),
    Attack(
        "RMIA, offline",
        "likelihood ratio to the references that were not trained on the sample",
        _rmia_offline,
        references.KIND,
        2,
    ),
    Attack(
        "RMIA, as published",
        "RMIA with the cubic SM-Taylor-softmax and gamma 2 (paper)",
        _rmia_as_published,
        references.KIND,
        2,
    ),
    Attack("confidence", "log-odds of the true class, without references", _confidence),
    Attack(
        U_LIRA,
        "likelihood ratio of shadows that forgot the sample to shadows that never saw it (Hayes et al. 2024)",
        _u_lira,
        shadows.KIND,
        shadows.MIN_SHADOWS,
    ),
)


def all_scores(signals: Signals, models: Mapping[str, ModelSignals], groups: Groups) -> dict[str, Scores]:
    """Attack -> scores, for the attacks whose models are given; `models` by their kind."""
    scores = {}
    for attack in ATTACKS:
        if attack.needs is None:
            scores[attack.name] = attack.scores(signals, groups)
        elif attack.needs in models and len(models[attack.needs]) >= attack.min_models:
            scores[attack.name] = attack.scores(signals, models[attack.needs], groups)
    return scores
