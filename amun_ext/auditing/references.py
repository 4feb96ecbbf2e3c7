"""Reference models: networks like the audited one, each trained on a random half of all samples.

RMIA and LiRA compare the audited model with them. The halves include test samples, as in the published experiments:
references that are trained on the forget samples but on no test samples would bias the attacks.
One set of references serves every request, every method and every seed.
"""

import os
from functools import partial

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.auditing.model_signals import (
    LOGITS,
    ModelSignals,
    Signals,
    Start,
    check_settings,
    collect,
    concat_splits,
    draw_membership,
    load,
    set_identity,
    signals_from,
)
from amun_ext.data import Splits
from amun_ext.data.images import stored, subset
from amun_ext.models import predict
from amun_ext.models.reinitialise import Init
from amun_ext.training import Recipe
from amun_ext.unlearning.retrain import train_from_scratch
from amun_ext.validation import require

KIND = "references"
SEED = 2000  # added to the seed, so that no reference has the initial weights of the original or retrained model


def train_references(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    init: Init = None,
    models: int = 32,
    keep_logits: bool = False,
    seed: int = 0,
    num_workers: int = 1,
    progress: bool = False,
) -> ModelSignals:
    """Train `models` networks like `model`, from fresh weights, each on a random half of `splits` (paper, section 5).

    Of each the true-class log-odds and the SM-Taylor-softmax of every sample are kept, those of the training set first
    and then those of the test set, in one file per model in `out`, 8 bytes per sample. The same call resumes after a
    kill; a call with more `models` adds models. On one device and thread count the result follows from the seed. The
    membership of the result says which model was trained on which sample.

    Args:
        model: gives the architecture; its weights are not used.
        splits: both sets, in the order that ids refer to.
        recipe: that of the model under audit. With augment, test images are augmented too.
        out: a folder, for these references alone.
        init: where the first weights come from, see `amun_ext.unlearning.retrain.retrain`.
        models: an even number; 8 to 16 suffice for an AUC (docs/benchmarks/audit.md), the paper has 128.
        keep_logits: also keep the logits, 4 bytes for each sample and class, for `prepare_from_references`.
        num_workers: models to train in parallel, one process each.

    Raises:
        InputError: an argument is not what it must be; `out` is of other references; a file there is damaged.
    """
    models, seed, num_workers = check_settings(models, seed, num_workers)
    everything = concat_splits(splits)
    require(len(everything) >= 4, "splits", "of four samples at least", len(everything))
    membership = draw_membership(len(everything), models, seed)
    membership[:, list(splits.absent)] = False
    return collect(
        KIND,
        out,
        set_identity(model, splits, recipe, seed, init) | {LOGITS: keep_logits or None},  # older folders have none
        partial(_train_reference, everything, recipe, keep_logits),
        (model, init),
        membership,
        first_seed=seed + SEED,
        num_workers=num_workers,
        progress=progress,
    )


def load_references(folder: str | os.PathLike[str], models: int | None = None, *, logits: bool = False) -> ModelSignals:
    """Read what `train_references` has written: all references, or the first `models`; with their `logits` if they were
    kept.

    InputError where there are none, fewer than asked for, or an odd number, and for damaged files.
    """
    return load(KIND, folder, models, logits=logits)


def _train_reference(
    everything: TensorDataset, recipe: Recipe, keep_logits: bool, start: Start, half: Tensor, seed: int
) -> Signals:
    model, init = start
    inside, labels = subset(everything, half), stored(everything)[1]
    logits = predict(train_from_scratch(model, inside, recipe, seed, init), everything)
    return signals_from(logits, labels) | ({LOGITS: logits.float()} if keep_logits else {})
