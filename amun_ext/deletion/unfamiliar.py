"""Samples that a model does not look as if it was trained on them: a wrong label, other data, another checkpoint."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.data.images import stored
from amun_ext.metrics.signals import scaled_logit
from amun_ext.models import predict
from amun_ext.validation import listed

ERROR = 0.001  # chance to name a sample that is like the test samples
FEWEST = 99  # test samples


def unfamiliar(model: nn.Module, forget: TensorDataset, test: TensorDataset) -> tuple[list[int], float]:
    """The rows of `forget` of whose class the model is less sure than of nearly all test samples, and the error.

    This is a conformal test (Vovk et al. 2005): a sample drawn as the n test samples were is named with at most the
    probability k / (n + 1), which is the error, with k = 1 or as many as keep it at 0.1 %. One that was trained on is
    named more rarely. Nothing is named where there are fewer than 99 test samples.
    """
    if len(test) < FEWEST:
        return [], 0.0
    sure, of_test = (scaled_logit(predict(model, data), stored(data)[1].cpu()) for data in (forget, test))
    below = max(1, int(ERROR * (len(test) + 1)))
    named = sure < of_test.kthvalue(below).values
    return torch.nonzero(named)[:, 0].tolist(), below / (len(test) + 1)


def remarks(keys: list[str], error: float) -> list[str]:
    """In words, with the keys of the samples; none for no sample."""
    if not keys:
        return []
    told = f"the model does not look as if it was trained on {len(keys)} of the samples: {listed(keys)}. It is less"
    return [f"{told} sure of their class than of nearly all test samples; of those {100 * error:.2g} % are like this"]
