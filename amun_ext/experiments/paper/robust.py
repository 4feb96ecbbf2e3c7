"""Tables 3 and 4, networks of small Lipschitz constants, and 5, networks trained by TRADES."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from amun_ext.experiments.paper.unlearning import prepare, unlearned, variant_blocks, variant_cells
from amun_ext.experiments.results import Cell, Experiment
from amun_ext.experiments.scales import Scale

CLIPPED: Mapping[str, Cell] = {name: {"training": name} for name in ("clipped", "clipped, no BatchNorm")}
TRADES: Mapping[str, Cell] = {name: {"training": name} for name in ("trades-linf", "trades-l2")}


def _affordable(scale: Scale) -> Scale:
    references = scale.references if scale.robust_references is None else scale.robust_references
    return replace(scale, fractions=scale.fractions[:1], references=references)


def _clipped(number: int, retain: Sequence[bool], about: str) -> Experiment:
    return Experiment(
        f"Table {number}: layers of operator norm 1, {about}",
        f"On models of small Lipschitz constants AMUN unlearns {about}: RMIA does no better than guessing.",
        partial(variant_cells, variants=CLIPPED, retain=retain),
        unlearned,
        partial(variant_blocks, variants=CLIPPED),
        prepare,
    )


TABLE3 = _clipped(3, (False,), "without the retain set")
TABLE4 = _clipped(4, (True,), "with the retain set")
TABLE5 = Experiment(
    "Table 5: networks trained by TRADES",
    "AMUN also unlearns on adversarially trained networks, where examples are farther away.",
    partial(variant_cells, variants=TRADES),
    unlearned,
    partial(variant_blocks, variants=TRADES),
    prepare,
    _affordable,
)
