"""Table 7 and figure 7: AMUN with the examples of a weak attack, which are farther away."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from amun_ext.experiments.comparison import statistic
from amun_ext.experiments.lab import Lab
from amun_ext.experiments.paper.unlearning import prepare, unlearned, variant_blocks, variant_cells
from amun_ext.experiments.results import Cell, Experiment, Results, scatter, table
from amun_ext.experiments.scales import Scale
from amun_ext.report.parts import Block, Figures

WEAK = "ffgsm"
VARIANTS: Mapping[str, Cell] = {"AMUN, strong attack": {"search": None}, "AMUN, FFGSM": {"search": WEAK}}
POINTS = 500  # of the picture


def distances(lab: Lab, *, fraction: float, model: int, subset: int, run: int) -> dict[str, Any]:
    """L2 distances of the examples of both attacks, for the forget samples for which both have one."""
    forget = lab.sets(model, subset, fraction).forget
    found = [lab.examples(model, forget, search) for search in (None, WEAK)]
    both = torch.stack([each.found for each in found]).all(0)
    strong, weak = (each.distance[both].double() for each in found)
    return {
        "strong": strong[:POINTS].tolist(),
        "weak": weak[:POINTS].tolist(),
        "median, strong": float(strong.median()),
        "median, weak": float(weak.median()),
        "% closer with FFGSM": 100 * float((weak < strong).double().mean()),
        "% without an example of FFGSM": 100 * float((~found[1].found).double().mean()),
    }


def _cells(scale: Scale) -> list[Cell]:
    once = [draw for draw in scale.draws if draw["run"] == 0]
    return [{**draw, "fraction": fraction} for fraction in scale.fractions for draw in once]


def _blocks(results: Results) -> Sequence[Block]:
    names = ("median, strong", "median, weak", "% closer with FFGSM", "% without an example of FFGSM")
    rows = {
        f"{fraction:.0%} forgotten": {name: statistic(results.of(name, fraction=fraction)) for name in names}
        for fraction in results.each("fraction")
    }
    pairs = list(zip(results.of("strong")[0], results.of("weak")[0], strict=True))
    title, about = "Distance by either attack", "Forget samples of the first model; on the dashed line both are equal."
    figure = scatter(title, about, pairs, "L2 distance, strong attack", "L2 distance, FFGSM")
    return [Figures([figure]), table("distances", "forget set", rows)]


TABLE7 = Experiment(
    "Table 7: a weak attack",
    "With the farther examples of a weak attack AMUN does worse, and still well.",
    partial(variant_cells, variants=VARIANTS),
    unlearned,
    partial(variant_blocks, variants=VARIANTS),
    prepare,
)
FIGURE7 = Experiment(
    "Figure 7: distances by a strong and by a weak attack",
    "FFGSM finds the closer example for less than 4 % of the images.",
    _cells,
    distances,
    _blocks,
)
