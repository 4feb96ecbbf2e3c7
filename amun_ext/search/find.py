"""find_min_adversarial: for each sample the closest adversarial example (paper, Algorithm 1)."""

import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from amun_ext import ops
from amun_ext.digest import digest
from amun_ext.distributed import fail_together, rank, world_size
from amun_ext.models.optimized_copy import optimized_copy
from amun_ext.models.state import count_classes, eval_mode, placement
from amun_ext.progress import progress_bar
from amun_ext.search.adversarial_set import AdversarialSet
from amun_ext.search.attacks import PythonRule
from amun_ext.search.batch import default_batch_size
from amun_ext.search.ffgsm import ffgsm
from amun_ext.search.loop import Search
from amun_ext.search.postprocess import bisect_to_input, round_to_grid
from amun_ext.search.results_file import PENDING, Rows, open_results
from amun_ext.search.samples import Samples
from amun_ext.search.settings import MAX_RADIUS, resolve_settings
from amun_ext.search.shards import Counts, check_shards, search_shared
from amun_ext.sharded import check_not_sharded
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import check_bounds, check_integer, require

CHUNK_BYTES = 2**26  # of images that are held in memory at once
CHUNK_BATCHES = 4  # of a chunk with results in a file: a kill loses at most these


def find_min_adversarial(
    model: nn.Module,
    inputs: Tensor | Dataset[Any] | DataLoader[Any],
    labels: Tensor | None = None,
    *,
    method: str | PythonRule = "pgd",
    loss: str | None = None,
    eps_init: float | str | None = None,
    eps_growth: float | None = None,
    eps_max: float | None = None,
    steps: int | None = None,
    step_fraction: float | None = None,
    refine: int = 0,
    min_margin: float = 0.0,
    quantize: int | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int | None = None,
    precision: str | None = None,
    optimize_model: bool = True,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> AdversarialSet:
    """For each input, find the closest adversarial example, in L2, by a gradient search.

    Methods, with what each counts as `steps`:

    - "pgd", the paper's Algorithm 1: `steps` (50) steps of length step_fraction * eps (0.1) inside the ball of
      radius eps (at first the paper's 0.04 in the box (0, 1), else estimated) and the box; the search ends at the first
      misclassified point. If there is none, eps grows by eps_growth (2) and the ascent continues from the last point. A
      finished sample is replaced in the batch at once. Distances below 0.004 need eps_init="estimate".
    - "ddn", decoupled direction and norm: the radius grows or shrinks after each gradient, and the closest example is
      kept. `steps` gradients; by default 10, and up to four times 4 more for samples without an example and those
      whose distance still falls by 7 %. Closer examples with a fraction of the gradients.
    - "deepfool": `steps` (10) projections onto the linearised boundary, the closest example kept.
    - "ffgsm", the weak attack of the paper's appendix E.5: one gradient, `steps` (8) growing steps along its sign.
    - a rule of your own: a function of an `amun_ext.search.Iterate` that returns the next iterates [B, ...], called
      `steps` (20) times; the closest example is kept.

    The iterations run on a faster copy of the model (no weight gradients, BatchNorm folded), equal up to rounding.
    Every example is checked on the model itself, in plain batches; a sample whose example fails there is
    searched again on the model itself. The model runs in eval mode, under the caller's autocast if any, and is left as
    it was: training flags, buffers, gradients and the random state. Not for two threads with one model.

    Args:
        model: maps [N, ...] to logits [N, K]. Normalisation belongs inside: distances are in the units of `inputs`.
        inputs: floating point [N, ...] inside `bounds`, also a memory map, or a map-style Dataset of (input, label),
            which is read a chunk at a time, or a DataLoader, which stands for its dataset, in the dataset's order.
        labels: true labels [N]; None with a Dataset.
        method: see above. The next options default to the method's own, and are refused if it has no such option.
        loss: what is maximised: "cross_entropy" (the paper's, of pgd and ffgsm; exact where the softmax saturates) or
            "margin", the strongest other logit minus the label's, which goes straight to the nearest competitor; ddn
            takes the former for the first half of its steps and the latter for the second.
        eps_init: first radius; "estimate" takes it per sample from the first gradient, as a multiple of margin over
            gradient norm (always so in deepfool, and in ddn unless given).
        eps_growth: factor between radii; in ddn that of the first step, where it falls to 1.02.
        eps_max: largest radius, at most the diagonal of the box (the default). A sample without an example within it
            has found=False. Without a box pgd reaches it only after thousands of gradients.
        steps: see above.
        step_fraction: step length as a fraction of the radius; in ddn that of the first step, where it falls to 0.4.
        refine: forward passes of bisection between each input and its example, which brings the example closer to the
            boundary and to the input; never worse than without.
        min_margin: logits by which the wrong class must lead the true one for an example to count.
        quantize: 255 for examples that stay adversarial when saved as 8-bit images: all elements are multiples of 1/255
            of the box. A sample without such an example has found=False.
        bounds: the box, (low, high); None, or an infinite end, for data without one.
        batch_size: samples searched at once; by default 128 on a GPU, and on a CPU 32 per thread, or fewer if layers do
            not fit its cache. Results depend on it only by rounding.
        precision: "bfloat16" runs most iterations under autocast; the last ones, and those of samples whose example
            fails otherwise, run in the caller's precision.
        optimize_model: False runs everything on the model itself.
        out: a file (.safetensors) for the results, chunk by chunk, for AdversarialSet.load. The same call
            resumes a search that was killed; a finished one is not repeated.
        progress: show a bar of finished samples.

    In a process group of torch.distributed every rank makes the same call, searches its block of the samples and gets
    all results; distances are equal to those of one process up to rounding. With `out` a stopped search resumes with
    as many ranks as before.

    Returns:
        AdversarialSet on the device of `inputs`, in their order and dtype; mapped into memory from the file `out`.

    Raises:
        InputError: an argument is not what it must be; then only one forward pass was run. If a later item of a
            Dataset is bad, the file `out` has the results before it.
        OSError: no room for `out`.
        RankError: another rank of the process group failed or ended.

    Examples:
        >>> import torch
        >>> from amun_ext import find_min_adversarial
        >>> model = torch.nn.Linear(2, 2, bias=False)  # class 0 where the first number is the larger one
        >>> _ = model.load_state_dict({"weight": torch.eye(2)})
        >>> inputs, labels = torch.tensor([[0.9, 0.1]]), torch.tensor([0])
        >>> result = find_min_adversarial(model, inputs, labels, method="ddn")
        >>> result.labels.tolist(), round(float(result.distance[0]), 2)  # the boundary is 0.8 / sqrt(2) away
        ([1], 0.57)
    """
    samples = Samples(inputs, labels, check_bounds(bounds))
    like = samples.like
    low, high = samples.bounds  # rounded to the type of the images
    require(isinstance(model, nn.Module), "model", "an nn.Module", type(model).__name__)
    chosen = {"eps_init": eps_init, "eps_growth": eps_growth, "steps": steps, "step_fraction": step_fraction}
    diagonal = min((high - low) * math.sqrt(like[0].numel()), MAX_RADIUS)
    settings = resolve_settings(
        method,
        chosen,
        loss=loss,
        eps_max=eps_max,
        diagonal=diagonal,
        bounds=(low, high),
        min_margin=min_margin,
        refine=refine,
        quantize=quantize,
        precision=precision,
    )
    require(isinstance(optimize_model, bool), "optimize_model", "True or False", repr(optimize_model))
    require(optimize_model or precision is None, "precision", "None with optimize_model=False", repr(precision))
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1)
    if out is not None:
        named = isinstance(out, str | os.PathLike) and bool(Path(out).name) and not Path(out).is_dir()
        require(named, "out", "a file to be written", repr(out))
    check_not_sharded(model)
    device, dtype = placement(model, like)
    classes = count_classes(model, like)
    if samples.labels is not None:
        check_labels("labels", samples.labels, len(samples), classes)

    path = None if out is None else Path(out)
    with fail_together(), eval_mode(model), torch.inference_mode(False):
        probe = like[:8].detach().to(device, dtype, copy=True)
        fast_model = optimized_copy(model, probe) if optimize_model else model
        batch_size = default_batch_size(fast_model, probe) if batch_size is None else batch_size
        chunk = CHUNK_BYTES // like[0].nbytes
        chunk = max(batch_size, chunk if out is None else min(chunk, CHUNK_BATCHES * batch_size))
        alone = world_size() == 1
        if path is not None and rank() == 0:
            check_shards(path)
        metadata = {} if out is None and alone else {**settings.as_metadata(), "model": _fingerprint(model)}

        def search_rows(own: range, path: Path | None) -> tuple[Rows, Counts]:
            without_gradient = in_one_step = 0
            with open_results(path, samples, len(own), metadata) as (rows, flush):
                done = int((rows["grad_evals"] != PENDING).sum())
                shown = progress and rank() == 0
                with progress_bar(
                    shown, total=len(own), initial=done, desc="search", unit="sample", leave=False
                ) as bar:
                    for start in range(own.start + done, own.stop, chunk):
                        part = range(start, min(start + chunk, own.stop))
                        images, true_labels = samples.read(part, classes)
                        search = Search(model, fast_model, images, true_labels, settings, batch_size, start)
                        _search_all(search, ffgsm if method == "ffgsm" else Search.run, bar)
                        next_radius = 1 - 2 * (settings.step.last_eps_growth - 1)  # at least that part of this one
                        bisect_to_input(search, settings.last_bisections, next_radius)
                        bisect_to_input(search, refine)
                        if quantize is not None:
                            search.mark_not_found(round_to_grid(search, quantize))
                        search.mark_not_found(search.farther_than(settings.step.eps_max))
                        without_gradient += int((search.table.status == ops.Status.NO_GRADIENT).sum())
                        in_one_step += search.count_in_one_step()
                        _write(rows, part, own.start, search)
                        flush()
                        del search, images, true_labels  # before the next chunk needs the memory
            return rows, (without_gradient, in_one_step)

        if alone:
            rows, (without_gradient, in_one_step) = search_rows(range(len(samples)), path)
        else:
            rows, (without_gradient, in_one_step) = search_shared(search_rows, samples, path, metadata)
    warn = partial(warnings.warn, category=RuntimeWarning, stacklevel=2)
    if without_gradient:
        warn(
            f"{without_gradient} of {len(samples)} samples have no example, because their gradient is zero or NaN, "
            "or the logits do not depend differentiably on the input"
        )
    if in_one_step > len(samples) / 2:
        warn(
            f"{in_one_step} of {len(samples)} samples were found by the first step, {settings.first_step:.3g} long; "
            'there may be closer examples: eps_init="estimate" searches there'
        )
    return AdversarialSet(**rows) if out is None else AdversarialSet.load(out)


