"""Table 6: AMUN with adversarial examples of another model of the same kind."""

from collections.abc import Mapping
from functools import partial

from amun_ext.experiments.paper.unlearning import prepare, unlearned, variant_blocks, variant_cells
from amun_ext.experiments.results import Cell, Experiment

VARIANTS: Mapping[str, Cell] = {"AMUN, own examples": {"examples": None}, "AMUN, others'": {"examples": "others"}}

TABLE6 = Experiment(
    "Table 6: adversarial examples of other models",
    "With the adversarial examples of another model AMUN does worse than with its own, but still unlearns.",
    partial(variant_cells, variants=VARIANTS),
    unlearned,
    partial(variant_blocks, variants=VARIANTS),
    prepare,
)
