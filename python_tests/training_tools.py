"""Trainings that are killed in the middle: what test_training resumes, and the process that is killed."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit

KILLED_AT = 18  # forwards in training: in the third of four epochs of seven


class Noisy(Dataset):
    """Items that a transform draws anew each time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index] + 0.1 * torch.rand(self.images.shape[1:]), int(self.labels[index])


class Net(nn.Sequential):
    """A small network with BatchNorm and dropout, which calls `at` before every forward in training."""

    def __init__(self, at: Callable[[int], None]) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(144, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
        self.at, self.forwards = at, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.forwards += 1
            self.at(self.forwards)
        return super().forward(x)


@dataclass(frozen=True)
class Training:
    recipe: Recipe
    masked: bool = False
    noisy: bool = False
    num_workers: int = 0

    def run(self, checkpoint: Path | None, at: Callable[[int], None] = lambda forward: None, **run: object) -> Net:
        torch.set_num_threads(1)
        random = torch.Generator().manual_seed(4)
        images = torch.rand(40, 1, 8, 8, generator=random)
        labels = torch.randint(0, 3, (40,), generator=random)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            net = Net(at)
        mask = {name: torch.rand(each.shape, generator=random) < 0.5 for name, each in net.named_parameters()}
        kept = TensorDataset(images[:20], labels[:20])
        others = (Noisy if self.noisy else TensorDataset)(images[20:], labels[20:])
        drawn = DataPart(others, labels=lambda epoch: (labels[20:] + epoch) % 3)
        settings = {
            "seed": 6,
            "mask": mask if self.masked else None,
            "checkpoint": checkpoint,
            "num_workers": self.num_workers,
        }
        fit(net, [Pass([DataPart(kept, augment=False), drawn])], self.recipe, RunOptions(**settings | run))
        return net


PLAIN = Recipe(epochs=4, lr=0.1, schedule="cosine", batch_size=6)
TRAININGS = {
    "plain": Training(PLAIN),
    "masked": Training(PLAIN, masked=True),
    "augmented": Training(Recipe(epochs=4, lr=0.1, schedule="step:1", batch_size=6, augment=True, channels_last=True)),
    "float16": Training(Recipe(epochs=4, lr=0.1, batch_size=6, precision="float16")),
    "noisy": Training(PLAIN, noisy=True),
    "noisy, workers": Training(PLAIN, noisy=True, num_workers=2),
}


def kill_all(folder: Path) -> None:
    """Each training in a process of its own, which is killed in the middle of it."""

    def kill(forward: int) -> None:
        if forward == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    for name, training in TRAININGS.items():
        child = os.fork()
        if child == 0:
            training.run(folder / name, kill)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, name


if __name__ == "__main__":
    kill_all(Path(sys.argv[1]))
