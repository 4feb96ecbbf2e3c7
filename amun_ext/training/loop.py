"""The training loop: epochs, passes and batches, with all options of a step."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data.images import ImageDataset, stored
from amun_ext.data.splits import checked_dataset
from amun_ext.distributed import average_gradients, blocks, check_same, rank, sum_over_ranks, world_size
from amun_ext.lipschitz import SETTLED, NormClipper
from amun_ext.memory import keep_freed_memory
from amun_ext.models import accuracy, predict
from amun_ext.models.state import count_classes, eval_mode, logits_of, placement
from amun_ext.optim import MaskedSGD, masked
from amun_ext.progress import progress_bar
from amun_ext.random_state import own_random_state, same_random_state
from amun_ext.recipe import TRADES, Recipe
from amun_ext.sharded import check_shards, is_sharded, not_finite
from amun_ext.training.parts import BatchLoader, Pass, check_parts, crop_and_flip, split_sizes
from amun_ext.training.resume import Checkpoint, check_place, training_id
from amun_ext.training.trades import robust_loss
from amun_ext.validation import InputError, check_integer, listed, require

Mask = Mapping[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch."""

    number: int  # from 1 on
    lr: float  # of its last step
    loss: float  # mean cross-entropy, each sample before its step
    seconds: float
    accuracy: Mapping[str, float]  # percent, after the epoch, by the names of `RunOptions.eval_sets`


TRAINABLE = "a map to logits that depend on its trainable parameters"


@dataclass(frozen=True)
class RunOptions:
    """The options of a training apart from its recipe.

    seed: of shuffling, augmentation, dropout and random labels. mask: name -> bool tensor of the parameters that may
    change, see MaskedSGD, or a function that makes it when the training begins; `mask_gradient_only` as in MaskedSGD.
    checkpoint: a file, written after every epoch, from which the same training resumes. eval_sets: sets whose accuracy
    every epoch reports. on_epoch: called after each; random numbers that it draws do not change the training.
    num_workers: processes that read a Dataset. progress: show a bar.
    """

    seed: int = 0
    mask: Mask | Callable[[], Mask] | None = None
    mask_gradient_only: bool = False
    checkpoint: Path | None = None
    eval_sets: Mapping[str, TensorDataset] = field(default_factory=dict)
    on_epoch: Callable[[Epoch], None] | None = None
    num_workers: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("seed", "num_workers"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0))
        require(
            not self.mask_gradient_only or self.mask is not None, "mask_gradient_only", "False without a mask", True
        )
        require(self.on_epoch is None or callable(self.on_epoch), "on_epoch", "a function", self.on_epoch)
        named = isinstance(self.eval_sets, Mapping) and all(isinstance(name, str) for name in self.eval_sets)
        require(named, "eval_sets", "sets by name", self.eval_sets)
        for name, data in self.eval_sets.items():
            pair = isinstance(data, TensorDataset) and len(stored(data)) == 2
            require(pair, f"eval_sets[{name!r}]", "a TensorDataset of images and labels", type(data).__name__)
            checked_dataset(data, f"eval_sets[{name!r}]")

    def made_mask(self) -> Mask | None:
        """The mask, which a function may have to make."""
        return self.mask() if callable(self.mask) else self.mask


