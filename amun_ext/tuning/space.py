"""The search space: learning rate, schedule, and options of single methods (paper, appendix C)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

Parameters = Mapping[str, Any]  # by the names of SPACE


class Draw(Protocol):
    """A trial of Optuna: it draws the values, and gives the same ones when asked again."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any: ...


@dataclass(frozen=True)
class Between:
    low: float
    high: float
    log: bool = False

    def suggest(self, name: str, draw: Draw) -> float:
        return draw.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class OneOf:
    values: tuple[Any, ...]

    def suggest(self, name: str, draw: Draw) -> Any:
        return draw.suggest_categorical(name, self.values)


# A field of the recipe, or else an argument of `unlearn` -> its values. AMUN's form is not in the paper's search, which
# chooses it by the size of the request; it matters as much as the learning rate.
SPACE: Mapping[str, Between | OneOf] = {
    "lr": Between(1e-6, 1e-1, log=True),
    "schedule": OneOf(("step:1", "step:5", "constant")),
    "mask": Between(0.1, 0.9),
    "include_forget": OneOf((True, False)),
    "weight": Between(0.5, 8.0, log=True),
    "gamma": Between(1e-5, 1e-3, log=True),
    "kl_weight": Between(1e-3, 1.0, log=True),  # SCRUB's authors use 0.001 to 0.5
    "ascent_epochs": OneOf((1, 2, 3)),
    "beta": Between(0.9, 0.9999),
    "selection": Between(0.1, 100.0, log=True),  # SSD's authors search these two
    "dampening": Between(0.1, 5.0, log=True),
    "reset_fraction": Between(0.05, 0.9),
    "forget_weight": Between(0.1, 0.9),
}
RECIPE_FIELDS = {field.name for field in fields(Recipe)}


def draw_parameters(method: str, draw: Draw) -> dict[str, Any]:
    """A value of each dimension that the method has, always in the same order."""
    row = METHODS[method]
    own = {*row.options, *(RECIPE_FIELDS if row.trains else ()), *(() if row.fraction is None else ("mask",))}
    return {name: values.suggest(name, draw) for name, values in SPACE.items() if name in own}


def options(parameters: Parameters, recipe: Recipe) -> dict[str, Any]:
    """Arguments of `unlearn`; fields of the recipe that are not searched are those of `recipe`."""
    in_recipe = RECIPE_FIELDS & parameters.keys()
    others = {name: value for name, value in parameters.items() if name not in in_recipe}
    return {**others, "recipe": replace(recipe, **{name: parameters[name] for name in in_recipe})}
