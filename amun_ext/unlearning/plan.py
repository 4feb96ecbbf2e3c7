"""How a method is to be run: its options, settled before any work, and where they come from."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from amun_ext.checks import require
from amun_ext.files import plain
from amun_ext.models.fresh import described
from amun_ext.search import AdversarialSet
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, PRESETS, unlearn
from amun_ext.unlearning.choices import Choices


@dataclass(frozen=True)
class Plan:
    """A name in METHODS, and all that `unlearn` is to be told."""

    method: str
    with_retain: bool
    source: str  # of the options
    mask: float | None  # the fraction for `saliency_mask`
    gradient_only: bool
    options: Mapping[str, Any]  # the method's own, with its `recipe`

    @property
    def recipe(self) -> Recipe:
        recipe: Recipe = self.options["recipe"]
        return recipe

    @property
    def search(self) -> dict[str, Any] | None:
        """What `find_min_adversarial` is to be told; None where the method needs no examples."""
        own = inspect.signature(METHODS[self.method].function).parameters
        if "adversarial" not in own:
            return None
        settings = {name: value for name, value in self.options.items() if name not in own}
        return {"method": self.options["search"], **settings}

    def unlearn(
        self,
        model: nn.Module,
        forget: TensorDataset,
        retain: TensorDataset,
        *,
        adversarial: AdversarialSet | None = None,
        **run: Any,
    ) -> nn.Module:
        """`unlearn` so. `adversarial` are examples that were found already; `run` is passed on."""
        options = dict(self.options)
        if self.search is not None and adversarial is not None:
            settings = ("search", *(name for name in self.search if name != "method"))
            options = {name: value for name, value in options.items() if name not in settings}
            options["adversarial"] = adversarial
        return unlearn(
            model,
            forget,
            retain if self.with_retain else None,
            method=self.method,
            gradient_only=self.gradient_only,
            **{"mask": self.mask} | run,
            **options,
        )

    def to_dict(self) -> dict[str, object]:
        """What decides the result, for people and for files."""
        masked = {} if self.mask is None else {"mask": self.mask, "gradient only": self.gradient_only}
        retain = "used" if self.with_retain else "not used"
        init = {"init": described(self.options["init"])} if "init" in self.options else {}
        own = {**self.options, **init, "recipe": asdict(self.recipe)}
        return {"method": self.method, "retain set": retain, **masked, **own}

    def plain(self) -> dict[str, object]:
        """`to_dict` in the values of JSON, as checkpoints keep it."""
        return {name: plain(value) for name, value in self.to_dict().items()}


def plan(
    method: str,
    with_retain: bool = True,
    *,
    preset: str | None = None,
    choices: Choices | None = None,
    default: Mapping[str, Any] | None = None,
    fraction: float | None = None,
    recipe: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """The options of a preset, or of a file of choices (amun tune), or else `default` and the method's own.

    fraction: that of a saliency mask. recipe: single fields, which come before those of the recipe there is;
    `options` come before all others. InputError for what the method, the preset or the choices do not have.
    """
    require(method in METHODS, "method", f"one of {tuple(METHODS)}", repr(method))
    row = METHODS[method]
    must_be = f"used: method {method} trains on it"
    require(with_retain or not row.needs_retain, "the retain set", must_be, "left out")
    told, source = dict(default or {}), "defaults"
    if preset is not None:
        require(preset in PRESETS, "preset", f"one of {tuple(PRESETS)}", repr(preset))
        has = [name for name, methods in PRESETS.items() if method in methods]
        require(preset in has, "preset", f"one that has method {method}, which are {has}", repr(preset))
        told, source = dict(PRESETS[preset][method]), f"preset {preset}"
    elif choices is not None:
        has = [name for name, retain in choices if retain == with_retain]
        setting = "with" if with_retain else "without"
        must_be = f"one of {has}, which the file of choices has {setting} the retain set"
        require((method, with_retain) in choices, "method", must_be, method)
        told, source = dict(choices[method, with_retain]), "tuned"
    mask = told.pop("mask", row.fraction) if fraction is None else fraction
    require(mask is None or 0 < mask <= 1, "mask fraction", "in (0, 1]", mask)
    require(mask is None or method != "retrain", "mask fraction", "left out: retraining changes all weights", mask)
    gradient_only = told.pop("gradient_only", False)
    own = inspect.signature(row.function).parameters
    defaults = {name: own[name].default for name in row.options if name in own and name != "adversarial"}
    settled = {**defaults, **told, **options}
    for name, value in settled.items():
        require(name in row.options, name, f"left out: method {method} has the options {sorted(row.options)}", value)
    settled["recipe"] = replace(settled["recipe"], **(recipe or {}))
    return Plan(method, with_retain, source, mask, gradient_only, settled)
