"""The one training loop: original models, retraining from scratch and every fine-tuning method run through `fit`."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from amun_ext.checks import check_labels, require, whole
from amun_ext.models.state import placement


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, as in all the published experiments (paper, appendix C)."""

    epochs: int
    lr: float
    schedule: str = "constant"  # "constant", "cosine", or "step:N": a tenth every N epochs
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = False  # random crop (padding 4) and horizontal flip

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            whole(name, getattr(self, name), 1)
        for name in ("lr", "weight_decay", "momentum"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, "finite and not negative", value)
        require(self.momentum < 1, "momentum", "less than 1", self.momentum)
        self.lr_factor(0)

    def lr_factor(self, epoch: int) -> float:
        """The learning rate of an epoch (from 0 on), as a fraction of `lr`."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        kind, _, every = str(self.schedule).partition(":")
        known = kind == "step" and every.isascii() and every.isdecimal() and int(every) >= 1
        require(known, "schedule", '"constant", "cosine" or "step:N"', repr(self.schedule))
        return float(0.1 ** (epoch // int(every)))


# The published recipe for a ResNet-18 on CIFAR-10 (paper, appendix C; authors' train_vanilla.py).
PAPER_TRAINING = Recipe(epochs=200, lr=0.1, schedule="step:40", augment=True)


@dataclass(frozen=True)
class Part:
    """Some of the data to train on: images [N, ...], labels [N], and whether the recipe's augmentation applies."""

    images: Tensor
    labels: Tensor
    augment: bool = True


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop after padding by 4, and a horizontal flip with probability 1/2, each image [N, C, H, W] its own."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 9, (2, count, 1), generator=generator).to(images.device)
    flip = (torch.rand(count, 1, generator=generator) < 0.5).to(images.device)
    rows = top + torch.arange(height, device=images.device)  # [N, H]
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip, columns.flip(0), columns)  # [N, W]
    index = torch.arange(count, device=images.device)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)  # [N, H+8, W+8, C]
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def fit(
    model: nn.Module,
    parts: Sequence[Part],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: bool = False,
    description: str = "train",
) -> None:
    """Minimise cross-entropy over the shuffled union of `parts`, in place, in train mode (BatchNorm statistics move).

    Shuffling, augmentation and dropout follow from `seed`; the caller's random state and the modules' training flags
    are put back. Raises InputError for parts that do not fit together, FloatingPointError when the loss diverges.
    """
    require(len(parts) > 0, "parts", "at least one", "none")
    for part in parts:
        check_labels("labels", part.labels, len(part.images))
    require(any(p.requires_grad for p in model.parameters()), "model", "trainable in some parameter", "all frozen")
    device, dtype = placement(model, parts[0].images)
    images = torch.cat([part.images for part in parts]).to(device, dtype)
    labels = torch.cat([part.labels for part in parts]).to(device, torch.int64)
    augmented = torch.cat([torch.full((len(part.labels),), part.augment) for part in parts]).to(device)
    require(len(images) >= 2, "parts", "at least two samples", len(images))
    require(not recipe.augment or images.dim() == 4, "augment", "off for inputs other than [N, C, H, W]", images.dim())

    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    order = torch.Generator().manual_seed(seed)
    training = [(module, module.training) for module in model.modules()]
    try:
        random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with random_state, torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            model.train()
            for _ in (bar := tqdm(range(recipe.epochs), desc=description, unit="epoch", disable=not progress)):
                total = torch.zeros((), device=device)
                for batch in _batches(torch.randperm(len(images), generator=order), recipe.batch_size):
                    batch = batch.to(device)
                    x = images[batch]
                    if recipe.augment:
                        x = torch.where(augmented[batch, None, None, None], crop_and_flip(x, order), x)
                    loss = F.cross_entropy(model(x), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.detach() * len(batch)
                schedule.step()
                mean_loss = float(total) / len(images)
                if not math.isfinite(mean_loss):
                    raise FloatingPointError(f"{description}: the loss is {mean_loss}; lower lr (now {recipe.lr})")
                bar.set_postfix(loss=f"{mean_loss:.4f}")
    finally:
        optimizer.zero_grad()  # the last batch's gradient is a trace of its samples
        for module, flag in training:
            module.training = flag


def _batches(order: Tensor, size: int) -> Sequence[Tensor]:
    """`order` in batches; a last batch of one joins its neighbour, because BatchNorm has no variance of one."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def reinitialised(model: nn.Module) -> nn.Module:
    """A copy with fresh weights from every module's `reset_parameters`, drawn from the global random state.

    InputError names the parameters and floating-point buffers that no module draws anew: they would carry over what
    the model has learned, as under weight_norm, whose module resets only the product.
    """
    fresh = copy.deepcopy(model)
    learned = [*fresh.named_parameters(), *fresh.named_buffers()]
    with torch.no_grad():
        for _, tensor in learned:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    kept = [name for name, tensor in learned if tensor.isnan().any()]
    require(not kept, "model", "made of modules whose reset_parameters() draws all weights anew", f"old {kept[:5]}")
    return fresh
