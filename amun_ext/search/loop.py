"""The loop of a search: it evaluates the model on a batch of slots, which work through the table of all samples."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from amun_ext import ops
from amun_ext.models.state import logits_of, placement
from amun_ext.search.attacks import Iterate, PythonRule
from amun_ext.search.graph import cuda_graphed
from amun_ext.search.settings import Settings
from amun_ext.validation import require

HOST_CHECK_EVERY = 16  # iterations between two reads of a CUDA queue, which wait for the device
REDUCED_PART = 0.7  # of the steps of a search of fixed length run in the reduced precision
MORE_STEPS = 4  # of another round
GAIN = 0.07  # by how much a distance falls in the last two evaluations, at least, for another round


class Search:
    """The search of one chunk of samples, from row `first_row` on."""

    def __init__(
        self,
        model: nn.Module,
        fast_model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        settings: Settings,
        batch_size: int,
        first_row: int = 0,
    ) -> None:
        self.model, self.fast_model, self.settings = model, fast_model, settings
        self.batch_size, self.first_row = batch_size, first_row
        self.config, self.bounds, self.loss = settings.step, settings.bounds, settings.loss
        self.use_fast_model = True  # in the reduced precision, if any; False: the caller's model in its own
        self.input_dtype = inputs.dtype
        self.device, self.model_dtype = placement(model, inputs)
        # Iterates are float32 (float64) also for half models, in which steps of eps/10 would be rounded away.
        x0 = inputs.detach().to(self.device, ops.accumulate_dtype(inputs.dtype), copy=True).contiguous()
        labels = labels.detach().to(self.device, torch.int64, copy=True)
        count = len(x0)
        self.per_sample = (-1, *[1] * (x0.dim() - 1))  # the shape of a [N] column beside the images
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

    # ----------------------------------------------------------------------------------------------------- the model

    def _logits(self, x: Tensor) -> Tensor:
        """The logits of the iterates, rounded to the dtype of the inputs, as the results will be."""
        rounded = x.to(self.input_dtype).to(self.model_dtype).clone()  # a model may change its input in place
        if self.use_fast_model and self.settings.precision:
            with torch.autocast(self.device.type, self.settings.precision):
                return logits_of(self.fast_model, rounded).float()
        return logits_of(self.fast_model if self.use_fast_model else self.model, rounded)

    @torch.no_grad()
    def evaluate(self, x: Tensor, labels: Tensor) -> ops.AttackLoss:
        """Whether `x` [B, ...] are adversarial, and the start of the backward pass."""
        return ops.attack_loss(self._logits(x), labels, self.loss, self.settings.min_margin)

    def gradient(self, x: Tensor, labels: Tensor) -> tuple[ops.AttackLoss, Tensor]:
        """The same, and the gradient [B, ...] of the attacked loss at `x`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self._logits(x)
            attack = ops.attack_loss(logits, labels, self.loss, self.settings.min_margin)
            if not logits.requires_grad:  # the model is constant
                return attack, torch.zeros_like(x)
            # with respect to x alone: no weight gradient is computed, and no .grad is written
            (grad,) = torch.autograd.grad(logits, x, attack.grad_logits, allow_unused=True)
        return attack, torch.zeros_like(x) if grad is None else grad

    # -------------------------------------------------------------------------------------------------------- the loop

    def run(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        """Search the samples `queue` [Q], each from its row of `table.images`.

        With "pgd" the search of a sample ends at its first example, and its slot is refilled from the queue. With the
        other rules all samples make equally many steps, batch by batch; the last evaluation needs no gradient. Where
        the method has more rounds, those that still gain then make the last steps again.
        """
        if self.config.rule == "pgd":
            self._run_queue(queue, bar)
        else:
            self._run_batches(queue, bar)

    def _run_queue(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        self.table.status[queue] = ops.Status.PENDING
        slots = ActiveBatch(self, queue)
        slots.fill()
        iteration, before = 0, bar.n
        while len(slots.batch.x):
            slots.advance()
            iteration += 1
            if self.device.type == "cpu" or iteration % HOST_CHECK_EVERY == 0:
                bar.update(before + min(int(slots.queue_position), len(queue)) - slots.num_active() - bar.n)
                if self.device.type == "cpu" or not slots.num_active():  # a CUDA graph has one batch size
                    slots.compact()

    def _run_batches(self, queue: Tensor, bar: "tqdm[Any]") -> None:
        steps = self.config.steps
        reduced_steps = int(REDUCED_PART * steps) if self.use_fast_model and self.settings.precision else 0
        slots, rows, first = ActiveBatch(self, queue[: self.batch_size]), queue, 0
        for _ in range(1 + self.settings.more_rounds):
            self.table.status[rows], self.table.step_count[rows] = ops.Status.PENDING, first
            gaining = []
            for batch in self.batches(rows):
                if self.device.type == "cpu":  # a CUDA graph needs the same tensors each time
                    slots = ActiveBatch(self, batch)
                slots.restart(batch)
                before = self._run_steps(slots, batch, first, 0 if first else reduced_steps)
                gaining.append(self._gaining(batch, before))
                bar.update(len(batch) - len(gaining[-1]))
            rows, first = torch.cat(gaining), steps - MORE_STEPS
            if not len(rows):
                break
        bar.update(len(rows))

    def _run_steps(self, slots: "ActiveBatch", rows: Tensor, first: int, reduced_steps: int) -> Tensor:
        """Steps of `rows` [M] from `first` on, and a last evaluation. Returns the distances [M] two evaluations ago."""
        steps, before = self.config.steps, self.table.distance[rows]
        for step in range(first, steps):
            self.loss = self.settings.loss if 2 * step < steps else self.settings.last_loss
            if reduced_steps:
                self.use_fast_model = step < reduced_steps
            if step == reduced_steps > 0:
                self.recheck(rows[self.table.distance[rows].isfinite()])
            if step == steps - 1:
                before = self.table.distance[rows]
            slots.advance()
            if self.device.type == "cpu":
                slots.compact()
                if not len(slots.batch.x):
                    return before
        slots.evaluate()
        return before

    def _gaining(self, rows: Tensor, before: Tensor) -> Tensor:
        """Those of `rows` that made all steps, and have no example or one much closer than at `before` [M]."""
        now, whole = self.table.distance[rows], self.table.step_count[rows] == self.config.steps
        return rows[whole & (now > 0) & (now.isinf() | (now < (1 - GAIN) * before))]

    # ----------------------------------------------------------------------------------------------------- afterwards

    def batches(self, rows: Tensor) -> tuple[Tensor, ...]:
        """`rows` [M] in batches; none for no rows."""
        return rows.split(self.batch_size) if len(rows) else ()

    def found_rows(self) -> Tensor:
        rows: Tensor = (self.table.status == ops.Status.FOUND).nonzero()[:, 0]
        return rows

    def recheck(self, rows: Tensor) -> Tensor:
        """Evaluate the examples of `rows` again in plain batches; returns the rows [M] whose example fails."""
        table, lost = self.table, torch.zeros_like(rows, dtype=torch.bool)
        for batch in self.batches(torch.arange(len(rows), device=rows.device)):
            attack = self.evaluate(table.images[rows[batch]], table.labels[rows[batch]])
            table.found_labels[rows[batch]] = attack.predicted
            lost[batch] = ~attack.adversarial
        table.distance[rows[lost]] = math.inf
        return rows[lost]

    def retry(self, rows: Tensor, bar: "tqdm[Any]") -> None:
        """Search `rows` again: pgd continues from an example that failed, the other rules start over."""
        restarted = rows if self.config.rule != "pgd" else rows[self.table.status[rows] != ops.Status.FOUND]
        self.table.images[restarted], self.table.eps[restarted] = self.table.inputs[restarted], self.settings.eps_init
        self.table.distance[restarted], self.table.step_count[restarted] = math.inf, 0
        self.run(rows, bar)

    def farther_than(self, radius: float) -> Tensor:
        """Rows [M] whose example is farther away, since not every attack keeps to a radius."""
        rows = self.found_rows()
        return rows[self.table.distance[rows] > radius * (1 + 1e-4)]

    def count_in_one_step(self) -> int:
        """How many samples pgd found by a first step that was not estimated, and may be too long."""
        fixed = self.config.rule == "pgd" and self.settings.eps_init > 0
        return int((self.table.grad_evals[self.found_rows()] == 2).sum()) if fixed else 0

    def mark_not_found(self, rows: Tensor) -> None:
        self.table.status[rows] = ops.Status.EXHAUSTED

    def distances(self, rows: Tensor) -> Tensor:
        """L2 norms [M] of the perturbations of `rows`."""
        distances: Tensor = (self.table.images[rows] - self.table.inputs[rows]).flatten(1).norm(dim=1)
        return distances

    def replace(self, rows: Tensor, images: Tensor, labels: Tensor) -> None:
        """Replace the examples of `rows`."""
        self.table.images[rows], self.table.found_labels[rows] = images, labels
        self.table.distance[rows] = self.distances(rows)


class ActiveBatch:
    """The batch of the model, and the queue that fills it."""

    def __init__(self, search: Search, queue: Tensor) -> None:
        size = min(search.batch_size, len(queue))
        self.search, self.queue, self.queue_position = search, queue.clone(), torch.zeros_like(queue[:1])
        self.batch = ops.SlotBatch(
            x=search.table.inputs.new_zeros((size, *search.table.inputs.shape[1:])),
            sample_index=torch.full_like(queue[:size], -1),
            slot_labels=torch.zeros_like(queue[:size]),
        )
        self.graphs: dict[tuple[bool, str], Callable[[], None]] = {}  # one per model and loss

    def restart(self, queue: Tensor) -> None:
        """Start another queue, no longer than the first. All slots must be idle."""
        self.queue[: len(queue)] = queue
        self.queue[len(queue) :] = -1  # skipped
        self.queue_position.zero_()
        self.fill()

    def fill(self) -> None:
        """A step of idle slots, which reads no feedback."""
        index, x = self.batch.sample_index, self.batch.x
        self._step(index.bool(), index.clone(), x.new_zeros(len(x)), grad=torch.zeros_like(x))

    def advance(self) -> None:
        """One evaluation of the model and its gradient, and one step of every slot."""
        key = self.search.use_fast_model, self.search.loss
        if key not in self.graphs:
            self.graphs[key] = cuda_graphed(self._advance, self.search.device)
        self.graphs[key]()

    def _advance(self) -> None:
        attack, grad = self.search.gradient(self.batch.x, self.batch.slot_labels)
        rule = self.search.settings.rule
        self._step(*attack[:3], grad=grad if rule is None else self._by_rule(rule, attack, grad))

    def evaluate(self) -> None:
        """One evaluation of the model without a gradient, after the last step."""
        attack = self.search.evaluate(self.batch.x, self.batch.slot_labels)
        self._step(*attack[:3], grad=torch.zeros_like(self.batch.x))

    def num_active(self) -> int:
        return int((self.batch.sample_index >= 0).sum())

    def compact(self) -> None:
        """Drop the idle slots, once the queue is empty."""
        active = self.batch.sample_index >= 0
        if not active.all():
            self.batch = ops.SlotBatch(*(part[active] for part in self.batch))

    def _step(self, adversarial: Tensor, predicted: Tensor, margin: Tensor, grad: Tensor) -> None:
        search = self.search
        feedback = ops.Feedback(grad, adversarial, predicted, margin.to(search.table.eps.dtype))
        position, config = self.queue_position, search.config
        ops.search_step_(self.batch, feedback, search.table, self.queue, position, config, search.bounds)

    def _by_rule(self, rule: PythonRule, attack: ops.AttackLoss, grad: Tensor) -> Tensor:
        """The next iterates [B, ...] of a rule in Python."""
        table, active = self.search.table, self.batch.sample_index >= 0
        sample, x = self.batch.sample_index[active], self.batch.x[active]
        adversarial, distance = attack.adversarial[active], (x - table.inputs[sample]).flatten(1).norm(dim=1)
        iterate = Iterate(
            x=x,
            inputs=table.inputs[sample],
            grad=grad[active],
            margin=attack.margin[active],
            adversarial=adversarial,
            best=torch.where(adversarial, torch.minimum(distance, table.distance[sample]), table.distance[sample]),
            step=table.step_count[sample],
            steps=self.search.config.steps,
            sample=self.search.first_row + sample,
            eps=table.eps[sample],
        )
        moved = rule(iterate)
        fits = isinstance(moved, Tensor) and moved.shape == x.shape
        actual = f"shape {tuple(moved.shape)}" if isinstance(moved, Tensor) else type(moved).__name__
        require(fits, "what method returns", f"the next iterates, of shape {tuple(x.shape)}", actual)
        table.eps[sample] = iterate.eps
        next_x = self.batch.x.clone()
        next_x[active] = moved.detach().to(next_x)
        return next_x
