"""The loop itself: epochs of passes of batches, with everything that may be on or around a step."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from amun_ext.checks import require
from amun_ext.evaluation import accuracy, predict
from amun_ext.models.state import placement
from amun_ext.optim import MaskedSGD
from amun_ext.training.parts import Feed, Pass, check_parts, crop_and_flip
from amun_ext.training.recipe import PRECISIONS, Recipe
from amun_ext.training.resume import Checkpoint, identity


@dataclass(frozen=True)
class Epoch:
    """What an epoch did: its number from 1 on, mean cross-entropy before its steps, accuracy in percent after them."""

    number: int
    lr: float
    loss: float
    seconds: float
    accuracy: Mapping[str, float]  # by the names of `Run.watch`


@dataclass(frozen=True)
class Run:
    """How a training is run, beside its recipe.

    seed: of shuffling, augmentation, dropout and random labels. mask: name -> bool tensor of the parameters that may
    change, see MaskedSGD; `gradient_only` masks as older code does. checkpoint: a file that is written after every
    epoch, and from which the same training goes on after it was stopped. watch: sets whose accuracy each epoch tells.
    on_epoch: called after each. workers: processes that read a Dataset. progress: show a bar.
    """

    seed: int = 0
    mask: Mapping[str, Tensor] | None = None
    gradient_only: bool = False
    checkpoint: Path | None = None
    watch: Mapping[str, TensorDataset] = field(default_factory=dict)
    on_epoch: Callable[[Epoch], None] | None = None
    workers: int = 0
    progress: bool = False


def fit(
    model: nn.Module,
    passes: Sequence[Pass],
    recipe: Recipe,
    run: Run = Run(),
    *,
    penalty: Callable[[nn.Module, int], Tensor] | None = None,
    description: str = "train",
) -> list[Epoch]:
    """Minimise cross-entropy over `passes`, one after the other in every epoch, in place. Returns what epochs did.

    penalty: from the model and the number of the epoch (from 0 on) to a scalar that is added to the loss of each batch.
    Shuffling, augmentation and dropout follow from the seed; the caller's random state and the modules' training flags
    are put back. Raises InputError for parts that do not fit together and for a checkpoint of another training,
    FloatingPointError when the loss diverges.
    """
    like = check_parts(passes, recipe.augment)
    require(any(p.requires_grad for p in model.parameters()), "model", "trainable in some parameter", "all frozen")
    device, dtype = placement(model, like)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    feeds = [Feed(each.parts, device, dtype, run.workers) for each in passes]
    optimizer = _optimizer(model, recipe, run)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    order = torch.Generator().manual_seed(run.seed)
    settings = description, recipe, run.seed, run.gradient_only
    name = "" if run.checkpoint is None else identity(model, passes, run.mask, settings)
    checkpoint = Checkpoint(run.checkpoint, name, device, model, optimizer, schedule, scaler, order)
    training = [(module, module.training) for module in model.modules()]

    def one_pass(each: Pass, feed: Feed, epoch: int) -> Tensor:
        """The summed cross-entropy of the pass."""
        total = torch.zeros((), device=device)
        for x, labels, augmented in feed.batches(epoch, recipe.batch_size, order):
            if recipe.augment:
                x = torch.where(augmented[:, None, None, None], crop_and_flip(x, order), x)
            if recipe.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            size = -(-len(x) // recipe.accumulate)
            for some, theirs in zip(x.split(size), labels.split(size), strict=True):
                with torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=recipe.precision is not None):
                    loss = F.cross_entropy(model(some), theirs, reduction="sum")
                total += loss.detach()
                scaler.scale((-loss if each.ascend else loss) / len(x)).backward()
            if penalty is not None:
                scaler.scale(penalty(model, epoch)).backward()
            scaler.step(optimizer)
            scaler.update()
        return total

    try:
        random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with random_state, torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(run.seed)
            history = [Epoch(**before) for before in checkpoint.resume()]
            done = {"initial": len(history), "total": recipe.epochs}
            with tqdm(desc=description, unit="epoch", disable=not run.progress, **done) as bar:
                for number in range(len(history), recipe.epochs):
                    start = time.perf_counter()
                    _mode(model, recipe.batch_norm)
                    totals = [one_pass(each, feed, number) for each, feed in zip(passes, feeds, strict=True)]
                    loss = float(torch.stack(totals).sum()) / sum(map(len, feeds))
                    if not math.isfinite(loss):
                        raise FloatingPointError(f"{description}: the loss is {loss}; lower lr (now {recipe.lr})")
                    watched = {name: _accuracy(model, data) for name, data in run.watch.items()}
                    lr = float(schedule.get_last_lr()[0])
                    epoch = Epoch(number + 1, lr, loss, time.perf_counter() - start, watched)
                    schedule.step()
                    history.append(epoch)
                    checkpoint.write([asdict(each) for each in history])
                    bar.set_postfix(loss=f"{loss:.4f}", **{name: f"{percent:.1f}" for name, percent in watched.items()})
                    bar.update()
                    if run.on_epoch is not None:
                        run.on_epoch(epoch)
    finally:
        optimizer.zero_grad()  # the last batch's gradient is a trace of its samples
        for module, flag in training:
            module.training = flag
        if recipe.channels_last:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return history


def _optimizer(model: nn.Module, recipe: Recipe, run: Run) -> torch.optim.Optimizer:
    settings = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if run.mask is None:
        return torch.optim.SGD([weight for _, weight in trainable], **settings)  # type: ignore[arg-type]
    return MaskedSGD(trainable, masks=run.mask, gradient_only=run.gradient_only, **settings)  # type: ignore[arg-type]


def _accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    return accuracy(predict(model, images), labels.cpu())


def _mode(model: nn.Module, batch_norm: str) -> None:
    model.train(batch_norm != "eval")
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
