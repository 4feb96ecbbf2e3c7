"""Signals of membership inference: the confidence in the true class, for any number of models at once.

Each takes logits [..., N, C], finite and floating point, C >= 2, and labels [N] in [0, C), which hold for all leading
dimensions (such as models), and returns [..., N], float32 (float64 for float64), larger for more confidence. With z the
logits of a sample and y its label:

    softmax             exp(z_y / T) / sum_j exp(z_j / T)
    log-odds            z_y - logsumexp_{j != y} z_j, the scaled logit of LiRA (Carlini et al. 2022)
    taylor              t(z_y) / sum_j t(z_j), with t the first `order` terms of the series of exp
    soft-margin         exp(z_y / T - m) / (exp(z_y / T - m) + sum_{j != y} exp(z_j / T))
    sm-taylor           the same with t for exp, as the AMUN paper uses it (see amun_ext.sm_taylor_softmax)
    sm-taylor-clamped   the same with every term at least 1e-3

The Taylor signals as published are not probabilities: they may be below 0 and above 1, which is frequent for confident
wrong predictions. They have no gradient.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from amun_ext.ops import TAYLOR_ORDERS, accumulate_dtype, sm_taylor_softmax
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import require


def _check(
    logits: Tensor, labels: Tensor, *, temperature: float = 1.0, margin: float = 0.0, order: int = TAYLOR_ORDERS[0]
) -> None:
    require(isinstance(logits, Tensor), "logits", "a tensor [..., N, C]", type(logits).__name__)
    shaped = logits.dim() >= 2 and logits.shape[-1] >= 2
    require(shaped, "logits", "[..., N, C] with C >= 2", f"shape {tuple(logits.shape)}")
    require(logits.is_floating_point(), "logits", "floating point", logits.dtype)
    check_labels("labels", labels, *logits.shape[-2:])
    broken = logits.numel() - int(logits.isfinite().sum())
    require(broken == 0, "logits", "finite", f"{broken} of {logits.numel()} not finite")
    require(0 < temperature < math.inf, "temperature", "positive and finite", temperature)
    require(math.isfinite(margin), "margin", "finite", margin)
    require(order in TAYLOR_ORDERS, "order", f"in [{TAYLOR_ORDERS[0]}, {TAYLOR_ORDERS[-1]}]", order)


def _log_odds(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    scaled = logits.to(accumulate_dtype(logits.dtype)) / temperature
    true = labels.long().expand(logits.shape[:-1]).unsqueeze(-1)  # [..., N, 1]
    others = scaled.scatter(-1, true, -torch.inf).logsumexp(dim=-1)
    return scaled.gather(-1, true).squeeze(-1) - others


def scaled_logit(logits: Tensor, labels: Tensor) -> Tensor:
    _check(logits, labels)
    return _log_odds(logits, labels, 1.0)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p_y / (1 - p_y)) of the true class, [N] float64, as z_y - logsumexp of the other logits (paper section 7).

    logits [N, K] finite, K >= 2; labels [N] in [0, K). Computed from the logits, because 1 - p_y rounds to zero where
    the softmax saturates.
    """
    shaped = logits.dim() == 2 and logits.shape[1] >= 2
    require(shaped, "logits", "[N, K] with K >= 2", f"shape {tuple(logits.shape)}")
    return scaled_logit(logits.double(), labels)


def _exponential(logits: Tensor, labels: Tensor, *, margin: float = 0.0, temperature: float = 1.0) -> Tensor:
    _check(logits, labels, temperature=temperature, margin=margin)
    return (_log_odds(logits, labels, temperature) - margin).sigmoid()  # by log-odds, which do not overflow


def _taylor(
    logits: Tensor,
    labels: Tensor,
    *,
    order: int = 4,
    margin: float = 0.0,
    temperature: float = 1.0,
    floor: float | None = None,
) -> Tensor:
    _check(logits, labels, temperature=temperature, margin=margin, order=order)
    return sm_taylor_softmax(logits, labels.long(), order, margin, temperature, floor)


SIGNALS: dict[str, Callable[..., Tensor]] = {
    "softmax": _exponential,
    "log-odds": scaled_logit,
    "taylor": _taylor,
    "soft-margin": partial(_exponential, margin=0.6, temperature=2.0),
    "sm-taylor": partial(_taylor, margin=0.6, temperature=2.0),
    "sm-taylor-clamped": partial(_taylor, margin=0.6, temperature=2.0, floor=1e-3),
}
