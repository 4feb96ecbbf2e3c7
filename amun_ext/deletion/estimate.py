"""Estimate the time of a request from a few of its batches."""

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data.images import Data, is_lazy, stored, subset
from amun_ext.deletion.request import Sets, warm_up
from amun_ext.models import predict
from amun_ext.models.predict import BATCH_BYTES
from amun_ext.models.reinitialise import deep_copy
from amun_ext.models.state import logits_of, placement
from amun_ext.search import find_min_adversarial
from amun_ext.search.batch import default_batch_size
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig

BATCHES = 4  # of the retain and of the forget set, at most
LONG = 0.5  # seconds that a measurement takes at least, if it can
MOST = 20  # repetitions

Clock = Callable[[], float]


class Cost(NamedTuple):
    """Seconds that come once, and those of each sample."""

    once: float
    each: float

    def seconds(self, count: float) -> float:
        return self.once + self.each * count


class Costs(NamedTuple):
    """What a plan is made from: measured on a few batches, for one rank."""

    search: Cost
    gradients: float  # of a sample's search
    search_batch: int
    tuning: Cost  # of a sample of the fine-tuning, in a rank's part of a batch
    retraining: Cost  # the same by the recipe of the original
    alone: Cost  # by that recipe in whole batches, as references are trained
    prediction: Cost
    weights: int  # bytes, of all parameters and buffers
    trained: int  # bytes, of the gradients
    activations: int  # bytes that a forward pass of a sample keeps for its gradient
    largest: int  # bytes, of the largest of them
    image: int  # bytes as float
    stored: int  # bytes of an image in memory; 0 where it is read when it is used
    classes: int


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

    def trained(epochs: int) -> None:
        recipe = replace(config.recipe, epochs=epochs, warmup_epochs=0)
        short = replace(config, options={**config.options, "recipe": recipe})
        short.unlearn(model, forget, retain, adversarial=examples)

    if not METHODS[config.method].trains:
        trained(1)  # the first has costs of its own
        return _timed(lambda: trained(1)) * share
    epochs = _cost(trained)
    return search * len(request_sets.forget) / len(forget) + epochs.seconds(config.recipe.epochs * share)


def measure(
    model: nn.Module,
    data: TensorDataset,
    config: MethodConfig,
    original: Recipe | None = None,
    devices: int = 1,
    clock: Clock = time.perf_counter,
) -> Costs:
    """The costs of a request by this configuration, and of trainings by the recipe of the `original`, on a batch of
    `data` and on a few; so many `devices` share a batch of a training. The model stays as it is."""
    warm_up()
    device, dtype = placement(model, data[:1][0])
    probe = data[:2][0].to(device, dtype)
    how, original = config.search or {}, original or config.recipe
    found: list[Tensor] = []

    def rows(count: int) -> TensorDataset:
        return subset(data, torch.arange(count, device="cpu") % len(data))

    def searched(batches: int) -> None:
        found[:] = [find_min_adversarial(model, rows(batches * search_batch), **how).grad_evals]

    @functools.cache
    def cost_of_epoch(recipe: Recipe) -> Cost:
        part = Pass([DataPart(rows(recipe.batch_size))])
        epoch = _cost(lambda epochs: _train(deep_copy(model), part, replace(recipe, epochs=epochs)), clock)
        return Cost(epoch.once, epoch.each / recipe.batch_size)

    def cost_of_training(recipe: Recipe, devices: int) -> Cost:
        size = max(2, -(-recipe.batch_size // devices))
        return cost_of_epoch(replace(recipe, epochs=1, warmup_epochs=0, schedule="constant", batch_size=size))

    search_batch = how.get("batch_size") or default_batch_size(model, probe)
    search = _cost(searched, clock)
    prediction_batch = max(1, min(512, BATCH_BYTES // probe[:1].nbytes))
    prediction = _cost(lambda batches: predict(model, rows(batches * prediction_batch)), clock)
    kept, classes = kept_bytes(model, probe)
    tensors = [*chain(model.parameters(), model.buffers())]
    return Costs(
        search=Cost(search.once, search.each / search_batch),
        gradients=float(found[0].double().mean()),
        search_batch=search_batch,
        tuning=cost_of_training(config.recipe, devices),
        retraining=cost_of_training(original, devices),
        alone=cost_of_training(original, 1),
        prediction=Cost(prediction.once, prediction.each / prediction_batch),
        weights=sum(each.nbytes for each in tensors),
        trained=sum(4 * each.numel() for each in tensors if each.requires_grad),
        activations=sum(kept) // len(probe),
        largest=max(kept, default=0) // len(probe),
        image=probe[:1].nbytes,
        stored=0 if is_lazy(data) else stored(data)[0][:1].nbytes,
        classes=classes,
    )


def _train(model: nn.Module, part: Pass, recipe: Recipe) -> None:
    fit(model, [part], recipe, RunOptions())


def kept_bytes(model: nn.Module, probe: Tensor) -> tuple[list[int], int]:
    """The bytes of each tensor that a training's forward pass of `probe` [n, ...] keeps, and the number of classes."""
    model = deep_copy(model).train()
    own = {each.untyped_storage().data_ptr() for each in chain(model.parameters(), model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = logits_of(model, probe.clone())
        loss = F.cross_entropy(logits, logits.argmax(1))  # holds the tensors, so that no storage is used again
    sizes = [size for place, size in kept.items() if place not in own]
    del loss
    return sizes, logits.shape[1]


def _some(data: Data, count: int) -> Data:
    return data if len(data) <= count else subset(data, slice(count))


def _cost(work: Callable[[int], object], clock: Clock = time.perf_counter) -> Cost:
    """Of one repetition of `work`, by one and by several: as many as take long enough."""
    _timed(lambda: work(1), clock)  # the first has costs of its own
    one = _timed(lambda: work(1), clock)
    more = min(MOST, max(3, round(LONG / max(one, 1e-6))))
    each = max(0.0, (_timed(lambda: work(1 + more), clock) - one) / more)
    return Cost(max(0.0, one - each), each)


def _timed(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    start = clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples without an example, which the request itself tells
        work()
    return clock() - start
