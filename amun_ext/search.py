"""find_min_adversarial: for each sample the closest adversarial example (paper, Algorithm 1)."""

import math
import os
import warnings
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from amun_ext import ops
from amun_ext.checks import InputError, check_images, check_labels, require, whole
from amun_ext.data import as_tensors
from amun_ext.files import write_tensors
from amun_ext.models.state import count_classes, evaluating, placement

METHODS = ("pgd",)
HOST_CHECK_EVERY = 16  # iterations between two looks at a CUDA queue: a look waits for the device


@dataclass(frozen=True, eq=False)
class AdversarialSet(Dataset[tuple[Tensor, int]]):
    """Adversarial examples, a row for every input of the search.

    As a dataset it has the found examples only, (image, wrong label) each: a sample whose search failed keeps its own
    image and true label in its row, and those are never to be trained on.
    """

    images: Tensor  # [N, ...] like the inputs; the input itself where none was found
    labels: Tensor  # [N] int64, the model's label of `images`: wrong where found, the true one elsewhere
    true_labels: Tensor  # [N] int64, of the inputs
    source_index: Tensor  # [N] int64, row of the input
    eps: Tensor  # [N] radius at which it was found; 0 for an input that was already misclassified
    distance: Tensor  # [N] L2 norm of image - input; inf where none was found
    grad_evals: Tensor  # [N] int32, gradients spent on the sample
    found: Tensor  # [N] bool

    @cached_property
    def _found_rows(self) -> list[int]:
        rows: list[int] = self.found.nonzero()[:, 0].tolist()
        return rows

    def __len__(self) -> int:
        return len(self._found_rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self._found_rows[index]
        return self.images[row], int(self.labels[row])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {field.name: getattr(self, field.name).contiguous() for field in fields(self)}
        write_tensors(path, tensors, {"format": "amun_ext.AdversarialSet", "version": "1"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises InputError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                require(
                    (file.metadata() or {}).get("format") == "amun_ext.AdversarialSet",
                    "path",
                    "a file that AdversarialSet.save wrote",
                    os.fspath(path),
                )
                return cls(**{field.name: file.get_tensor(field.name) for field in fields(cls)})
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"path must be a file that AdversarialSet.save wrote, got {os.fspath(path)}: {error}"
            ) from error


def find_min_adversarial(
    model: nn.Module,
    inputs: Tensor | Dataset[Any],
    labels: Tensor | None = None,
    *,
    method: str = "pgd",
    loss: str = "cross_entropy",
    eps_init: float = 0.04,
    eps_growth: float = 2.0,
    eps_max: float | None = None,
    steps: int = 50,
    step_fraction: float = 0.1,
    refine: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int | None = None,
    progress: bool = False,
) -> AdversarialSet:
    """For each input the closest adversarial example, in L2, that a projected gradient ascent of growing radius meets.

    From the input, `steps` steps of length step_fraction * eps are made inside the ball of radius eps and the box; the
    search ends at the first misclassified point. If none was met, eps grows and the ascent goes on from where it is.
    Every sample has its own eps and stops for itself; freed places of the batch are refilled at once. What is found
    is checked again in plain batches before it is returned.

    The model runs in eval mode, under the caller's autocast if any, and is left as it was: training flags, buffers,
    gradients and the random state. Not for two threads with one model.

    Args:
        model: maps [N, ...] to logits [N, K]. Normalisation belongs inside: distances are in the units of `inputs`.
        inputs: floating point [N, ...] inside `bounds`, or a map-style Dataset of (input, label), read into memory.
        labels: true labels [N]; None with a Dataset.
        method: "pgd", the search of the paper's Algorithm 1.
        loss: what the ascent climbs; "cross_entropy" (the paper's; exact where the softmax saturates) or "margin",
            the strongest other logit minus the label's, which heads straight for the nearest competitor.
        eps_init: first radius (0.04: the published experiments).
        eps_growth: factor between radii.
        eps_max: last radius; the diagonal of the box if None. A sample not found there comes back with found=False.
        steps: steps at one radius.
        step_fraction: step length as a fraction of the radius.
        refine: forward passes of bisection between each input and its example, which brings the example closer to the
            boundary and to the input; never worse than without.
        bounds: the box, (low, high).
        batch_size: samples searched at once; 64 on a CPU, where larger batches leave its caches, and 128 on a GPU if
            None. Results do not depend on it beyond rounding.
        progress: show a bar of finished samples.

    Returns:
        AdversarialSet on the device of `inputs`, in their order and dtype.

    Raises:
        InputError: an argument is not what it must be. Nothing was run then but one forward pass.
    """
    inputs, labels = _tensors(inputs, labels)
    pair = len(bounds) == 2 and -math.inf < bounds[0] < bounds[1] < math.inf
    require(pair, "bounds", "(low, high), finite, with low < high", bounds)
    in_their_dtype = torch.tensor(bounds, dtype=inputs.dtype if torch.is_floating_point(inputs) else None)
    low, high = in_their_dtype.tolist()  # as the images have it: 0.3 is another number in float32
    check_images("inputs", inputs, (low, high))
    check_labels("labels", labels, len(inputs))
    diagonal = (high - low) * math.sqrt(inputs[0].numel())
    eps_max = diagonal if eps_max is None else eps_max
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    require(method in METHODS, "method", f"one of {METHODS}", repr(method))
    require(loss in ops.LOSSES, "loss", f"one of {ops.LOSSES}", repr(loss))
    require(eps_init >= 1e-20, "eps_init", "from 1e-20 on", eps_init)
    require(eps_growth >= 1 + 1e-6, "eps_growth", "at least 1.000001", eps_growth)
    require(eps_init <= eps_max < math.inf, "eps_max", f"finite and at least eps_init = {eps_init}", eps_max)
    whole("steps", steps, 1)
    require(1e-6 <= step_fraction <= 2, "step_fraction", "in [1e-6, 2], a part of the radius", step_fraction)
    whole("refine", refine, 0)
    device, _ = placement(model, inputs)
    batch_size = (64 if device.type == "cpu" else 128) if batch_size is None else batch_size
    whole("batch_size", batch_size, 1)

    schedule = ops.Schedule(steps, step_fraction, eps_growth, eps_max)
    with evaluating(model), torch.inference_mode(False):
        search = _Search(model, inputs, labels, loss, eps_init, schedule, (low, high), batch_size)
        with tqdm(total=len(inputs), desc="search", unit="sample", disable=not progress, leave=False) as bar:
            search.run(torch.arange(len(inputs), device=search.device), bar)
            # Batches of another size round differently, and a point on the boundary may fall back: it goes on once.
            if len(fallen := search.recheck(search.found())):
                search.run(fallen, bar)
                search.give_up(search.recheck(fallen[search.book.status[fallen] == ops.Status.FOUND]))
            search.refine(refine)
        return search.result()


class _Search:
    """A book of samples and the pool of slots that works through it."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss: str,
        eps_init: float,
        schedule: ops.Schedule,
        bounds: tuple[float, float],
        batch_size: int,
    ) -> None:
        self.model, self.loss, self.schedule, self.bounds, self.batch_size = model, loss, schedule, bounds, batch_size
        self.given = inputs
        self.device, self.model_dtype = placement(model, inputs)
        # Iterates are kept in float32 (float64) also for half models: steps of eps/10 vanish in 8 bits of mantissa.
        real = ops.accumulate_dtype(inputs.dtype)
        x0 = inputs.detach().to(self.device, real, copy=True).contiguous()
        labels = labels.detach().to(self.device, torch.int64, copy=True)
        check_labels("labels", labels, len(x0), count_classes(model, inputs))
        count = len(x0)
        self.book = ops.Book(
            inputs=x0,
            labels=labels,
            images=x0.clone(),
            found_labels=labels.clone(),
            eps=x0.new_full((count,), eps_init),
            distance=x0.new_full((count,), math.inf),
            round_step=labels.new_zeros(count, dtype=torch.int32),
            grad_evals=labels.new_zeros(count, dtype=torch.int32),
            status=labels.new_zeros(count, dtype=torch.int8),
        )

    def _logits(self, x: Tensor) -> Tensor:
        """The model's answer to what the caller will hold: the iterate in the dtype of the inputs."""
        # Cloned: the pool and the book are safe from a model that changes its input in place.
        logits: Tensor = self.model(x.to(self.given.dtype).to(self.model_dtype).clone())
        return logits

    def _gradient(self, pool: ops.Pool) -> tuple[ops.AttackLoss, Tensor]:
        with torch.enable_grad():
            x = pool.x.detach().requires_grad_()
            logits = self._logits(x)
            attack = ops.attack_loss(logits, pool.slot_labels, self.loss)
            if not logits.requires_grad:  # a constant: no direction, and every sample ends unfound
                return attack, torch.zeros_like(x)
            # Of x alone: no weight gradient is computed, and no .grad is written.
            (grad,) = torch.autograd.grad(logits, x, attack.grad_logits, allow_unused=True)
        return attack, torch.zeros_like(x) if grad is None else grad

    def run(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        """Search the samples `queue` [Q], each from its row of `book.images`, with all slots busy until it runs dry."""
        book, size = self.book, min(self.batch_size, len(queue))
        pool = ops.Pool(
            x=book.inputs.new_zeros((size, *book.inputs.shape[1:])),
            slots=torch.full_like(queue[:size], -1),
            slot_labels=torch.zeros_like(queue[:size]),
        )
        cursor = torch.zeros_like(queue[:1])
        book.status[queue] = ops.Status.PENDING

        def step(grad: Tensor, adversarial: Tensor, predicted: Tensor) -> None:
            ops.search_step_(pool, book, queue, cursor, grad, adversarial, predicted, self.schedule, self.bounds)

        step(torch.zeros_like(pool.x), pool.slots.bool(), pool.slots)  # all slots are idle: this only fills them
        iteration = 0
        bar.reset(len(queue))
        while len(pool.slots):
            attack, grad = self._gradient(pool)
            step(grad, attack.adversarial, attack.predicted)
            iteration += 1
            if self.device.type == "cpu" or iteration % HOST_CHECK_EVERY == 0:
                busy = pool.slots >= 0
                working = int(busy.sum())
                bar.update(min(int(cursor), len(queue)) - working - bar.n)
                if working < len(busy):  # only once the queue is dry
                    pool = ops.Pool(*(part[busy] for part in pool))

    def found(self) -> Tensor:
        return (self.book.status == ops.Status.FOUND).nonzero()[:, 0]

    def recheck(self, rows: Tensor) -> Tensor:
        """Predict the examples of `rows` again in plain batches; those rows [M] whose example is none any more."""
        book = self.book
        with torch.no_grad():
            for batch in rows.split(self.batch_size):
                attack = ops.attack_loss(self._logits(book.images[batch]), book.labels[batch], self.loss)
                book.found_labels[batch] = attack.predicted
                book.status[batch[~attack.adversarial]] = ops.Status.PENDING
        return rows[book.status[rows] == ops.Status.PENDING]

    def give_up(self, rows: Tensor) -> None:
        self.book.status[rows] = ops.Status.EXHAUSTED

    @torch.no_grad()
    def refine(self, passes: int) -> None:
        """Bisect the segment from input to example, in the batches of `recheck`; what is kept has been seen to fool."""
        book = self.book
        per_sample = (-1, *[1] * (book.images.dim() - 1))
        for batch in self.found().split(self.batch_size) if passes else ():
            x0, x = book.inputs[batch], book.images[batch]
            low, high = torch.zeros_like(book.eps[batch]), torch.ones_like(book.eps[batch])
            for _ in range(passes):
                middle = (low + high) / 2
                candidate = (x0 + middle.view(per_sample) * (x - x0)).clamp(*self.bounds)
                attack = ops.attack_loss(self._logits(candidate), book.labels[batch], self.loss)
                low, high = (
                    torch.where(attack.adversarial, low, middle),
                    torch.where(attack.adversarial, middle, high),
                )
                better = batch[attack.adversarial]
                book.images[better] = candidate[attack.adversarial]
                book.found_labels[better] = attack.predicted[attack.adversarial]
            book.distance[batch] = (book.images[batch] - x0).flatten(1).norm(dim=1)

    def result(self) -> AdversarialSet:
        book, home = self.book, self.given.device
        found = book.status == ops.Status.FOUND
        if lost := int((book.status == ops.Status.NO_GRADIENT).sum()):
            warnings.warn(
                f"{lost} of {len(found)} samples were not found for want of a gradient: it is zero or NaN, or the "
                "logits do not depend differentiably on the input",
                RuntimeWarning,
                stacklevel=3,
            )
        per_sample = (-1, *[1] * (book.images.dim() - 1))
        images = torch.where(found.view(per_sample), book.images, book.inputs).to(self.given.dtype)
        distance = book.distance
        if images.dtype != book.images.dtype:  # rounding to the caller's dtype moved them
            distance = (images.to(distance.dtype) - book.inputs).flatten(1).norm(dim=1)
        return AdversarialSet(
            images=images.to(home),
            labels=torch.where(found, book.found_labels, book.labels).to(home),
            true_labels=book.labels.to(home),
            source_index=torch.arange(len(found), device=home),
            eps=book.eps.masked_fill(distance == 0, 0).to(home),
            distance=distance.masked_fill(~found, math.inf).to(home),
            grad_evals=book.grad_evals.to(home),
            found=found.to(home),
        )


def _tensors(inputs: Tensor | Dataset[Any], labels: Tensor | None) -> tuple[Tensor, Tensor]:
    if isinstance(inputs, Tensor):
        require(labels is not None, "labels", "a tensor [N] beside a tensor of inputs", "None")
        assert labels is not None
        return inputs, labels
    require(labels is None, "inputs", "a tensor [N, ...], or a Dataset with no labels beside it", type(inputs).__name__)
    return as_tensors(inputs, "inputs")
