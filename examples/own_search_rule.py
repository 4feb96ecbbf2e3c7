"""A search rule of your own, beside the built-in "ddn".

    python examples/own_search_rule.py

A rule is a function of an `amun_ext.search.Iterate`. It returns the next points [B, ...]; they are clamped to the box
for it, and the closest adversarial example on the way is kept. The queue of samples, the last check on the model and
the file of results are those of every method.
"""

import torch

from amun_ext import data, find_min_adversarial, models
from amun_ext.search import Iterate
from amun_ext.training import DataPart, Pass, Recipe, fit


def back_and_forth(it: Iterate) -> torch.Tensor:
    """Towards the boundary in steps that get shorter; from beyond it, a tenth of the way back to the input."""
    per_sample = (-1, *[1] * (it.x.dim() - 1))
    length = it.margin.clamp(min=0.1) / it.grad.flatten(1).norm(dim=1)  # to the boundary, were the model linear
    forward = it.x + (length / it.grad.flatten(1).norm(dim=1)).view(per_sample) * it.grad
    back = it.inputs + 0.9 * (it.x - it.inputs)
    return torch.where(it.adversarial.view(per_sample), back, forward)


torch.manual_seed(0)
train = data.load("digits").train
model = models.build("small-cnn", num_classes=10, in_channels=1)
fit(model, [Pass([DataPart(train)])], Recipe(epochs=20, lr=0.05, schedule="cosine", batch_size=64))

images, labels = train[:100]
for name, method in (("ddn", "ddn"), ("back_and_forth", back_and_forth)):
    result = find_min_adversarial(model, images, labels, method=method, steps=14)
    median = result.distance[result.found].median()
    print(f"{name}: found {int(result.found.sum())} of 100, median L2 distance {median:.3f}")
