"""The closest adversarial examples for a network of your own.

    python examples/closest_examples.py

The network here is a small CNN that is trained on 8x8 digits for a few seconds. Put your own trained nn.Module in its
place. It must map inputs [N, ...] to logits [N, K], with its normalisation inside: distances are then in the units of
the inputs, here pixels in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import nn

from amun_ext import data, find_min_adversarial


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers((images - 0.3) / 0.38)  # mean and standard deviation of the training images


torch.manual_seed(0)
images, labels = data.load("digits").train.tensors  # [N, 1, 8, 8] in [0, 1], and [N]
model = Network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for _ in range(20):
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

result = find_min_adversarial(model, images[:100], labels[:100], method="ddn")
print(f"found {int(result.found.sum())} of 100, median L2 distance {result.distance[result.found].median():.3f}")
print(f"first image: class {int(labels[0])}, its example is taken for class {int(result.labels[0])}")
result.save("examples.safetensors")  # AdversarialSet.load reads it
