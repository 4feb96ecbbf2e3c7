"""The loop that calls the model: the table of all samples, and the batch of slots that works through it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from amun_ext import ops
from amun_ext.models.state import logits_of, placement
from amun_ext.search.graph import repeated
from amun_ext.search.methods import Iterate, PythonRule
from amun_ext.search.settings import Settings
from amun_ext.validation import require

HOST_CHECK_EVERY = 16  # iterations between two looks at a CUDA queue: a look waits for the device
REDUCED_PART = 0.7  # of the steps of a search of fixed length are made in the reduced precision


class Search:
    """The samples of one chunk, from row `first_row` of the whole on: how far each is, and what it found."""

    def __init__(
        self,
        model: nn.Module,
        twin: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        settings: Settings,
        batch_size: int,
        first_row: int = 0,
    ) -> None:
        self.model, self.twin, self.settings = model, twin, settings
        self.batch_size, self.first_row = batch_size, first_row
        self.config, self.bounds = settings.step, settings.bounds
        self.loss = settings.loss
        self.cheaply = True  # on the twin, and in the reduced precision; else on the caller's model as it is
        self.given_dtype = inputs.dtype
        self.device, self.model_dtype = placement(model, inputs)
        # Iterates are kept in float32 (float64) also for half models: steps of eps/10 vanish in 8 bits of mantissa.
        x0 = inputs.detach().to(self.device, ops.accumulate_dtype(inputs.dtype), copy=True).contiguous()
        labels = labels.detach().to(self.device, torch.int64, copy=True)
        count = len(x0)
        self.per_sample = (-1, *[1] * (x0.dim() - 1))  # the shape in which a [N] column meets the images
        self.table = ops.SampleTable(
            inputs=x0,
            labels=labels,
            images=x0.clone(),
            found_labels=labels.clone(),
            eps=x0.new_full((count,), settings.eps_init),
            distance=x0.new_full((count,), math.inf),
            step_count=labels.new_zeros(count, dtype=torch.int32),
            grad_evals=labels.new_zeros(count, dtype=torch.int32),
            status=labels.new_zeros(count, dtype=torch.int8),
        )

    # ------------------------------------------------------------------------------------------------- the model's part

    def _logits(self, x: Tensor) -> Tensor:
        """The model's answer to what the caller will hold: the iterate in the dtype of the inputs."""
        # Cloned: the batch and the table are safe from a model that changes its input in place.
        held = x.to(self.given_dtype).to(self.model_dtype).clone()
        if self.cheaply and self.settings.precision:
            with torch.autocast(self.device.type, self.settings.precision):
                return logits_of(self.twin, held).float()
        return logits_of(self.twin if self.cheaply else self.model, held)

    @torch.no_grad()
    def look(self, x: Tensor, labels: Tensor) -> ops.AttackLoss:
        """Whether `x` [B, ...] fool the model."""
        return ops.attack_loss(self._logits(x), labels, self.loss, self.settings.margin)

    def gradient(self, x: Tensor, labels: Tensor) -> tuple[ops.AttackLoss, Tensor]:
        """Whether `x` [B, ...] fool the model, and the gradient [B, ...] of the attacked loss there."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self._logits(x)
            attack = ops.attack_loss(logits, labels, self.loss, self.settings.margin)
            if not logits.requires_grad:  # a constant: no direction, and every sample ends unfound
                return attack, torch.zeros_like(x)
            # Of x alone: no weight gradient is computed, and no .grad is written.
            (grad,) = torch.autograd.grad(logits, x, attack.grad_logits, allow_unused=True)
        return attack, torch.zeros_like(x) if grad is None else grad

    # -------------------------------------------------------------------------------------------------------- the loop

    def run(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        """Search the samples `queue` [Q], each from its row of `table.images`.

        Where a sample ends as soon as it is found, freed slots are refilled until the queue runs dry. Where all make
        equally many steps they go in waves, whose last look at the model needs no gradient.
        """
        self.table.status[queue] = ops.Status.PENDING
        if self.config.rule == "pgd":
            self._run_queue(queue, bar)
        else:
            self._run_waves(queue, bar)

    def _run_queue(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        slots = _Slots(self, queue)
        slots.fill()
        advance, iteration, before = repeated(slots.advance, self.device), 0, bar.n
        while len(slots.batch.x):
            advance()
            iteration += 1
            if self.device.type == "cpu" or iteration % HOST_CHECK_EVERY == 0:
                bar.update(before + min(int(slots.queue_position), len(queue)) - slots.busy() - bar.n)
                if self.device.type == "cpu" or not slots.busy():  # a graph knows one size of batch only
                    slots.compact()

    def _run_waves(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        on_cpu, steps = self.device.type == "cpu", self.config.steps
        reduced_steps = int(REDUCED_PART * steps) if self.cheaply and self.settings.precision else 0
        slots: _Slots | None = None
        advances: dict[tuple[bool, str], Callable[[], None]] = {}  # a graph knows one model and one loss
        for wave in queue.split(self.batch_size):
            if slots is None or on_cpu:  # on a GPU all waves share the tensors of the first, for the sake of the graph
                slots = _Slots(self, wave)
                advances.clear()
            slots.refill(wave)
            for step in range(steps + 1):
                self.loss = self.settings.loss if 2 * step < steps else self.settings.last_loss
                if reduced_steps:
                    self.cheaply = step < reduced_steps
                if step == reduced_steps > 0:
                    self.recheck(wave[self.table.distance[wave].isfinite()])
                if step == steps:
                    slots.look()
                else:
                    how = self.cheaply, self.loss
                    if how not in advances:
                        advances[how] = repeated(slots.advance, self.device)
                    advances[how]()
                if on_cpu:
                    slots.compact()
                    if not len(slots.batch.x):
                        break
            if reduced_steps:
                self.cheaply = True
            bar.update(len(wave))

    # ----------------------------------------------------------------------------------------------------- afterwards

    def batches(self, rows: Tensor) -> tuple[Tensor, ...]:
        """`rows` [M] by the batch; none of them empty, which many a model cannot take."""
        return rows.split(self.batch_size) if len(rows) else ()

    def found(self) -> Tensor:
        rows: Tensor = (self.table.status == ops.Status.FOUND).nonzero()[:, 0]
        return rows

    def recheck(self, rows: Tensor) -> Tensor:
        """Predict the examples of `rows` again in plain batches; those rows [M] whose example is none any more."""
        table, fallen = self.table, torch.zeros_like(rows, dtype=torch.bool)
        for batch in self.batches(torch.arange(len(rows), device=rows.device)):
            attack = self.look(table.images[rows[batch]], table.labels[rows[batch]])
            table.found_labels[rows[batch]] = attack.predicted
            fallen[batch] = ~attack.adversarial
        table.distance[rows[fallen]] = math.inf
        return rows[fallen]

    def once_more(self, rows: Tensor, bar: "tqdm[Any]") -> None:
        """Search `rows` again: pgd goes on from an example that has fallen, all others begin anew."""
        anew = rows if self.config.rule != "pgd" else rows[self.table.status[rows] != ops.Status.FOUND]
        self.table.images[anew], self.table.eps[anew] = self.table.inputs[anew], self.settings.eps_init
        self.table.distance[anew], self.table.step_count[anew] = math.inf, 0
        self.run(rows, bar)

    def beyond(self, radius: float) -> Tensor:
        """Rows [M] whose example is farther away, as that of a method without a last radius may be."""
        rows = self.found()
        return rows[self.table.distance[rows] > radius * (1 + 1e-4)]

    def count_in_one_step(self) -> int:
        """How many pgd has found by the first step of a radius that was given: it may be too long for them."""
        given = self.config.rule == "pgd" and self.settings.eps_init > 0
        return int((self.table.grad_evals[self.found()] == 2).sum()) if given else 0

    def give_up(self, rows: Tensor) -> None:
        self.table.status[rows] = ops.Status.EXHAUSTED

    def distances(self, rows: Tensor) -> Tensor:
        """L2 norms [M] of the perturbations of `rows`."""
        distances: Tensor = (self.table.images[rows] - self.table.inputs[rows]).flatten(1).norm(dim=1)
        return distances

    def replace(self, rows: Tensor, images: Tensor, labels: Tensor) -> None:
        """Put other examples into `rows`."""
        self.table.images[rows], self.table.found_labels[rows] = images, labels
        self.table.distance[rows] = self.distances(rows)


class _Slots:
    """The batch that the model sees, and the queue that it is filled from."""

    def __init__(self, search: Search, queue: Tensor) -> None:
        size = min(search.batch_size, len(queue))
        self.search, self.queue, self.queue_position = search, queue.clone(), torch.zeros_like(queue[:1])
        self.batch = ops.SlotBatch(
            x=search.table.inputs.new_zeros((size, *search.table.inputs.shape[1:])),
            sample_index=torch.full_like(queue[:size], -1),
            slot_labels=torch.zeros_like(queue[:size]),
        )

    def refill(self, queue: Tensor) -> None:
        """Begin with another queue, no longer than the first. All slots must be idle."""
        self.queue[: len(queue)] = queue
        self.queue[len(queue) :] = -1  # no sample: passed over
        self.queue_position.zero_()
        self.fill()

    def fill(self) -> None:
        nobody = (
            self.batch.sample_index.bool(),
            self.batch.sample_index.clone(),
            self.batch.x.new_zeros(len(self.batch.x)),
        )
        self._step(*nobody, grad=torch.zeros_like(self.batch.x))

    def advance(self) -> None:
        """One evaluation of the model and its gradient, and one step of every slot."""
        attack, grad = self.search.gradient(self.batch.x, self.batch.slot_labels)
        rule = self.search.settings.rule
        self._step(*attack[:3], grad=grad if rule is None else self._by_rule(rule, attack, grad))

    def look(self) -> None:
        """One evaluation of the model without a gradient, for those that have made their last step."""
        attack = self.search.look(self.batch.x, self.batch.slot_labels)
        self._step(*attack[:3], grad=torch.zeros_like(self.batch.x))

    def busy(self) -> int:
        return int((self.batch.sample_index >= 0).sum())

    def compact(self) -> None:
        """Drop the idle slots, of which there are some once the queue is dry."""
        busy = self.batch.sample_index >= 0
        if not busy.all():
            self.batch = ops.SlotBatch(*(part[busy] for part in self.batch))

    def _step(self, adversarial: Tensor, predicted: Tensor, margin: Tensor, grad: Tensor) -> None:
        search = self.search
        feedback = ops.Feedback(grad, adversarial, predicted, margin.to(search.table.eps.dtype))
        position, config = self.queue_position, search.config
        ops.search_step_(self.batch, feedback, search.table, self.queue, position, config, search.bounds)

    def _by_rule(self, rule: PythonRule, attack: ops.AttackLoss, grad: Tensor) -> Tensor:
        """The next iterates [B, ...] as a rule in Python wants them."""
        table, busy = self.search.table, self.batch.sample_index >= 0
        sample, x = self.batch.sample_index[busy], self.batch.x[busy]
        adversarial, distance = attack.adversarial[busy], (x - table.inputs[sample]).flatten(1).norm(dim=1)
        iterate = Iterate(
            x=x,
            inputs=table.inputs[sample],
            grad=grad[busy],
            margin=attack.margin[busy],
            adversarial=adversarial,
            best=torch.where(adversarial, torch.minimum(distance, table.distance[sample]), table.distance[sample]),
            step=table.step_count[sample],
            steps=self.search.config.steps,
            sample=self.search.first_row + sample,
            eps=table.eps[sample],
        )
        moved = rule(iterate)
        fits = isinstance(moved, Tensor) and moved.shape == x.shape
        got = f"shape {tuple(moved.shape)}" if isinstance(moved, Tensor) else type(moved).__name__
        require(fits, "what method returns", f"the next iterates, of shape {tuple(x.shape)}", got)
        table.eps[sample] = iterate.eps
        following = self.batch.x.clone()
        following[busy] = moved.detach().to(following)
        return following
