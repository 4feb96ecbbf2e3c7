"""audit: attacks on a model, measures with intervals, and a verdict by a stated rule (paper section 3)."""

import math
import reprlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.auditing.attacks import all_scores
from amun_ext.auditing.baseline import attacks_of_verdict, why_not_random
from amun_ext.auditing.members import find_suspected_members, harm
from amun_ext.auditing.model_signals import ModelSignals, check_same, concat_splits, signals_from
from amun_ext.auditing.references import KIND as REFERENCES
from amun_ext.auditing.result import PICTURES, Audit
from amun_ext.auditing.shadows import KIND as SHADOWS
from amun_ext.auditing.shadows import Shadows, auc_over_shadows, check_shadows
from amun_ext.auditing.verdict import AUDITED, ORIGINAL, RETRAINED, overall_verdict
from amun_ext.data import Splits
from amun_ext.data.images import stored, subset
from amun_ext.defaults import EQUIVALENCE_MARGIN
from amun_ext.deletion.ids import split
from amun_ext.digest import architecture
from amun_ext.distributed import blocks, exchange, fail_together, rank
from amun_ext.evaluation.remarks import common_remarks, labelled
from amun_ext.metrics.measures import (
    AUDIT_MEASURES,
    PAIRS,
    SETS,
    Estimate,
    Observation,
    Scores,
    attack_auc,
    measure,
    summarize_runs,
    tpr_at,
)
from amun_ext.models import predict
from amun_ext.sharded import check_not_sharded
from amun_ext.validation import is_number, require