def fit(
    model: nn.Module,
    passes: Sequence[Pass],
    recipe: Recipe,
    run: RunOptions = RunOptions(),
    *,
    penalty: Callable[[nn.Module, int], Tensor] | None = None,
    settings: object = None,
    description: str = "train",
) -> list[Epoch]:
    """Minimise cross-entropy over `passes`, one after the other in every epoch, in place. Returns the epochs.

    penalty: a function of the model and the number of the epoch (from 0 on), a scalar added to the loss of each batch.
    settings: those of penalty and of the parts' labels, plain values, which identify the training in a checkpoint.
    Shuffling, augmentation and dropout follow from the seed. The caller's random state, the modules' training flags and
    the memory layout of weights are restored.

    In a process group of torch.distributed the ranks share each batch and average their gradients, so that the weights
    are those of one process up to rounding, also for a model under `fully_shard` (FSDP2); but BatchNorm takes the
    statistics of a rank's part, whose running averages are averaged after each epoch, and dropout differs. The first
    rank writes the checkpoint.

    InputError as `check`, for parts that do not fit together and for a checkpoint of another training;
    FloatingPointError if the loss diverges; RankError if another rank has ended.
    """
    like = check_parts(passes)
    check(model, recipe, run, like)
    device, dtype = placement(model, like)
    feeds = [BatchLoader(each.parts, device, dtype, run.num_workers) for each in passes]
    targets = [target for feed in feeds for target in feed.targets if target is not None]
    classes = count_classes(model, like[None]) if targets else 0
    for width in [target.shape[1] for target in targets if isinstance(target, Tensor)]:
        require(width == classes, "targets", f"of the model's {classes} classes", width)
    statistics = recipe.batch_norm == "train" and any(map(_is_batch_norm, model.modules()))
    fewest = min(map(len, feeds))
    expected = "at least two samples: BatchNorm has no variance of one"
    require(fewest >= 2 or not statistics, "parts", expected, fewest)
    if statistics and recipe.batch_size == 1:
        _check_single(model, like.to(device, dtype))
    sharded = is_sharded(model)
    require(not (sharded and penalty), "penalty", "None for a sharded model", "a function")
    mask = run.made_mask()
    precision = None if recipe.precision is None else getattr(torch, recipe.precision)
    optimizer = _optimizer(model, recipe, mask, run.mask_gradient_only)
    clipper = None
    if recipe.spectral_norm is not None:
        clipper = NormClipper(model, like.to(device, dtype), recipe.spectral_norm)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    order = torch.Generator().manual_seed(run.seed)
    everything = description, settings, recipe, run.seed, run.mask_gradient_only
    shared = world_size() > 1
    name = training_id(model, passes, mask, everything) if shared or run.checkpoint is not None else ""
    if shared:
        check_same(training=name, checkpoint=run.checkpoint)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    weights = [*trained.values()]
    checkpoint = Checkpoint(run.checkpoint, name, device, model, optimizer, scaler, order)
    training = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    layouts = torch.contiguous_format, torch.channels_last
    unsafe = device.type == "cpu" and any(map(_is_unsafe, model.modules()))
    channels_last = recipe.channels_last and not sharded and not unsafe

    def one_pass(each: Pass, feed: BatchLoader, epoch: int, rates: Iterator[float]) -> Tensor:
        """The summed cross-entropy of the pass, whose steps have these learning rates."""
        total = torch.zeros((), device=device)
        for x, labels, rows in feed.batches(epoch, recipe.batch_size, order):
            if recipe.augment:
                x = torch.where(feed.augmented(rows)[:, None, None, None], crop_and_flip(x, order), x)
            # contiguous otherwise, because a model's view() may fail on channels_last
            x = x.contiguous(memory_format=layouts[channels_last and x.dim() == 4])
            count, block = len(x), blocks(len(x))[rank()]
            # shards need as many forwards of every rank: one without a sample takes another's, and does not count it
            own, counted = slice(block.start, max(block.stop, block.start + 1)), float(len(block) > 0)
            x, labels, rows = (each[own] for each in (x, labels, rows))
            labels = feed.soft_labels(x, labels, rows, classes)
            rate = next(rates)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            pieces = max(1, min(recipe.accumulation_steps, count // world_size() // 2))  # of two samples, for BatchNorm
            for piece, targets in zip(x.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
                with torch.autocast(device.type, precision, enabled=recipe.precision is not None):
                    logits = logits_of(model, piece)
                    apart = robust_loss(model, piece, logits, TRADES[recipe.robust]) if recipe.robust else 0.0
                require(logits.requires_grad, "model", TRAINABLE, "others")
                # half precision is too coarse for a sum over a batch
                wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = F.cross_entropy(wide, targets, reduction="sum")
                total += loss.detach() * counted
                loss = (loss + apart) * (-counted if each.ascend else counted)
                scaler.scale(loss / (count / world_size())).backward()
            if not sharded:  # otherwise that was a part of the backward
                average_gradients(weights)
            moved = any(weight.grad is not None for weight in weights)
            require(moved, "model", TRAINABLE, "others")  # a quantised layer may stop the gradient
            if penalty is not None:
                scaler.scale(penalty(model, epoch)).backward()
            scaler.step(optimizer)
            scaler.update()
            if clipper is not None:
                clipper.clip()
        sum_over_ranks([total])
        return total

    try:
        random_state, layout = own_random_state(devices), _channels_last(model, channels_last)
        with keep_freed_memory(), random_state, layout, torch.inference_mode(False), torch.enable_grad():
            _seed(run.seed, device)
            history = [Epoch(**before) for before in checkpoint.resume()]
            done = {"initial": len(history), "total": recipe.epochs}
            with progress_bar(run.progress and rank() == 0, desc=description, unit="epoch", **done) as bar:
                for number in range(len(history), recipe.epochs):
                    start = time.perf_counter()
                    active = [
                        (each, feed)
                        for each, feed in zip(passes, feeds, strict=True)
                        if each.epochs is None or number < each.epochs
                    ]
                    steps = sum(len(split_sizes(len(feed), recipe.batch_size)) for _, feed in active)
                    rates = [recipe.lr * recipe.lr_factor(number, step / steps) for step in range(1, steps + 1)]
                    if clipper is not None:
                        clipper.restart()
                    if shared:  # dropout differs between ranks, and is the same after a resume
                        _seed(run.seed + (number + 1) * world_size() + rank(), device)
                    _mode(model, recipe.batch_norm)
                    left = iter(rates)
                    totals = [one_pass(each, feed, number, left) for each, feed in active]
                    if clipper is not None:
                        clipper.clip(SETTLED)
                    if statistics:
                        _average_statistics(model)
                    loss = float(torch.stack(totals).sum()) / sum(len(feed) for _, feed in active)
                    if not math.isfinite(loss) or not_finite(trained):
                        actual = "the weights are no longer finite" if math.isfinite(loss) else f"the loss is {loss}"
                        raise FloatingPointError(f"{description}: {actual}; lower lr (now {recipe.lr})")
                    accuracies = {name: _accuracy(model, data) for name, data in run.eval_sets.items()}
                    epoch = Epoch(number + 1, rates[-1], loss, time.perf_counter() - start, accuracies)
                    history.append(epoch)
                    checkpoint.write([asdict(each) for each in history])
                    shown = {name: f"{percent:.1f}" for name, percent in accuracies.items()}
                    bar.set_postfix({"loss": f"{loss:.4f}", **shown})
                    bar.update()
                    if run.on_epoch is not None:
                        with same_random_state(devices):
                            run.on_epoch(epoch)
    finally:
        optimizer.zero_grad()  # the gradient of the last batch tells about its samples
        for module, flag in training:
            module.training = flag
    return history


def check(model: nn.Module, recipe: Recipe, run: RunOptions, like: Tensor) -> None:
    """InputError for a model, recipe and run that do not fit together, for inputs like this one [...]."""
    require(isinstance(recipe, Recipe), "recipe", "a Recipe", type(recipe).__name__)
    check_shards(model)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    require(len(trainable) > 0, "model", "trainable in some parameter", "all frozen")
    broken = not_finite(dict(model.named_parameters()))
    require(not broken, "model", "of finite weights", f"NaN or infinite ones in {listed(broken)}")
    require(not recipe.augment or like.dim() == 3, "augment", "off for inputs other than [N, C, H, W]", like.dim() + 1)
    scaled = recipe.precision == "float16" and any(weight.dtype == torch.float16 for weight in trainable)
    expected = "None or bfloat16 for a model of float16, whose gradients cannot be scaled"
    require(not scaled, "precision", expected, "float16")
    limit = recipe.spectral_norm
    require(limit is None or run.mask is None, "spectral_norm", "None under a mask", limit)
    if is_sharded(model):
        require(limit is None, "spectral_norm", "None for a sharded model", limit)
        require(recipe.precision != "float16", "precision", "None or bfloat16 for a sharded model", "float16")
    if run.mask is not None and not callable(run.mask):
        _optimizer(model, recipe, run.mask, run.mask_gradient_only)  # InputError for masks that do not fit
    if run.checkpoint is not None:
        check_place(run.checkpoint)
        others = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
        require(not others, "model", "without extra state, which a checkpoint cannot hold", others)


def _optimizer(model: nn.Module, recipe: Recipe, mask: Mask | None, mask_gradient_only: bool) -> torch.optim.Optimizer:
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    lr, momentum, decay = recipe.lr, recipe.momentum, recipe.weight_decay
    if recipe.optimizer == "adamw":
        adamw = torch.optim.AdamW(trainable, lr, (momentum, 0.999), weight_decay=decay)
        return adamw if mask is None else masked(adamw, mask, mask_gradient_only=mask_gradient_only)
    if mask is None:
        return torch.optim.SGD(trainable, lr, momentum, weight_decay=decay)
    return MaskedSGD(trainable, lr, momentum, weight_decay=decay, masks=mask, mask_gradient_only=mask_gradient_only)


def _seed(seed: int, device: torch.device) -> None:
    """Only the generators that a forward uses; those of other devices are the caller's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _accuracy(model: nn.Module, data: TensorDataset) -> float:
    images = data if isinstance(data, ImageDataset) else data.tensors[0]
    return accuracy(predict(model, images), stored(data)[1].cpu())


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def _average_statistics(model: nn.Module) -> None:
    """Of the BatchNorm layers, over the ranks."""
    names = ("running_mean", "running_var")  # None in a layer without running statistics
    buffers = [getattr(layer, name) for layer in filter(_is_batch_norm, model.modules()) for name in names]
    buffers = [each for each in buffers if each is not None]
    if buffers and world_size() > 1:
        sum_over_ranks(buffers)
        for each in buffers:
            each /= world_size()


@torch.no_grad()
def _check_single(model: nn.Module, sample: Tensor) -> None:
    """InputError if BatchNorm has no variance of one sample; over several pixels it has."""
    try:
        with eval_mode(model):
            model.train()(sample[None])
    except ValueError as error:
        raise InputError(f"batch_size must be 2 at least: BatchNorm has no variance of one, got 1 ({error})") from error


def _mode(model: nn.Module, batch_norm: str) -> None:
    model.train(batch_norm != "eval")
    if batch_norm == "frozen":
        for module in filter(_is_batch_norm, model.modules()):
            module.eval()


def _is_unsafe(module: nn.Module) -> bool:
    """Whether torch 2.13 reads or writes beyond a buffer in its channels_last gradient, on a CPU with two threads."""
    if not isinstance(module, nn.Conv2d):
        return False
    return module.kernel_size == (1, 1) and module.stride != (1, 1) and module.in_channels < 16


@contextlib.contextmanager
def _channels_last(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Weights and buffers [A, B, C, D] in that layout, if `wanted`, and afterwards in their own."""
    tensors = [each for each in chain(model.parameters(), model.buffers()) if wanted and each.dim() == 4]
    strides = [each.stride() for each in tensors]
    try:
        for each in tensors:
            each.data = each.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for each, stride in zip(tensors, strides, strict=True):
            like = torch.empty_strided(each.shape, stride, dtype=each.dtype, device=each.device)
            each.data = like.copy_(each.data)
