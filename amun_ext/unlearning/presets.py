"""What others have published, by the name of where it stands: preset -> method -> options of `unlearn`.

The papers leave most learning rates open and tune them for every cell. Where a number below is not its authors', it
says whose it is; what a preset does not name is the method's default. Tune before you compare (`amun tune`).
"""

from typing import Any

from amun_ext.training import Recipe
from amun_ext.validation import require


def _saliency(lr: float, epochs: int = 10) -> Recipe:
    """Unlearn-Saliency's loop: constant for the first 91 epochs, batches of 256."""
    return Recipe(epochs=epochs, lr=lr, batch_size=256, augment=True)


# AMUN's loop: batches of 128, ten epochs, augmented. 0.01 and a tenth every epoch stand in its README; it tunes others.
_AMUN = Recipe(epochs=10, lr=0.01, schedule="step:1", augment=True)

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The text of the AMUN paper (arXiv 2503.00917), section 6.1 and appendix C, for a tenth of CIFAR-10.
    "amun-paper": {
        "amun": {"include_forget": True, "search": "pgd", "recipe": _AMUN},
        "amun+salun": {"include_forget": True, "search": "pgd", "recipe": _AMUN},
        "rl": {"recipe": _AMUN},
        "salun": {"recipe": _AMUN},
        "ft": {"recipe": _AMUN},
        "l1-sparse": {"gamma": 5e-4, "recipe": _AMUN},
    },
    # The same for half of it: D_F is left out where it is very large.
    "amun-paper-large": {
        "amun": {"include_forget": False, "search": "pgd", "recipe": _AMUN},
        "amun+salun": {"include_forget": False, "search": "pgd", "recipe": _AMUN},
    },
    # The code of its authors (commit 9e341a9), where it differs from the text: gradients alone are masked, the l1
    # schedule compounds, boundary shrink has a new teacher every epoch and may teach the true label. It goes through
    # D_R in a fixed order there, and here in a random one. GA is not in it: this learning rate would destroy the model.
    "amun-code": {
        "amun": {"include_forget": True, "search": "pgd", "recipe": _AMUN},
        "amun+salun": {"include_forget": True, "search": "pgd", "mask_gradient_only": True, "recipe": _AMUN},
        "rl": {"recipe": _AMUN},
        "salun": {"mask_gradient_only": True, "recipe": _AMUN},
        "bs": {"teacher": "per_epoch", "require_wrong": False, "recipe": _AMUN},
        "ft": {"recipe": _AMUN},
        "l1-sparse": {"gamma": 5e-4, "gamma_schedule": "amun", "recipe": _AMUN},
    },
    # OPTML-Group/Unlearn-Saliency (commit a6e89fd) for a random tenth of CIFAR-10: random labels may be the true one,
    # D_F comes before D_R. SalUn's 0.013 is its README's; the other learning rates were selected by third parties. Its
    # ga and bs know no D_R: give them no retain set.
    "unlearn-saliency": {
        "rl": {"true_label": True, "order": "sequential", "recipe": _saliency(0.001)},
        "salun": {"true_label": True, "order": "sequential", "recipe": _saliency(0.013)},
        "ga": {"recipe": _saliency(1e-5, epochs=5)},
        "bs": {"require_wrong": False, "recipe": _saliency(1e-6)},
        "ft": {"recipe": _saliency(0.01)},
        "l1-sparse": {"gamma": 1e-4, "gamma_schedule": "unlearn-sparse", "recipe": _saliency(0.01)},
    },
    # The same before its pull request 33, as its published tables were made: weight decay moves what is masked.
    "unlearn-saliency-2023": {
        "salun": {"true_label": True, "order": "sequential", "mask_gradient_only": True, "recipe": _saliency(0.013)},
    },
}


def preset_options(preset: str, method: str) -> dict[str, Any]:
    """The published options of a method. InputError for a name that is not in PRESETS, or does not have the method."""
    require(preset in tuple(PRESETS), "preset", f"one of {tuple(PRESETS)}", repr(preset))
    has = [name for name, methods in PRESETS.items() if method in methods]
    require(preset in has, "preset", f"one that has method {method}, which are {has}", repr(preset))
    return dict(PRESETS[preset][method])