def audit(
    model: nn.Module | Sequence[nn.Module],
    splits: Splits,
    ids: Tensor,
    *,
    original: nn.Module | None = None,
    retrained: nn.Module | Sequence[nn.Module] | None = None,
    references: ModelSignals | None = None,
    shadows: Shadows | None = None,
    previously_forgotten: Sequence[int] = (),
    teachers: Collection[str] = (),
    random_forget_set: bool = False,
    equivalence_margin: float = EQUIVALENCE_MARGIN,
    seconds: Mapping[str, float] | None = None,
    remarks: Sequence[str] = (),
    facts: Mapping[str, object] | None = None,
) -> Audit:
    """Measure how well `model` has forgotten the training samples `ids`, and say so with its uncertainty.

    The verdict is an equivalence test of FT AUC (the chance that a forget sample looks more like a member than a test
    sample) against that of `retrained` on the same samples. Without a retrained model the test is against 50, which
    retraining would give, if there are `references` or `shadows` and the ids are a `random_forget_set`. Otherwise the
    verdict is "cannot tell". With `shadows` there is a second test with the per-sample attack U-LiRA, and the worse of
    the two answers counts; if `shadows` are the only baseline, U-LiRA is the only test.

    "Forgotten" needs the `original`: the same test must detect that it was trained on the ids, or the verdict is
    "cannot tell". It is "not forgotten" if more forget samples look like members than chance allows (see
    `amun_ext.auditing.verdict`).

    Args:
        model: the unlearned classifier; or several, unlearned in the same way with different seeds. The verdict is on
            the first; tables show their mean and the range of their intervals, and KLoM (see `amun_ext.metrics.klom`)
            if there are several retrained models.
        splits: the data that the original was trained on, in its order, and test data that no model was trained on.
        ids: row numbers of the training set, each once.
        original: the model before unlearning. Without it the verdict is never "forgotten".
        retrained: a model trained without the ids, otherwise as the original; or several, with different seeds, so that
            the verdict includes the variation between training runs. Tables show their mean and the range of their
            intervals, figures show the first.
        references: see `train_references`; of these splits and this architecture.
        shadows: see `train_shadows`; of these splits, this architecture and these ids. Their method and recipes must be
            those of the model, which is not checked here.
        previously_forgotten: ids that were forgotten earlier; they are in no set.
        teachers: digests of reference models that gave targets to a model (`Targets.teachers`); `references` must be
            others.
        random_forget_set: the ids are a random draw from the training set, not one class or one person.
        equivalence_margin: FT AUC differences below this many points count as equal.
        seconds: "audited" and "retrained" -> wall time to produce one.
        remarks: further flags.
        facts: what a reader should know.

    Raises:
        InputError: an argument is not what it must be, before any model is run; a model that does not return finite
            logits [N, K].

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from amun_ext import audit
        >>> from amun_ext.data import Splits
        >>> model = torch.nn.Linear(2, 2, bias=False)  # class 0 where the first number is the larger one
        >>> _ = model.load_state_dict({"weight": torch.eye(2)})
        >>> train, test = (TensorDataset(x, x.argmax(1)) for x in (torch.rand(40, 2), torch.rand(20, 2)))
        >>> result = audit(model, Splits(train, test, ("first", "second")), torch.arange(12))
        >>> result.verdict.answer  # nothing is there to compare with
        'cannot tell'
    """
    retrained_models = [] if retrained is None else [retrained] if isinstance(retrained, nn.Module) else list(retrained)
    unlearned = list(model) if isinstance(model, Sequence) else [model]
    rest = references, shadows, previously_forgotten, equivalence_margin, teachers
    others = check(unlearned, splits, ids, original, retrained_models, *rest)
    removed_ids = torch.cat([ids, torch.tensor(list(previously_forgotten), dtype=torch.int64, device="cpu")])
    of_kinds = {ORIGINAL: [] if original is None else [original], AUDITED: unlearned, RETRAINED: retrained_models}
    models = [(name, each) for name, of_kind in of_kinds.items() for each in of_kind]
    names, seconds_by_name = list(dict(models)), dict(seconds or {})
    require(set(seconds_by_name) <= set(names), "seconds", f"of models among {names}", list(seconds_by_name))
    rows = set_rows(len(splits.train), len(splits.test), ids, removed_ids)
    everything = concat_splits(splits)
    kinds: dict[str, list[Observation]] = {name: [] for name in names}
    for name, each in models:
        kinds[name].append(observe(each, everything, rows, others, seconds_by_name.get(name, math.nan)))
    observations, baselines = {name: of[0] for name, of in kinds.items()}, kinds.get(RETRAINED, [])
    audited, original_observed = observations[AUDITED], observations.get(ORIGINAL)
    reference = RETRAINED if baselines else ORIGINAL
    warnings = common_remarks(audited, original_observed, observations.get(reference), reference)
    objection = why_not_random(splits, ids, random_forget_set)
    verdict, verdicts = overall_verdict(
        audited,
        original_observed,
        baselines,
        others,
        objection,
        margin=equivalence_margin,
        no_op=warnings.get("no-op", ""),
    )
    attacks = attacks_of_verdict(audited, baselines, others)
    pictured = len(splits.train.stored[0].shape) == 4
    members = find_suspected_members(audited, ids, attacks[-1])  # U-LiRA where there are shadows: it is per sample
    return Audit(
        verdict=verdict,
        verdicts=verdicts,
        flags=[*remarks, *labelled(warnings)],
        rows={
            name: measure(of, [] if name == RETRAINED else baselines, AUDIT_MEASURES, detailed=True)
            for name, of in kinds.items()
        },
        attacks={
            attack: {name: _attack_measures([each.attacks[attack] for each in of]) for name, of in kinds.items()}
            for attack in audited.attacks
        },
        members=members,
        harm=harm(audited, observations.get(reference)),
        runs={} if shadows is None else auc_over_shadows(shadows),
        observations=observations,
        pictures=[splits.train[each.id][0].cpu().float().numpy() for each in members.samples[:PICTURES] if pictured],
        classes=splits.classes,
        sizes={name: len(audited.labels[name]) for name in SETS},
        facts=dict(facts or {}),
    )


