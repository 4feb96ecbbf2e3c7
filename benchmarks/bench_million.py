"""A million deletions on 64 GPUs, by the arithmetic of `amun plan`: a prediction from one number that was measured.

That is the rate of the search on one H100 (results/gpu/search.json): ResNet-18, images of 1x28x28. A gradient for the
images is a forward and a backward pass; a step of a training is taken as 3/2 of it, because it needs the gradients of
the weights as well, and a prediction as 1/2. Sharing a batch is taken to cost nothing but the network.
"""

import json
from dataclasses import replace
from typing import Any

import torch
from common import RESULTS, write

from amun_ext import models
from amun_ext.deletion.estimate import Cost, Costs, kept_bytes
from amun_ext.deletion.plan import Sizes, plan
from amun_ext.recipe import FINE_TUNING, PAPER_TRAINING
from amun_ext.unlearning.config import resolve_config

SIZES = Sizes(forget=10**6, retain=9 * 10**6, test=10**5, references=128, devices=64, bandwidth=10e9)
GRADIENTS, COST = 10, 11.5  # of a ddn search; its cost in gradients includes the passes without one
MEASURED, MEASURED_GRADIENTS = "ddn, 10 gradients", 10
BATCHES = 128, 8192


def costs() -> Costs:
    rate = json.loads((RESULTS / "gpu/search.json").read_text())["searches"][MEASURED]["rate"]
    gradient = 1 / (rate * MEASURED_GRADIENTS)
    model = models.build("resnet18", num_classes=10, in_channels=1)
    kept, classes = kept_bytes(model, torch.rand(2, 1, 28, 28))
    weights = sum(4 * each.numel() for each in model.parameters())
    step = Cost(0.0, 1.5 * gradient)
    return Costs(
        search=Cost(0.0, COST * gradient),
        gradients=GRADIENTS,
        search_batch=128,
        tuning=step,
        retraining=step,
        alone=step,
        prediction=Cost(0.0, gradient / 2),
        weights=weights,
        trained=weights,
        activations=sum(kept) // 2,
        largest=max(kept) // 2,
        image=4 * 28**2,
        stored=28**2,
        classes=classes,
    )


def main() -> None:
    found: dict[str, Any] = {}
    for batch in BATCHES:
        recipe = replace(FINE_TUNING, batch_size=batch)
        config = resolve_config("amun", default={"include_forget": False, "recipe": recipe})
        stages = plan(costs(), SIZES, config, replace(PAPER_TRAINING, batch_size=batch))
        found[str(batch)] = [each._asdict() for each in stages]
    write("million", {"sizes": SIZES._asdict(), "batches": found})


if __name__ == "__main__":
    main()
