"""Estimate the time of a request from a few of its batches."""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from amun_ext.data.images import Data, subset
from amun_ext.deletion.request import Sets, warm_up
from amun_ext.search import find_min_adversarial
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig

BATCHES = 4  # of the retain and of the forget set, at most
MORE = 3  # epochs


def seconds(model: nn.Module, request_sets: Sets, config: MethodConfig) -> float:
    """Of a method with this configuration, its search and mask included; the model stays as it is.

    The time of the search is taken to grow with the forget set, that of training with all samples and with the epochs.
    """
    count = BATCHES * config.recipe.batch_size
    forget, retain = (_some(data, count) for data in (request_sets.forget, request_sets.retain))
    share = (len(request_sets.forget) + len(request_sets.retain) * config.with_retain) / (
        len(forget) + len(retain) * config.with_retain
    )
    warm_up()
    examples, search = None, 0.0
    if (how := config.search) is not None:
        examples = find_min_adversarial(model, forget, **how)
        search = _timed(lambda: find_min_adversarial(model, forget, **how))

    def trained(epochs: int) -> float:
        recipe = replace(config.recipe, epochs=epochs, warmup_epochs=0)
        short = replace(config, options={**config.options, "recipe": recipe})
        return _timed(lambda: short.unlearn(model, forget, retain, adversarial=examples))

    trained(1)  # the first has costs of its own
    once = trained(1)
    if not METHODS[config.method].trains:
        return once * share
    epoch = max(0.0, (trained(1 + MORE) - once) / MORE)
    return (
        search * len(request_sets.forget) / len(forget) + max(0.0, once - epoch) + epoch * config.recipe.epochs * share
    )


def _some(data: Data, count: int) -> Data:
    return data if len(data) <= count else subset(data, slice(count))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples without an example, which the request itself tells
        work()
    return time.perf_counter() - start