def check(
    unlearned: Sequence[nn.Module],
    splits: Splits,
    ids: Tensor,
    original: nn.Module | None = None,
    retrained: Sequence[nn.Module] = (),
    references: ModelSignals | None = None,
    shadows: Shadows | None = None,
    previously_forgotten: Sequence[int] = (),
    equivalence_margin: float = EQUIVALENCE_MARGIN,
    teachers: Collection[str] = (),
) -> dict[str, ModelSignals]:
    """The references and shadows by kind. InputError as `audit`, for callers that train models before the audit."""
    require(isinstance(splits, Splits), "splits", "a data.Splits", type(splits).__name__)
    rows = isinstance(ids, Tensor) and ids.dim() == 1 and len(ids) > 0 and ids.dtype == torch.int64
    require(rows, "ids", "a tensor of row numbers [n] int64, one at least", reprlib.repr(ids))
    number = is_number(equivalence_margin) and 0 < equivalence_margin < 50
    require(number, "equivalence_margin", "points of AUC between 0 and 50", repr(equivalence_margin))
    removed_ids = [*ids.tolist(), *previously_forgotten]
    distinct = len(set(removed_ids)) == len(removed_ids)
    require(distinct, "ids", "different from each other and from previously_forgotten", "some twice")
    require(len(unlearned) > 0, "model", "one at least", "none")
    first, every = unlearned[0], [*(("model", each) for each in unlearned), (ORIGINAL, original)]
    for name, each in [*every, *((RETRAINED, each) for each in retrained)]:
        if each is not None or name == "model":
            require(isinstance(each, nn.Module), name, "an nn.Module", type(each).__name__)
            assert each is not None
            require(architecture(each) == architecture(first), name, "of the audited model's architecture", "another")
    others: dict[str, ModelSignals] = {}
    for kind, models, expected in ((REFERENCES, references, ModelSignals), (SHADOWS, shadows, Shadows)):
        if models is not None:
            fits = isinstance(models, expected) and isinstance(models, Shadows) == (kind == SHADOWS)
            require(fits, kind, f"what load_{kind} gives", type(models).__name__)
            check_same(kind, models, first, splits)
            others[kind] = models
    shared = 0 if references is None else len({*teachers} & {*references.digests()})
    others_only = "models that gave no targets to a model under audit, such as references of another seed"
    require(shared == 0, REFERENCES, others_only, f"{shared} that did")
    if shadows is not None:
        check_shadows(shadows, ids)
    split(splits.train, torch.tensor(removed_ids, dtype=torch.int64, device="cpu"))  # refuses unknown ids, and all ids
    return others


def set_rows(train: int, test: int, ids: Tensor, removed_ids: Tensor) -> dict[str, Tensor]:
    """Set -> rows of the training set followed by the test set."""
    kept = torch.ones(train, dtype=torch.bool, device="cpu")
    kept[removed_ids] = False
    return {"forget": ids, "retain": kept.nonzero()[:, 0], "test": torch.arange(train, train + test, device="cpu")}


def observe(
    model: nn.Module,
    everything: TensorDataset,
    rows: Mapping[str, Tensor],
    others: Mapping[str, ModelSignals],
    seconds: float,
) -> Observation:
    logits, labels = _logits(model, everything), stored(everything)[1]
    scores = all_scores(signals_from(logits, labels), others, rows)
    by_set = {name: {of: each[at.numpy()] for of, at in rows.items()} for name, each in scores.items()}
    return Observation(
        logits={name: logits[at] for name, at in rows.items()},
        labels={name: labels[at] for name, at in rows.items()},
        attacks={name: {of: of_set[~np.isnan(of_set)] for of, of_set in each.items()} for name, each in by_set.items()},
        seconds=seconds,
    )


def _logits(model: nn.Module, data: TensorDataset) -> Tensor:
    """[N, K], of which each rank of a process group computes some batches, the same as one process has."""
    check_not_sharded(model)
    batch = 512
    own = blocks(-(-len(data) // batch))[rank()]
    rows = torch.arange(len(data), device="cpu")[own.start * batch : own.stop * batch]
    with fail_together():
        logits = predict(model, subset(data, rows), batch) if own else None
    return torch.cat([part for part in exchange(logits) if part is not None])


def _attack_measures(scores: Sequence[Scores]) -> dict[str, Estimate]:
    """AUCs and true-positive rate of an attack, for the scores of one model or several."""
    areas = {f"{sets} AUC": summarize_runs([attack_auc(each, sets) for each in scores]) for sets in PAIRS}
    return areas | {"TPR @ 1 % FPR": summarize_runs([tpr_at(each, 1.0) for each in scores])}
