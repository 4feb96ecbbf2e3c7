"""The attacks of the search by name: the rule and the default settings of each."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from amun_ext import ops
from amun_ext.plugins import PluginTable
from amun_ext.validation import require


@dataclass
class Iterate:
    """What a rule written in Python gets: the current iterates of the B samples in the batch."""

    x: Tensor  # [B, ...] the iterates
    inputs: Tensor  # [B, ...] the originals
    grad: Tensor  # [B, ...] gradient at x of the attacked loss, to be ascended
    margin: Tensor  # [B] in logits, negative beyond the boundary
    adversarial: Tensor  # [B] bool, whether x is an example
    best: Tensor  # [B] distance of the closest example so far, x included; infinite if there is none
    step: Tensor  # [B] int32, steps so far
    steps: int  # in all
    sample: Tensor  # [B] int64, rows of the inputs
    eps: Tensor  # [B] a number per sample that the rule may write and gets back at the next step; at first 0


# The next iterates [B, ...], which are clamped to the box. A row of NaN ends the search of its sample.
PythonRule = Callable[[Iterate], Tensor]


@dataclass(frozen=True)
class Attack:
    """A row of ATTACKS. A caller may change the `options`, by the names of `find_min_adversarial`. The `constants` have
    the names of ops.StepConfig, or are used in search/ffgsm.py."""

    loss: str
    last_loss: str  # of the second half of the steps, where their number is fixed
    options: dict[str, float | None]
    constants: dict[str, float]
    rule: PythonRule | None = None  # None for those that the op has
    more_rounds: int = 0  # of the last steps, for samples that still gain; none where the caller gives the steps
    last_bisections: int = 0  # between the closest example and the next smaller radius

    def __post_init__(self) -> None:
        losses = self.loss, self.last_loss
        require({*losses} <= {*ops.LOSSES}, "loss and last_loss", f"among {ops.LOSSES}", losses)
        unknown = sorted({*self.options, *self.constants} - {"eps_init", *ops.StepConfig._fields})
        require(not unknown, "options and constants", f"among eps_init and {ops.StepConfig._fields}", unknown)
        require(self.rule is None or callable(self.rule), "rule", "None or a function of an Iterate", repr(self.rule))


# The constants of ddn and deepfool were chosen on four networks (benchmarks/zoo.py, seed 0) and are measured on others
# (seed 1) in benchmarks/bench_search.py. eps_init None: estimated per sample from its first gradient.
_OWN = {
    # The paper's Algorithm 1 with the settings of the published experiments.
    "pgd": Attack(
        loss="cross_entropy",
        last_loss="cross_entropy",
        options={"eps_init": 0.04, "eps_growth": 2.0, "steps": 50, "step_fraction": 0.1},
        constants={"start": 0.505},  # with 0.5 the doubled radius ends on a flat boundary, where rounding decides
    ),
    # Decoupled direction and norm (Rony et al. 2019); the radius shrinks to where the linearised margin ends. The
    # cross-entropy gives the first direction, from all classes; then the margin, from the strongest other class.
    "ddn": Attack(
        loss="cross_entropy",
        last_loss="margin",
        options={"eps_init": None, "eps_growth": 1.45, "steps": 10, "step_fraction": 1.0},
        constants={"last_eps_growth": 1.02, "last_step_fraction": 0.4, "start": 1.5, "overshoot": 1.01},
        more_rounds=4,
        last_bisections=3,
    ),
    # DeepFool (Moosavi-Dezfooli et al. 2016) with one gradient a step, that of the margin to the strongest other class;
    # from an adversarial point it first goes back towards the original.
    "deepfool": Attack(
        loss="margin",
        last_loss="margin",
        options={"steps": 10},
        constants={"overshoot": 1.05, "pull_back": 0.7},
    ),
    # The weak attack of the paper's appendix E.5, which gives no numbers: these are ours.
    "ffgsm": Attack(
        loss="cross_entropy",
        last_loss="cross_entropy",
        options={"eps_init": 0.04, "eps_growth": 2.0, "steps": 8},
        constants={"start": 0.5},
    ),
}
ATTACKS: PluginTable[Attack] = PluginTable("amun_ext.attacks", Attack, _OWN)
USER_RULE = Attack(loss="margin", last_loss="margin", options={"steps": 20}, constants={})
