"""A vision transformer of the kind that the package transformers has: its answer holds the logits.

    python examples/transformers_vit.py

A model that returns an object with `.logits`, as those of transformers do, is taken as it is. With transformers
installed, `vit` below would be ViTForImageClassification.from_pretrained("..."); the small module here gives the same
answer and needs nothing. What its image processor does to pixels belongs into the model, in three lines: then inputs
are pixels in [0, 1], and so are the units of every distance.
"""

from types import SimpleNamespace

import torch
from torch import nn

from amun_ext import data, find_min_adversarial, unlearn
from amun_ext.deletion import forget_ids, split
from amun_ext.training import DataPart, Pass, Recipe, fit


class SmallViT(nn.Module):
    """Patches of 2x2 pixels, one layer of attention; the answer has the logits in `.logits`."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(16, width) / 10)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        return SimpleNamespace(logits=self.head(self.layer(tokens).mean(1)), hidden_states=None)


class Normalised(nn.Sequential):
    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        return super().forward((images - 0.5) / 0.5)  # the processor's image_mean and image_std


torch.manual_seed(0)
train = data.load("digits").train
vit = SmallViT()
model = Normalised(vit)
fit(model, [Pass([DataPart(train)])], Recipe(epochs=20, lr=0.05, schedule="cosine", batch_size=64))

forget, retain = split(train, forget_ids(len(train), fraction=0.1, seed=0))
found = find_min_adversarial(model, *forget.tensors, method="ddn")
print(f"found {int(found.found.sum())} of {len(forget)}, median L2 distance {found.distance[found.found].median():.3f}")
unlearned = unlearn(model, forget, retain, include_forget=False, adversarial=found, recipe=Recipe(epochs=5, lr=0.01))
answer = unlearned(forget.tensors[0])
print(f"the unlearned model answers as before: an object with logits {list(answer.logits.shape)}")
