"""Small networks and sets for tests of the training, and trainings that are killed in the middle (test_resume)."""

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

# Python 3.12 and later warn where a process with threads makes another, as DataLoader does
FORKS = "ignore:.*multi-threaded, use of fork:DeprecationWarning"
SMALL_TRAINING = "train --data digits --model small-cnn --width 4 --epochs 1 --lr 0.1"
KILLED_AT = 18  # forwards in training: in the third of four epochs of seven


def linear_net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def part(count: int = 20, **options: bool) -> DataPart:
    """For `linear_net`."""
    return DataPart(TensorDataset(torch.rand(count, 1, 3, 4), torch.randint(0, 3, (count,))), **options)


def conv_net(norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    layers = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 36, 3)
    )


def pictures(count: int = 20, shift: float = 0.0) -> TensorDataset:
    """For `conv_net`."""
    return TensorDataset(torch.rand(count, 2, 8, 8) + shift, torch.randint(0, 3, (count,)))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: nn.Module, other: nn.Module | dict[str, Tensor]) -> bool:
    """Bit by bit; `other` may be a former `state`."""
    ours, theirs = one.state_dict(), other.state_dict() if isinstance(other, nn.Module) else other
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def positive(model: nn.Module) -> dict[str, Tensor]:
    """A mask: the weights above zero."""
    return {name: weight > 0 for name, weight in model.named_parameters()}


def inputs_of(model: nn.Module) -> list[Tensor]:
    """To which each batch is added that the model is called with from now on."""
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return seen


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


class Items(Dataset):
    """A dataset that is read item by item; `changed` has other items for some of them."""

    def __init__(self, data: TensorDataset, changed: dict[int, object] | None = None) -> None:
        self.data, self.changed = data, changed or {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> object:
        image, label = self.data[index]
        return self.changed.get(index, (image, int(label)))


class Noisy(Items):
    """Items that a transform draws anew each time."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.rand(image.shape), label


class Brighter(TensorDataset):
    """Tensors whose items are others."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        return image + 5, label


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
        others = TensorDataset(images[20:], labels[20:])
        others = Noisy(others) if self.noisy else others
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
