"""The methods by name: one file and one row each, all through one loop (`amun_ext.training.fit`)."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from amun_ext.plugins import PluginTable
from amun_ext.search import find_min_adversarial
from amun_ext.training import Recipe
from amun_ext.unlearning.amun import amun
from amun_ext.unlearning.bad_teacher import bad_teacher
from amun_ext.unlearning.boundary_shrink import boundary_shrink
from amun_ext.unlearning.convolution_transpose import convolution_transpose
from amun_ext.unlearning.distill import distill
from amun_ext.unlearning.finetune import finetune
from amun_ext.unlearning.gradient_ascent import gradient_ascent
from amun_ext.unlearning.l1_sparse import l1_sparse
from amun_ext.unlearning.masked_small_gradients import masked_small_gradients
from amun_ext.unlearning.neggrad_plus import neggrad_plus
from amun_ext.unlearning.random_label import random_label
from amun_ext.unlearning.regun import regun
from amun_ext.unlearning.retrain import retrain
from amun_ext.unlearning.scrub import scrub
from amun_ext.unlearning.ssd import ssd
from amun_ext.validation import require

INPUTS = {  # what a method may need beside the request, and where it comes from
    "targets": "amun prepare writes them",  # out-of-fold logits, see `amun_ext.unlearning.prepare`
    "held_out": "samples that are not trained on, nor tested on",
}


@dataclass(frozen=True)
class UnlearningMethod:
    """A row of METHODS: function(model, forget, retain, run, **options), which changes the model that it is given."""

    function: Callable[..., None]
    title: str
    description: str
    needs_retain: bool = False
    trains: bool = True  # by its recipe, of which other methods use the batch size alone
    fraction: float | None = None  # of a saliency mask, for a method that is another one under a mask

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.function).parameters
        positional = ["model", "forget", "retain", "run"]
        fits = [*parameters][:4] == positional and isinstance(
            getattr(parameters.get("recipe"), "default", None), Recipe
        )
        expected = f"a function of {', '.join(positional)} and recipe, which has a default"
        require(fits, "function", expected, [*parameters])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of INPUTS that it needs."""
        return tuple(name for name in INPUTS if name in self.options)

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """What a caller may change, by name; those of the search where the method makes one."""
        named = dict(inspect.signature(self.function).parameters)
        searches = [name for name, each in named.items() if each.kind is each.VAR_KEYWORD]
        if searches:
            named |= inspect.signature(find_min_adversarial).parameters
        taken = ("model", "forget", "retain", "run", "inputs", "labels", "method", "progress", *searches)
        return {name: each for name, each in named.items() if name not in taken}


_OWN = {
    "retrain": UnlearningMethod(
        retrain,
        "Retrain",
        "training from scratch on D_R alone",
        needs_retain=True,
    ),
    "ft": UnlearningMethod(
        finetune, "FT", "fine-tuning on D_R alone; the FT of FT AUC is forget against test", needs_retain=True
    ),
    "rl": UnlearningMethod(random_label, "RL", "fine-tuning on D_F with random labels, and D_R"),
    "ga": UnlearningMethod(gradient_ascent, "GA", "gradient ascent: the loss of D_F climbs"),
    "bs": UnlearningMethod(boundary_shrink, "BS", "boundary shrink: fine-tuning on D_F with the nearest wrong labels"),
    "bad-teacher": UnlearningMethod(
        bad_teacher, "Bad teacher", "distillation: D_F from an untrained model, D_R from the original"
    ),
    "scrub": UnlearningMethod(
        scrub,
        "SCRUB",
        "distillation of the original on D_R, after a few epochs that move away from it on D_F",
        needs_retain=True,
    ),
    "neggrad+": UnlearningMethod(
        neggrad_plus, "NegGrad+", "fine-tuning on D_R and gradient ascent on D_F in the same steps", needs_retain=True
    ),
    "ssd": UnlearningMethod(
        ssd,
        "SSD",
        "no training: weights that matter more for D_F than for all data shrink",
        needs_retain=True,
        trains=False,
    ),
    "msg": UnlearningMethod(
        masked_small_gradients,
        "MSG",
        "new weights where convolutions tell D_R and D_F least apart, then fine-tuning on D_R",
        needs_retain=True,
    ),
    "ct": UnlearningMethod(
        convolution_transpose,
        "CT",
        "convolution kernels with height and width swapped, then fine-tuning on D_R",
        needs_retain=True,
    ),
    "regun": UnlearningMethod(
        regun, "ReGUn", "distillation: D_F from the original's mean output on held-out samples of the same classes"
    ),
    "l1-sparse": UnlearningMethod(
        l1_sparse, "l1-Sparse", "fine-tuning on D_R towards sparse weights", needs_retain=True
    ),
    "salun": UnlearningMethod(
        random_label, "SalUn", "RL on the half of the weights that matter most for D_F", fraction=0.5
    ),
    "amun": UnlearningMethod(amun, "AMUN", "fine-tuning on D_A, the closest adversarial examples, beside D_F and D_R"),
    "distill": UnlearningMethod(
        distill, "Distill", "out-of-fold distillation: fine-tuning on D_F with the logits of models that never saw it"
    ),
    "amun+salun": UnlearningMethod(
        amun, "AMUN+SalUn", "AMUN on the half of the weights that matter most for D_F", fraction=0.5
    ),
}
METHODS: PluginTable[UnlearningMethod] = PluginTable("amun_ext.methods", UnlearningMethod, _OWN)
