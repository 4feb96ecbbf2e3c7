"""Shadow models for U-LiRA: each is trained, then unlearns half of the samples; it never sees the other half.

The attack of Hayes et al. (2024, U-LiRA) tests each sample by itself: does a model that was trained on it and then
unlearned it differ from a model that has never seen it? The samples are the forget set and as many test samples. Each
shadow is trained on the retain set and a random half of them, and then unlearns that half: as many samples as the
request, after as much training. If the ids are a random draw, there are as many test samples, and nothing was forgotten
before, then the audited model is one more draw of the same experiment; otherwise it is nearly one. Every shadow has
samples of both kinds, so no other models are needed for samples never seen.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.auditing.model_signals import (
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
from amun_ext.data import Splits, find_duplicates
from amun_ext.data.images import concat, stored, subset
from amun_ext.deletion.ids import split
from amun_ext.metrics import auc
from amun_ext.metrics.lira import lira
from amun_ext.models import predict
from amun_ext.models.reinitialise import Init
from amun_ext.training import Recipe
from amun_ext.unlearning.config import MethodConfig
from amun_ext.unlearning.cross_fit import cross_fit
from amun_ext.unlearning.retrain import train_from_scratch
from amun_ext.validation import is_integer, require

KIND = "shadows"
SEED = 3000  # added to the seed, so that no shadow has the initial weights of another model
MIN_SHADOWS = 6  # without one pair, two shadows forgot each sample and two never saw it


@dataclass(frozen=True, eq=False)
class Shadows(ModelSignals):
    """`membership` [M, n] says which shadow forgot which sample; the others never saw it."""

    @property
    def rows(self) -> Tensor:
        """The samples [n], the ids first, as rows of the training set followed by the test set."""
        rows = self.about["rows"]
        assert isinstance(rows, list)
        return torch.tensor(rows, dtype=torch.int64, device="cpu")

    @property
    def ids(self) -> int:
        """Number of samples in the forget set."""
        ids = self.about["ids"]
        assert isinstance(ids, int)
        return ids


def train_shadows(
    model: nn.Module,
    splits: Splits,
    ids: Tensor,
    unlearning: MethodConfig,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    init: Init = None,
    previously_forgotten: Sequence[int] = (),
    models: int = 16,
    seed: int = 0,
    num_workers: int = 1,
    progress: bool = False,
) -> Shadows:
    """Train `models` shadows of one request and one method, and keep their signals for its samples.

    The cost is that of training the original and of unlearning, `models` times; see `cost`. The same call resumes after
    a kill; a call with more `models` adds shadows.

    Args:
        model: gives the architecture; its weights are not used.
        splits: both sets, in the order that ids refer to.
        ids: the forget set under audit, row numbers of the training set.
        unlearning: the method under audit with its options, see `amun_ext.unlearning.config.resolve_config`.
        recipe: that of the original.
        out: a folder, for these shadows alone.
        init: where the first weights come from, see `amun_ext.unlearning.retrain.retrain`.
        previously_forgotten: ids that were forgotten earlier; no shadow is trained on them.
        models: an even number, 6 at least.
        num_workers: models to train in parallel, one process each.

    Raises:
        InputError: an argument is not what it must be; `out` is of other shadows; a file there is damaged.
    """
    models, seed, num_workers = check_settings(models, seed, num_workers)
    check_models(models)
    previously_forgotten = sorted({*previously_forgotten, *splits.absent})
    retain, rows = _sets(splits, ids, previously_forgotten, seed)
    everything = concat_splits(splits)
    samples = subset(everything, rows)
    signals = collect(
        KIND,
        out,
        {
            **set_identity(model, splits, recipe, seed, init),
            "unlearning": unlearning.to_dict(),
            "ids": len(ids),
            "rows": rows.tolist(),
            "previously_forgotten": previously_forgotten,
        },
        partial(_train_shadow, retain, samples, recipe, unlearning),
        (model, init),
        draw_membership(len(rows), models, seed),
        first_seed=seed + SEED,
        num_workers=num_workers,
        progress=progress,
    )
    return Shadows(**vars(signals))


def load_shadows(folder: str | os.PathLike[str], models: int | None = None) -> Shadows:
    """Read what `train_shadows` has written: all shadows, or the first `models`. InputError as `load_references`."""
    shadows = Shadows(**vars(load(KIND, folder, models)))
    rows, wanted = shadows.about.get("rows"), shadows.membership.shape[1]
    settings = [shadows.about.get(name) for name in ("ids", "unlearning", "previously_forgotten")]
    whole = isinstance(rows, list) and len(rows) == wanted and all(map(is_integer, rows))
    whole = whole and all(map(isinstance, settings, (int, dict, list)))
    require(whole, KIND, f"a folder that amun {KIND} has written", f"{folder}, with an incomplete {KIND}.json")
    return shadows


def cost(splits: Splits, ids: Tensor, unlearning: MethodConfig, recipe: Recipe, models: int) -> str:
    """The cost of the shadows, in a sentence."""
    check_models(models)
    training, tuning = recipe.epochs, unlearning.recipe.epochs
    prepared = ""
    if (targets := unlearning.targets) is not None:
        fits = "a cross-fit" if targets.repeats == 1 else f"{targets.repeats} cross-fits"
        trainings = (targets.folds - 1) * targets.repeats
        prepared = f", with {fits} of {targets.folds} folds (as much as {trainings} trainings),"
    return (
        f"{models} shadow models: each is trained on {len(splits.train):,} samples for {training} epochs{prepared} and "
        f"then forgets {len(ids):,} of them by {unlearning.method} ({tuning} epochs); together as much as training the "
        f"original and this request {models} times"
    )


def check_models(models: int) -> None:
    require(models >= MIN_SHADOWS and models % 2 == 0, "models", f"an even number, {MIN_SHADOWS} at least", models)


def check_shadows(shadows: Shadows, ids: Tensor) -> None:
    """InputError for shadows of another request."""
    same = sorted(shadows.rows[: shadows.ids].tolist()) == sorted(ids.tolist())
    require(same, KIND, "of the ids that are audited", "those of another request")


def auc_over_shadows(shadows: Shadows) -> dict[str, float]:
    """AUC of U-LiRA in percent with each shadow as the audited model: mean and standard deviation.

    The other model of its pair, which has the complementary half, is left out. Each shadow has forgotten another half,
    so the deviation includes that of runs and of samples.
    """
    odds, forgot = shadows.signals["log-odds"], shadows.membership
    areas = []
    for number in range(len(shadows)):
        others = torch.arange(len(shadows), device="cpu") // 2 != number // 2
        scores = lira(odds[number], odds[others], forgot[others])
        mine = forgot[number].numpy()
        areas.append(auc(scores[mine], scores[~mine]).value)
    return {"runs": len(areas), "mean": float(np.mean(areas)), "deviation": float(np.std(areas, ddof=1))}


def _sets(splits: Splits, ids: Tensor, previously_forgotten: Sequence[int], seed: int) -> tuple[TensorDataset, Tensor]:
    """(retain set, rows of the shadows' samples). Test samples with a copy in the training set are left out."""
    retain = split(
        splits.train, torch.cat([ids, torch.tensor(list(previously_forgotten), dtype=torch.int64, device="cpu")])
    )[1]
    duplicated = {row for row, _ in find_duplicates(splits.test, splits.train)}
    never_seen = torch.tensor(
        [row for row in range(len(splits.test)) if row not in duplicated], dtype=torch.int64, device="cpu"
    )
    expected = "with two test samples at least that are not in the training set"
    require(len(never_seen) >= 2, "splits", expected, len(never_seen))
    chosen = torch.randperm(len(never_seen), generator=torch.Generator().manual_seed(seed), device="cpu")[: len(ids)]
    return retain, torch.cat([ids, len(splits.train) + never_seen[chosen].sort().values])


def _train_shadow(
    retain: TensorDataset,
    samples: TensorDataset,
    recipe: Recipe,
    unlearning: MethodConfig,
    start: Start,
    half: Tensor,
    seed: int,
) -> Signals:
    model, init = start
    forget = subset(samples, half)
    everything = concat([retain, forget])
    trained = train_from_scratch(model, everything, recipe, seed, init)
    targets = None
    if unlearning.targets is not None:  # a request is prepared on data that include the forget set
        how = {"folds": unlearning.targets.folds, "repeats": unlearning.targets.repeats}
        targets = cross_fit(model, everything, recipe, **how, seed=seed, init=init)[len(retain) :]
    unlearned = unlearning.unlearn(trained, forget, retain, targets=targets, seed=seed)
    return signals_from(predict(unlearned, samples), stored(samples)[1])
