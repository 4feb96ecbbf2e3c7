"""Targets of distillation from reference models: what those say of a training sample that were not trained on it.

No model is trained. An audit must not judge with the same references, which `audit` refuses.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from amun_ext.auditing.model_signals import LOGITS, ModelSignals, check_same, concat_splits, draw_membership
from amun_ext.auditing.references import KIND
from amun_ext.data import Splits, training_data
from amun_ext.data.images import subset
from amun_ext.distributed import by_first_rank, entered_by_first_rank
from amun_ext.files import workplace
from amun_ext.training import Recipe
from amun_ext.unlearning import Targets
from amun_ext.unlearning.cross_fit import image_numbers, other_rows, targets_for, targets_there
from amun_ext.validation import require

MOST = 64  # references that an error may ask for


def prepare_from_references(
    references: ModelSignals,
    model: nn.Module,
    splits: Splits,
    *,
    out: str | os.PathLike[str],
    previously_forgotten: Sequence[int] = (),
    overwrite: bool = False,
) -> Targets:
    """For each training sample the mean logits of the references that were trained on no copy of it.

    As `amun_ext.unlearning.prepare`, but of models that are there: each pair of references is a cross-fit of two folds.
    The mean of logits gives the soft labels of the mean log-softmax. It keeps the mean difference between two logits,
    so targets are as sure as the models are on average; a mean of probabilities would be less sure than each of them.

    Args:
        references: of `load_references(folder, logits=True)`.
        model: gives the architecture; its weights are not used.
        splits: the data that the references were trained on.
        out: the file to write (.safetensors); nothing is done if it has these targets already.
        previously_forgotten: ids that get no logits.
        overwrite: replace other targets.

    Raises:
        InputError: an argument is not what it must be; all references were trained on copies of one sample.

    Examples:
        >>> import tempfile
        >>> from torch.utils.data import TensorDataset
        >>> from amun_ext import data, models
        >>> from amun_ext.auditing import load_references, prepare_from_references, train_references
        >>> from amun_ext.training import Recipe
        >>> digits = data.load("digits")
        >>> few = data.Splits(*(TensorDataset(*part[:40]) for part in (digits.train, digits.test)), digits.classes)
        >>> model = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     how = {"models": 4, "keep_logits": True}
        ...     _ = train_references(model, few, Recipe(epochs=1, lr=0.1), out=folder, **how)
        ...     references = load_references(folder, logits=True)
        ...     targets = prepare_from_references(references, model, few, out=f"{folder}/targets.safetensors")
        >>> targets.of(TensorDataset(*few.train[:3])).shape
        torch.Size([3, 10])
    """
    out = Path(out)
    require(isinstance(references, ModelSignals), KIND, "what load_references gives", type(references).__name__)
    check_same(KIND, references, model, splits)
    require(LOGITS in references.signals, KIND, "loaded with logits=True", "references without")
    rows = other_rows(len(splits.train), {*previously_forgotten, *splits.absent})
    numbers = image_numbers(concat_splits(splits))
    unseen = ~_seen(references.membership, numbers)[:, rows]
    _check_enough(references, unseen, numbers, rows)
    logits = torch.zeros(references.signals[LOGITS][0, rows].shape, dtype=torch.float64, device="cpu")
    for weight, of_model in zip(unseen.double() / unseen.sum(0), references.signals[LOGITS], strict=True):
        logits += weight[:, None] * of_model[rows]
    about, recipe = references.about, references.about["recipe"]
    assert isinstance(recipe, Mapping)
    in_no_model = (~references.membership[:, : len(splits.train)]).all(0).nonzero()[:, 0]
    metadata = {
        "data": training_data(splits),
        **{name: about.get(name) for name in ("architecture", "init", "seed")},
        "recipe": asdict(Recipe(**recipe)),  # an older folder lacks newer fields
        "folds": 2,
        "previously_forgotten": in_no_model.tolist(),
        "teachers": [*references.digests()],
    }
    with entered_by_first_rank(workplace(out.parent, f"prepare-{out.name}")) as place:
        there = by_first_rank(targets_there)(out, metadata, overwrite)
        if there is not None:
            return there
        made = targets_for(subset(splits.train, rows), logits.float(), metadata)
        by_first_rank(made.save)(out, place)
    return made


def _seen(membership: Tensor, numbers: Tensor) -> Tensor:
    """[M, N] bool: was the model trained on the sample or a copy? `numbers` [N] are those of the images."""
    trained_on = torch.zeros(len(membership), len(numbers), device="cpu").index_add_(1, numbers, membership.float())
    return trained_on[:, numbers] > 0


def _check_enough(references: ModelSignals, unseen: Tensor, numbers: Tensor, rows: Tensor) -> None:
    """InputError for a sample that all references were trained on; it says how many would do."""
    missing = int((~unseen.any(0)).sum())
    if not missing:
        return
    seed = references.about["seed"]
    assert isinstance(seed, int)
    known = ~_seen(draw_membership(len(numbers), MOST, seed), numbers)[:, rows]
    needed = int(known.int().argmax(0).max()) // 2 * 2 + 2
    enough = (
        f"increased by {needed - len(references)} more models (amun references --num-models {needed} --keep-logits)"
    )
    expected = enough if bool(known.any(0).all()) else f"replaced by a cross-fit: {MOST} models are too few"
    require(False, KIND, expected, f"{missing} samples of which each has seen a copy")
