"""evaluate: a table of measures of several models, against one that was retrained, as JSON and as a page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.data.images import stored
from amun_ext.data.splits import checked_dataset
from amun_ext.evaluation.document import document
from amun_ext.evaluation.examples import Example, check_examples, pick_examples, summarize_search
from amun_ext.evaluation.remarks import common_remarks, labelled, remembers
from amun_ext.files import to_jsonable
from amun_ext.metrics.measures import REPORT_MEASURES, Measure, Observation, Values, measure
from amun_ext.metrics.signals import log_odds
from amun_ext.models import predict
from amun_ext.report import Document, Result
from amun_ext.search import AdversarialSet
from amun_ext.tensor_checks import check_labels
from amun_ext.validation import check_bounds, require


@dataclass(frozen=True, eq=False)
class Report(Result):
    """The result of `evaluate`. Numbers that do not exist are NaN here and null in JSON."""

    rows: Mapping[str, Values]  # row -> measure -> value
    sizes: Mapping[str, int]  # forget, retain, test -> number of samples
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]  # row -> forget, retain, test -> log-odds [N]
    before: str
    highlight: str
    baseline: str | None
    search: Mapping[str, float] | None  # the adversarial examples in numbers
    remarks: Sequence[str]  # warnings about the highlighted model
    examples: Sequence[Example]  # some adversarial examples, from the closest to the farthest
    facts: Mapping[str, object]

    @property
    def columns(self) -> list[Measure]:
        """The measures with a value in some row."""
        values = {each.name: [row.get(each.name, math.nan) for row in self.rows.values()] for each in REPORT_MEASURES}
        return [each for each in REPORT_MEASURES if not all(map(math.isnan, values[each.name]))]

    def to_dict(self) -> dict[str, object]:
        """Everything but scores and images, as plain JSON values; `columns` explains the keys of a row."""
        keys = ("rows", "sizes", "before", "highlight", "baseline", "search", "remarks", "facts")
        explained = {column.name: column.explanation for column in self.columns}
        return {key: to_jsonable(getattr(self, key)) for key in keys} | {"columns": explained}

    def document(self) -> Document:
        return document(self)


def evaluate(
    models: Mapping[str, nn.Module],
    *,
    forget: TensorDataset,
    retain: TensorDataset,
    test: TensorDataset,
    seconds: Mapping[str, float] | None = None,
    baseline: str | None = "retrain",
    highlight: str | None = None,
    adversarial: AdversarialSet | None = None,
    classes: Sequence[str] = (),
    bounds: tuple[float, float] | None = (0.0, 1.0),
    facts: Mapping[str, object] | None = None,
) -> Report:
    """Measure how much each model resembles one retrained without the forget set (paper sections 3.1 and 3.3).

    Args:
        models: row name -> model, in table order; the first row is the model before unlearning.
        forget, retain, test: inputs [N, ...] within `bounds`, and labels [N].
        seconds: row name -> wall time to produce that model.
        baseline: the row of the retrained model; None leaves gap and speed-up out.
        highlight: the row shown as "after"; by default the first that is neither the first row nor the baseline.
        adversarial: what the search found for the forget images [N, C, H, W] in [0, 1], row by row.
        classes: names of all K classes, or none.
        bounds: the least and the largest value that inputs can have; None for none.
        facts: what a reader should know (versions, seed, settings).

    Raises:
        InputError: unknown row names, empty or malformed sets, labels beyond the logits, and models that do not return
            finite logits [N, K].

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from amun_ext import evaluate
        >>> model = torch.nn.Linear(2, 2, bias=False)  # class 0 where the first number is the larger one
        >>> _ = model.load_state_dict({"weight": torch.eye(2)})
        >>> inputs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
        >>> data = TensorDataset(inputs, torch.tensor([0, 1, 0, 0]))
        >>> report = evaluate({"original": model}, forget=data, retain=data, test=data, baseline=None)
        >>> report.rows["original"]["UA"], report.rows["original"]["FT AUC"]
        (75.0, 50.0)
    """
    require(isinstance(models, Mapping), "models", "a mapping of row names to models", type(models).__name__)
    for row, model in models.items():
        require(isinstance(model, nn.Module), f"models[{row!r}]", "an nn.Module", type(model).__name__)
    given, ends = {"forget": forget, "retain": retain, "test": test}, check_bounds(bounds)
    sets = {name: checked_dataset(data, name, ends) for name, data in given.items()}
    seconds, names = dict(seconds or {}), list(models)
    require(bool(names), "models", "at least one model", "none")
    before = names[0]
    between = [name for name in names[1:] if name != baseline]
    highlight = (between or names)[0] if highlight is None else highlight
    for argument, chosen in (("baseline", [baseline]), ("highlight", [highlight]), ("seconds", seconds)):
        for name in chosen:
            none = ", or None where there is no retrained model" if argument == "baseline" else ""
            require(name is None or name in models, argument, f"among the rows {names}{none}", repr(name))
    for name, value in seconds.items():
        require(0 <= value < math.inf, f"seconds[{name!r}]", "finite and not negative", value)
    if adversarial is not None:
        check_examples(adversarial, sets["forget"], len(classes) or None)
    if classes:
        check_labels("forget labels", stored(sets["forget"])[1], len(sets["forget"]), len(classes))
    observed = {
        name: _observe(name, model, sets, seconds.get(name, math.nan), classes) for name, model in models.items()
    }
    baselines = [] if baseline is None else [observed[baseline]]
    measured = {name: measure([each], baselines, REPORT_MEASURES) for name, each in observed.items()}
    rows = {name: {key: found.value for key, found in row.items()} for name, row in measured.items()}
    return Report(
        rows=rows,
        sizes={name: len(data) for name, data in sets.items()},
        scores={name: each.scores for name, each in observed.items()},
        before=before,
        highlight=highlight,
        baseline=baseline,
        search=None if adversarial is None else summarize_search(adversarial),
        remarks=[] if highlight == before else _remarks(observed, before, highlight, baseline or before),
        examples=[] if adversarial is None else pick_examples(adversarial, sets["forget"], classes),
        facts=dict(facts or {}),
    )


def _remarks(observed: Mapping[str, Observation], before: str, highlight: str, reference: str) -> list[str]:
    old, new = observed[before], observed[highlight]
    pairs = ((each.scores["forget"], each.scores["test"]) for each in (old, new))
    return labelled(common_remarks(new, old, observed[reference], reference) | {"remembers": remembers(*pairs)})


def _observe(
    row: str, model: nn.Module, sets: Mapping[str, TensorDataset], seconds: float, classes: Sequence[str]
) -> Observation:
    logits, labels = {}, {name: stored(data)[1].cpu() for name, data in sets.items()}
    for name, data in sets.items():
        logits[name] = predict(model, data, name=f"models[{row!r}]")
        count = logits[name].shape[1]
        require(len(classes) in (0, count), "classes", f"{count} names, or none", len(classes))
        check_labels(f"{name} labels", labels[name], len(data), count)
    scores = {name: log_odds(logits[name], labels[name]).numpy() for name in sets}
    return Observation(logits, labels, {"confidence": scores}, seconds)
