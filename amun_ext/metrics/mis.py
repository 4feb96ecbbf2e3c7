"""MIS, the membership inference score of older papers: the share of the forget set that an attack calls non-members.

The attack is trained on the model itself, with retain samples as members and test samples as non-members. The value to
reach is that of the retrained model.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amun_ext.metrics.auc import roc
from amun_ext.metrics.signals import log_odds
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import check_integer, require

Predictions = tuple[Tensor, Tensor]  # logits [N, K] and labels [N]


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_j p_j log p_j, [N] float64; the labels are not used."""
    terms: Tensor = torch.special.entr(logits.double().softmax(dim=1))
    return terms.sum(dim=1)


def m_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-(1 - p_y) log p_y - sum over j != y of p_j log(1 - p_j), [N] float64 (Song and Mittal 2021, modified entropy).

    Small for a confident correct prediction, large for a confident wrong one. Published unlearning code has log p_j in
    the sum and ignores the labels, which is another measure.
    """
    log_p = logits.double().log_softmax(dim=1)
    largest = log_p.argmax(dim=1, keepdim=True)
    # 1 - p_j cancels only for the largest p_j, so it is computed there as the sum of the others
    rest = log_p.scatter(1, largest, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_rest = torch.log1p(-log_p.exp().scatter(1, largest, 0.0)).scatter(1, largest, rest)
    true = labels.long().unsqueeze(1)
    others = (log_p.exp() * log_rest).scatter(1, true, 0.0).sum(dim=1)
    own = (log_rest.exp() * log_p).gather(1, true).squeeze(1)
    return -own - others


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """p_y, [N] float64."""
    return logits.double().softmax(dim=1).gather(1, labels.long().unsqueeze(1)).squeeze(1)


FEATURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "correctness": lambda logits, labels: (logits.argmax(dim=1) == labels).double(),
        "confidence": confidence,
        "entropy": entropy,
        "m_entropy": m_entropy,
        "prob": lambda logits, labels: logits.double().softmax(dim=1),
    }
)


def mis(
    retain: Predictions, test: Predictions, forget: Predictions, *, feature: str = "confidence", seed: int = 0
) -> float:
    """Percent of the forget set that a support vector machine calls non-members, as published (paper section 3.2).

    Each set is the logits [N, K] of one model and the labels [N]. The SVM is scikit-learn's, with C 3, gamma "auto" and
    a Gaussian kernel, on one of `FEATURES`; papers report "confidence". It is trained on equally many retain and test
    samples, the larger set drawn by `seed`. Time is quadratic in their number: seconds for 10,000.

    The kernel is too wide to tell a confidence of .99 from 1; see `mis_threshold`.
    """
    from sklearn.svm import SVC  # here, because it takes a second to import

    require(feature in FEATURES, "feature", f"one of {tuple(FEATURES)}", repr(feature))
    seed = check_integer("seed", seed, 0)
    _check(retain, test, forget)
    count = min(len(retain[0]), len(test[0]))
    retain, test = (_drawn(predictions, count, seed) for predictions in (retain, test))
    training = np.concatenate([_features(feature, retain), _features(feature, test)])
    machine = SVC(C=3, gamma="auto", kernel="rbf").fit(training, np.repeat([1, 0], count))
    return 100.0 * float(np.mean(machine.predict(_features(feature, forget)) == 0))


def mis_threshold(retain: Predictions, test: Predictions, forget: Predictions) -> float:
    """Percent of the forget set below the log-odds that best separate retain from test samples, by balanced accuracy.

    Unlike `mis` it uses a feature that does not saturate, and all samples, because balanced accuracy does not depend on
    the sizes of the sets. Among equally good thresholds the highest is taken; 100 if none is better than calling all
    samples non-members.
    """
    _check(retain, test, forget)
    members, nonmembers, forgotten = (log_odds(*each).cpu().numpy() for each in (retain, test, forget))
    curve = roc(members, nonmembers)
    best = int(np.argmax(np.round(curve.tpr - curve.fpr, 9)))  # equal up to rounding
    return 100.0 if best == 0 else 100.0 * float(np.mean(forgotten < curve.threshold[best]))


def _drawn(predictions: Predictions, count: int, seed: int) -> Predictions:
    logits, labels = (part.cpu() for part in predictions)
    if count == len(logits):
        return logits, labels
    rows = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed), device="cpu")[:count]
    return logits[rows], labels[rows]


def _check(retain: Predictions, test: Predictions, forget: Predictions) -> None:
    classes = retain[0].shape[-1]
    for name, (logits, labels) in (("retain", retain), ("test", test), ("forget", forget)):
        shaped = logits.dim() == 2 and len(logits) > 0 and classes == logits.shape[1] >= 2
        require(shaped, name, "logits [N, K], not empty, with the same K >= 2", f"shape {tuple(logits.shape)}")
        check_labels(f"labels of {name}", labels, len(logits), classes)
        broken = logits.numel() - int(logits.isfinite().sum())
        require(broken == 0, name, "finite logits", f"{broken} of {logits.numel()} not finite")


def _features(name: str, predictions: Predictions) -> NDArray[np.float64]:
    logits, labels = (part.detach().cpu() for part in predictions)
    values: NDArray[np.float64] = FEATURES[name](logits, labels).numpy()
    return values.reshape(len(values), -1)  # [N, 1] or [N, K]