def _search_all(search: Search, run: Callable[[Search, Tensor, "tqdm[Any]"], None], bar: "tqdm[Any]") -> None:
    """Search all samples on the fast model, then those whose example fails on the caller's model again on that model.

    Rounding, which also depends on the batch size, may decide for a point on the boundary. After a search in reduced
    precision, samples without an example are searched again too.
    """
    run(search, torch.arange(len(search.table.labels), device=search.device), bar)
    search.use_fast_model = False
    again = search.recheck(search.found_rows())
    if search.settings.precision:
        again = torch.cat([again, (search.table.status != ops.Status.FOUND).nonzero()[:, 0]])
    if len(again):
        silent = tqdm(disable=True)
        if run is ffgsm:
            ffgsm(search, again, silent)
        else:
            search.retry(again, silent)
        search.mark_not_found(search.recheck(again[search.table.status[again] == ops.Status.FOUND]))


def _write(rows: Rows, part: range, first: int, search: Search) -> None:
    """Write the results of the samples `part` by the names of AdversarialSet; the first row is of sample `first`."""
    table = search.table
    found = table.status == ops.Status.FOUND
    images = torch.where(found.view(search.per_sample), table.images, table.inputs).to(search.input_dtype)
    distance = (images.to(table.inputs.dtype) - table.inputs).flatten(1).norm(dim=1)  # after rounding to that dtype
    # only pgd has a radius of its own, and an example on the grid may be beyond it
    within = distance <= table.eps * (1 + 1e-4)
    eps = torch.where(within, table.eps, distance) if search.config.rule == "pgd" else distance
    columns = {
        "images": images,
        "labels": torch.where(found, table.found_labels, table.labels),
        "true_labels": table.labels,
        "source_index": torch.arange(part.start, part.stop, device="cpu"),
        "eps": eps.masked_fill(found & (distance == 0), 0),
        "distance": distance.masked_fill(~found, math.inf),
        "found": found,
        "grad_evals": table.grad_evals,  # last, because it marks the row as complete
    }
    for name, column in columns.items():
        rows[name][part.start - first : part.stop - first] = column


def _fingerprint(model: nn.Module) -> str:
    """Of its modules, weights and buffers."""
    state = dict(chain(model.named_parameters(), model.named_buffers()))  # state_dict() may lack buffers
    return digest(state, repr([type(module).__qualname__ for module in model.modules()]))
