"""Plan a request, its audit's references and the devices for them: the arithmetic, from measured costs of a batch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from amun_ext.deletion.estimate import Cost, Costs
from amun_ext.models.predict import BATCH_BYTES
from amun_ext.recipe import Recipe
from amun_ext.report.tables import Column, Row, Table, value, word
from amun_ext.search.find import CHUNK_BYTES
from amun_ext.unlearning.config import MethodConfig

SEARCH_COPIES = 6  # of a chunk of images, in a search
BATCH_COPIES = 3  # of a batch of images, in a training
BACKWARD_COPIES = 2  # of what a forward pass keeps, in a training: that, and gradients and blocks that it freed
PREDICTION_COPIES = 2  # of the largest layer
ROW_BYTES = 45  # of a sample's result of a search, beside its example
MODELS = 2  # that a report compares beside a retrained one
HALF = 0.5


class Sizes(NamedTuple):
    """What is planned for. bandwidth: bytes that a device sends a second."""

    forget: int
    retain: int
    test: int
    references: int
    devices: int
    bandwidth: float


class Stage(NamedTuple):
    """Seconds are those of the slowest rank, bytes those of each rank."""

    name: str
    seconds: float
    network_seconds: float  # of `seconds`
    gradients: float  # of a sample of the forget set, of the training
    messages: int
    sent_bytes: float
    memory_bytes: float
    limit: str


def plan(costs: Costs, sizes: Sizes, config: MethodConfig, original: Recipe | None) -> list[Stage]:
    """The stages of a request by this configuration; `original` is the recipe of retraining and references."""
    samples = sizes.retain * config.with_retain + sizes.forget * (1 + config.options["include_forget"])
    stages = [_search(costs, sizes), _training("unlearning", costs, costs.tuning, sizes, config.recipe, samples)]
    if original is not None:
        stages.append(_training("retraining", costs, costs.retraining, sizes, original, sizes.retain))
        if sizes.references:
            stages.append(_references(costs, sizes, original))
    stages.append(_evaluation(costs, sizes, MODELS + (original is not None)))
    return stages


def table(stages: Sequence[Stage]) -> Table:
    names = ("seconds", "of them network", "gradients per sample", "messages", "GB sent per rank", "MiB per rank")
    columns = [*map(Column, names), Column("limited by", words=True)]
    rows = [
        Row(
            each.name,
            [
                value(each.seconds),
                value(each.network_seconds),
                value(each.gradients),
                value(each.messages, 0),
                value(each.sent_bytes / 1e9, 3),
                value(each.memory_bytes / 2**20, 0),
                word(each.limit),
            ],
        )
        for each in stages
    ]
    return Table("plan", "stage", columns, rows)


def summary(stages: Sequence[Stage]) -> str:
    total = sum(each.seconds for each in stages)
    longest = max(stages, key=lambda each: each.seconds)
    share = 100 * longest.seconds / total
    return f"about {total:.3g} seconds in all; {longest.name} takes {share:.0f} % of them, limited by {longest.limit}"


def to_dict(stages: Sequence[Stage], costs: Costs, sizes: Sizes) -> dict[str, object]:
    measured = {name: of._asdict() if isinstance(of, Cost) else of for name, of in costs._asdict().items()}
    return {"stages": [each._asdict() for each in stages], "costs": measured, "sizes": sizes._asdict()}


def _search(costs: Costs, sizes: Sizes) -> Stage:
    own = math.ceil(sizes.forget / sizes.devices)
    row = costs.image + ROW_BYTES
    network = sizes.forget * row / sizes.bandwidth if sizes.devices > 1 else 0.0  # all ranks get all results
    computed = costs.search.seconds(own)
    images = max(costs.search_batch * costs.image, min(CHUNK_BYTES, own * costs.image))
    memory = 2 * costs.weights + costs.search_batch * costs.activations + SEARCH_COPIES * images
    return Stage(
        "search",
        computed + network,
        network,
        costs.gradients,
        8 * sizes.devices * (sizes.devices > 1),
        own * row * (sizes.devices > 1),
        memory + _resident(costs, sizes),
        "network" if network > computed else "gradients",
    )


def _training(name: str, costs: Costs, cost: Cost, sizes: Sizes, recipe: Recipe, samples: int) -> Stage:
    steps = recipe.epochs * math.ceil(samples / recipe.batch_size)
    part = math.ceil(recipe.batch_size / sizes.devices)
    sent = steps * 2 * (sizes.devices - 1) / sizes.devices * costs.trained  # of a ring
    network = sent / sizes.bandwidth
    computed = cost.seconds(recipe.epochs * samples / sizes.devices)
    limit = "gradients"
    if costs.alone.each < HALF * cost.each:
        limit = f"small parts of a batch, {part} of {recipe.batch_size}"
    return Stage(
        name,
        computed + network,
        network,
        recipe.epochs,
        steps * (sizes.devices > 1),
        sent,
        _training_memory(costs, recipe, part, sizes.devices) + _resident(costs, sizes),
        "network" if network > computed else limit,
    )


def _references(costs: Costs, sizes: Sizes, recipe: Recipe) -> Stage:
    everything = sizes.forget + sizes.retain + sizes.test
    rounds = math.ceil(sizes.references / sizes.devices)
    memory = _training_memory(costs, recipe, recipe.batch_size, 1) + 4 * costs.classes * everything
    one = costs.alone.seconds(recipe.epochs * everything / 2) + costs.prediction.seconds(everything)
    idle = sizes.references < 0.75 * rounds * sizes.devices
    return Stage(
        f"{sizes.references} references",
        rounds * one,
        0.0,
        recipe.epochs * sizes.references / 2,
        0,
        0.0,
        memory + _resident(costs, sizes),
        f"whole models, {sizes.references} for {sizes.devices} devices" if idle else "gradients",
    )


def _evaluation(costs: Costs, sizes: Sizes, models: int) -> Stage:
    everything = sizes.forget + sizes.retain + sizes.test
    batch = min(512, max(1, BATCH_BYTES // costs.image))
    memory = models * (costs.weights + 4 * costs.classes * everything)
    memory += batch * (costs.image + PREDICTION_COPIES * costs.largest)
    return Stage(
        "evaluation",
        models * costs.prediction.seconds(everything),
        0.0,
        0.0,
        0,
        0.0,
        memory + _resident(costs, sizes),
        "one process" if sizes.devices > 1 else "predictions",
    )


def _training_memory(costs: Costs, recipe: Recipe, part: int, devices: int) -> float:
    copies = 1 + (recipe.optimizer == "adamw") + 1 + (devices > 1)  # momentum, gradients, and their sum over ranks
    piece = math.ceil(part / recipe.accumulation_steps)
    images = BATCH_COPIES * recipe.batch_size * costs.image
    return costs.weights + copies * costs.trained + BACKWARD_COPIES * piece * costs.activations + images


def _resident(costs: Costs, sizes: Sizes) -> int:
    """Bytes of the data in memory: the sets, and the forget and the retain set as their own tensors."""
    return costs.stored * (2 * (sizes.forget + sizes.retain) + sizes.test)
