"""Figures 3 and 4: log-odds of the three sets by retrained, original and unlearned models; distances of examples."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from amun_ext.deletion.request import RETRAIN
from amun_ext.experiments.comparison import NOOP
from amun_ext.experiments.lab import PLAIN, TRAININGS, Lab
from amun_ext.experiments.paper.unlearning import title
from amun_ext.experiments.results import Cell, Experiment, Results, table
from amun_ext.experiments.scales import Scale
from amun_ext.metrics.measures import SETS
from amun_ext.report.figures import SETS as MARKS
from amun_ext.report.figures import histograms
from amun_ext.report.parts import Block, Figure, Figures, Heading

KEPT = 400  # quantiles of each set of the first run, which stand for it in the picture
FARTHER = "% farther than on the plain model"
OF_RIGHT = "% of those that both have right"  # the others have distance 0
DISTANCES = ("median, plain", "median", FARTHER, OF_RIGHT)


def observed(lab: Lab, *, what: str, fraction: float, model: int, subset: int, run: int) -> dict[str, Any]:
    """Log-odds by a method's model; or with the name of a training the distances of examples on such a model."""
    forgotten = lab.sets(model, subset, fraction)
    if what in TRAININGS:
        plain, robust = (lab.examples(model, forgotten.forget, training=training) for training in (PLAIN, what))
        both = torch.stack([each.found for each in (plain, robust)]).all(0)
        one, other = (each.distance[both].double() for each in (plain, robust))
        farther = (other > one).double()
        values = one.median(), other.median(), 100 * farther.mean(), 100 * farther[(one > 0) & (other > 0)].mean()
        return dict(zip(DISTANCES, map(float, values), strict=True))
    network = lab.original(model)
    if what == RETRAIN:
        network = lab.retrained(model, subset, run, fraction)
    elif what == "amun":
        adversarial = lab.examples(model, forgotten.forget)
        config = lab.config(what, True, fraction)
        network = config.unlearn(network, forgotten.forget, forgotten.retain, adversarial=adversarial, seed=run)
    scores = lab.log_odds(network, forgotten.ids.tolist())
    at = (np.arange(KEPT) + 0.5) / KEPT
    moments = {f"{name} {kind}": float(getattr(of, kind)()) for name, of in scores.items() for kind in ("mean", "std")}
    if {model, subset, run} != {0}:
        return moments
    return {**moments, **{name: np.quantile(scores[name], at).round(3).tolist() for name in SETS}}


def _cells(scale: Scale, rows: Sequence[str]) -> list[Cell]:
    return [
        {"what": what, "fraction": fraction, **draw}
        for fraction in scale.fractions
        for draw in scale.draws
        for what in rows
    ]


def _blocks(results: Results, rows: Sequence[str]) -> list[Block]:
    wheres = {
        f"{title(what)}, {fraction:.0%} forgotten": {"what": what, "fraction": fraction}
        for fraction in results.each("fraction")
        for what in rows
        if what not in TRAININGS
    }
    scores: Mapping[str, Any] = {
        row: {name: np.array(results.of(name, **where)[0]) for name in SETS} for row, where in wheres.items()
    }
    about = "The first run; the thin lines are normals with the means and deviations of the forget and the test set."
    pictures = [Figure(row, draw, about, label=row) for row, draw in histograms(scores, normals=True).items()]
    columns = [f"{name} {kind}" for name in SETS for kind in ("mean", "std")]
    moments = {row: {name: results.over(name, **where) for name in columns} for row, where in wheres.items()}
    blocks: list[Block] = [Figures(pictures, key=list(MARKS.values())), table("log-odds", "log-odds", moments)]
    robust = {what: {name: results.over(name, what=what) for name in DISTANCES} for what in rows if what in TRAININGS}
    if robust:
        blocks += [Heading("Distances of adversarial examples"), table("distances", "training", robust)]
    return blocks


def _experiment(name: str, rows: Sequence[str], claim: str) -> Experiment:
    return Experiment(name, claim, partial(_cells, rows=rows), observed, partial(_blocks, rows=rows))


FIGURE3 = _experiment(
    "Figure 3: log-odds of retrained models, and distances of examples on robust models",
    (RETRAIN, *(name for name in TRAININGS if name != PLAIN)),
    "A retrained model gives forgotten and test images the same log-odds; on models of small Lipschitz constants 97 % "
    "of the adversarial examples are farther away.",
)
FIGURE4 = _experiment(
    "Figure 4: log-odds before and after AMUN",
    (NOOP, "amun"),
    "Before unlearning forgotten images look like retained ones, after AMUN like test images.",
)
