"""The networks that searches are measured on: four kinds, each trained to the end, kept under build/zoo.

    python benchmarks/zoo.py [--seed 1]

A ResNet-18 of width 16 and a plain CNN without BatchNorm on 10,000 images of Fashion-MNIST, the demo's CNN on the
embedded images, and a CNN made robust by training on PGD examples. Where the full data set is not there, all of them
learn from the embedded images.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm.auto import trange

from amun_ext.data import load
from amun_ext.experiments import demo
from amun_ext.models import build, load_checkpoint, save_checkpoint
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import InputError

FOLDER = Path(__file__).parent.parent / "build/zoo"
TRAINING_IMAGES = 10_000


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    train: Callable[[nn.Module, Tensor, Tensor, int], None]
    data: str = "fashion-mnist"


def plain_cnn() -> nn.Module:
    """No BatchNorm, max pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def plainly(recipe: Recipe) -> Callable[[nn.Module, Tensor, Tensor, int], None]:
    return lambda model, images, labels, seed: fit(
        model, [Pass([DataPart(TensorDataset(images, labels))])], recipe, RunOptions(seed=seed, progress=True)
    )


def robustly(model: nn.Module, images: Tensor, labels: Tensor, seed: int, eps: float = 0.75, epochs: int = 12) -> None:
    """PGD adversarial training (Madry et al. 2018): five L2 steps of eps / 3 inside the ball."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in trange(epochs, desc="adversarial training", unit="epoch"):
        for batch in torch.randperm(len(images), generator=order).split(128):
            x0, y = images[batch], labels[batch]
            delta = torch.zeros_like(x0)
            model.eval()
            for _ in range(5):
                delta.requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(model(x0 + delta), y), delta)
                delta = delta.detach() + eps / 3 * F.normalize(grad.flatten(1)).view_as(grad)
                delta *= (eps / delta.flatten(1).norm(dim=1).clamp(min=1e-9)).clamp(max=1).view(-1, 1, 1, 1)
                delta = (x0 + delta).clamp(0, 1) - x0
            model.train()
            loss = F.cross_entropy(model(x0 + delta), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def cnn() -> nn.Module:
    return build("small-cnn", num_classes=10, in_channels=1)


NETWORKS = {
    "resnet18": Network(
        lambda: build("resnet18", num_classes=10, in_channels=1, width=16),
        plainly(Recipe(epochs=12, lr=0.1, schedule="cosine")),
    ),
    "demo cnn": Network(cnn, plainly(demo.TRAINING), "fashion-mnist-mini"),
    "no batchnorm": Network(plain_cnn, plainly(Recipe(epochs=20, lr=0.03, schedule="cosine", batch_size=64))),
    "robust cnn": Network(cnn, robustly),
}


def images_of(network: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test images with their labels."""
    try:
        splits = load(NETWORKS[network].data)
    except InputError:
        splits = load("fashion-mnist-mini")
    return {"training": splits.train[:TRAINING_IMAGES], "test": splits.test[:]}


def network(name: str, seed: int) -> nn.Module:
    """Trained when first asked for; in eval mode, without weight gradients."""
    path = FOLDER / f"{name.replace(' ', '-')}-{seed}.safetensors"
    torch.manual_seed(seed)
    model = NETWORKS[name].build()
    if path.exists():
        load_checkpoint(path, model)
    else:
        NETWORKS[name].train(model, *images_of(name)["training"], seed)
        save_checkpoint(path, model, {"arch": name})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` random images that the model has right."""
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: 2 * count]
    right = torch.cat([model(images[rows]).argmax(1) == labels[rows] for rows in drawn.split(256)])
    chosen = drawn[right][:count]
    assert len(chosen) == count, f"only {len(chosen)} images of {count} are classified correctly"
    return images[chosen], labels[chosen]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in NETWORKS:
        model = network(name, options.seed)
        for part, (images, labels) in images_of(name).items():
            with torch.no_grad():
                logits = torch.cat([model(batch) for batch in images[:2000].split(500)])
            top = logits.topk(2).values
            right = (logits.argmax(1) == labels[:2000]).float().mean()
            print(f"{name}: {part} accuracy {100 * right:.1f} %, median gap {(top[:, 0] - top[:, 1]).median():.1f}")
