"""Adversarial machine unlearning (AMUN) for PyTorch: search, forget, measure."""

from importlib import import_module

__version__ = "0.2.0"

TYPE_CHECKING = False  # as typing's, which `python -m` would import from the current folder
if TYPE_CHECKING:
    from amun_ext import ops as ops
    from amun_ext.auditing.audit import audit as audit
    from amun_ext.evaluation.report import evaluate as evaluate
    from amun_ext.metrics.rmia import rmia as rmia
    from amun_ext.ops import sm_taylor_softmax as sm_taylor_softmax
    from amun_ext.optim import MaskedSGD as MaskedSGD
    from amun_ext.saliency import saliency_mask as saliency_mask
    from amun_ext.search import AdversarialSet as AdversarialSet
    from amun_ext.search import find_min_adversarial as find_min_adversarial
    from amun_ext.unlearning.unlearn import unlearn as unlearn
    from amun_ext.validation import InputError as InputError

# name -> its module, which is imported when the name is first used: `amun --help` does not wait for torch.
MODULES = {
    "AdversarialSet": "search",
    "InputError": "validation",
    "MaskedSGD": "optim",
    "audit": "auditing",
    "evaluate": "evaluation",
    "find_min_adversarial": "search",
    "rmia": "metrics",
    "saliency_mask": "saliency",
    "sm_taylor_softmax": "ops",
    "unlearn": "unlearning",
}
__all__ = ["ops", *MODULES]


def __getattr__(name: str) -> object:
    """A name of MODULES, or a module of the package."""
    path = f"{__name__}.{MODULES.get(name, name)}"
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(module, name) if name in MODULES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
