"""The training loop against a plain PyTorch one with a DataLoader, and the whole of AMUN against retraining.

The loop: seconds an epoch takes on the same model, images and batches; the weights after two epochs must be equal
before times are compared. With augmentation the DataLoader moves each image by itself, as torchvision's transforms do,
and draws other numbers. The whole: search and ten epochs of fine-tuning for a tenth of the images, against the training
that made the model, each as `unlearn` does it.
"""

import argparse
import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from common import timed, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from amun_ext import unlearn
from amun_ext.deletion import forget_ids, split
from amun_ext.experiments import demo
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit

RECIPE = Recipe(epochs=2, lr=0.01)
NETWORKS = {"demo cnn": demo.TRAINING, "resnet18": Recipe(epochs=12, lr=0.1, schedule="cosine")}


class Moved(Dataset[tuple[Tensor, Tensor]]):
    """Random crop after padding by 4 and horizontal flip, an image at a time."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.data[index]
        top, left = random.randrange(9), random.randrange(9)
        padded = F.pad(image, (4, 4, 4, 4))
        cropped = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        return cropped.flip(2) if random.random() < 0.5 else cropped, label


def orders(count: int, seed: int = 0) -> Iterator[list[list[int]]]:
    """The batches of each epoch, in the order of `fit`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield [batch.tolist() for batch in torch.randperm(count, generator=generator).split(RECIPE.batch_size)]


def plain(model: nn.Module, data: Dataset[Any], recipe: Recipe) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    batches = orders(len(data))  # type: ignore[arg-type]
    model.train()
    for _ in range(recipe.epochs):
        for x, labels in DataLoader(data, batch_sampler=next(batches)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()


def loop(original: nn.Module, data: TensorDataset, turns: int) -> dict[str, Any]:
    """Seconds per epoch, best of `turns`, of both loops without and with augmentation."""
    ours, theirs = copy.deepcopy(original), copy.deepcopy(original)
    fit(ours, [Pass([DataPart(data)])], RECIPE, RunOptions())
    plain(theirs, data, RECIPE)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
    augmented = Recipe(**{**vars(RECIPE), "augment": True})
    works = {
        "fit": lambda: fit(copy.deepcopy(original), [Pass([DataPart(data)])], RECIPE, RunOptions()),
        "DataLoader": lambda: plain(copy.deepcopy(original), data, RECIPE),
        "fit, augmented": lambda: fit(copy.deepcopy(original), [Pass([DataPart(data)])], augmented, RunOptions()),
        "DataLoader, augmented": lambda: plain(copy.deepcopy(original), Moved(data), augmented),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            seconds[name].append(timed(work)[1]["cpu"] / RECIPE.epochs)
    best = {name: min(taken) for name, taken in seconds.items()}
    return {
        "seconds per epoch": best,
        "ratio": best["DataLoader"] / best["fit"],
        "ratio, augmented": best["DataLoader, augmented"] / best["fit, augmented"],
    }


def whole(original: nn.Module, data: TensorDataset, training: Recipe) -> dict[str, float]:
    """Seconds of AMUN and of retraining, for a tenth of the images."""
    forget, retain = split(data, forget_ids(len(data), fraction=0.1, seed=0))
    amun = {"include_forget": False, "recipe": demo.FINE_TUNING}
    _, fast = timed(lambda: unlearn(original, forget, retain, **amun))
    _, slow = timed(lambda: unlearn(original, forget, retain, method="retrain", recipe=training))
    return {"AMUN": fast["cpu"], "retrain": slow["cpu"], "ratio": slow["cpu"] / fast["cpu"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name, training in NETWORKS.items():
        images, labels = zoo.images_of(name)["training"]
        data = TensorDataset(images[: options.images], labels[: options.images])
        model = zoo.network(name, 1).requires_grad_(True)
        result[name] = {"loop": loop(model, data, options.turns), "whole": whole(model, data, training)}
        print(name, result[name], flush=True)
    write("unlearn", {"images": options.images, "networks": result})


if __name__ == "__main__":
    main()
