"""The searches by name: what each is, and its default settings."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Iterate:
    """What a rule written in Python sees: the B samples that are being searched, somewhere along their way."""

    x: Tensor  # [B, ...] where they are
    inputs: Tensor  # [B, ...] where they started
    grad: Tensor  # [B, ...] gradient at x of the attacked loss, which is to be climbed
    margin: Tensor  # [B] logits that are left to go, negative beyond the boundary
    adversarial: Tensor  # [B] bool, whether x is an example
    best: Tensor  # [B] distance of the closest example so far, or infinity; x is counted already
    step: Tensor  # [B] int32, steps made so far
    steps: int  # steps to be made
    sample: Tensor  # [B] int64, rows of the inputs
    eps: Tensor  # [B] a number per sample for the rule to keep: what is written here comes back next time; at first 0


# The next iterates [B, ...], which are clamped to the box. A row of NaN ends its sample with what it has found.
PythonRule = Callable[[Iterate], Tensor]


@dataclass(frozen=True)
class Method:
    """A row of METHODS. `options` are what a caller may change, by the names of `find_min_adversarial`; the rest are
    constants of the method, named in ops.Schedule and search/ffgsm.py."""

    loss: str
    last_loss: str  # of the second half of the steps, where their number is fixed
    options: dict[str, float | None]
    constants: dict[str, float]


# The constants of ddn and deepfool were chosen on four networks (benchmarks/zoo.py, seed 0) and are measured on others
# (seed 1) in benchmarks/bench_search.py. eps_init None: estimated per sample from its first gradient.
METHODS: dict[str, Method] = {
    # The paper's Algorithm 1 with the settings of the published experiments.
    "pgd": Method(
        loss="cross_entropy",
        last_loss="cross_entropy",
        options={"eps_init": 0.04, "eps_growth": 2.0, "steps": 50, "step_fraction": 0.1},
        constants={"start": 0.505},  # doubled it ends beyond a flat boundary, not on it, where rounding decides
    ),
    # Decoupled direction and norm (Rony et al. 2019), its radius set by the linearised margin on the way back. All
    # classes have a say in where it heads first; then the strongest competitor alone, for the shortest way there.
    "ddn": Method(
        loss="cross_entropy",
        last_loss="margin",
        options={"eps_init": None, "eps_growth": 1.3, "steps": 14, "step_fraction": 1.0},
        constants={"last_eps_growth": 1.02, "last_step_fraction": 0.2, "start": 1.5, "overshoot": 1.01},
    ),
    # Boundary projection with one gradient a step, that of the strongest competitor's margin (DeepFool,
    # Moosavi-Dezfooli et al. 2016), going back some of the way from every example.
    "deepfool": Method(
        loss="margin",
        last_loss="margin",
        options={"steps": 10},
        constants={"overshoot": 1.05, "pull_back": 0.7},
    ),
    # The weak attack of the paper's appendix E.5, which leaves the numbers open: these are ours (see search/ffgsm.py).
    "ffgsm": Method(
        loss="cross_entropy",
        last_loss="cross_entropy",
        options={"eps_init": 0.04, "eps_growth": 2.0, "steps": 8},
        constants={"start": 0.5},
    ),
}
PYTHON = Method(loss="margin", last_loss="margin", options={"steps": 20}, constants={})  # a rule of the user's own
