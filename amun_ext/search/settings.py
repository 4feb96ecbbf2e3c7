"""The settings of a search: the checked arguments of find_min_adversarial, without tensors."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from amun_ext import ops
from amun_ext.search.attacks import ATTACKS, USER_RULE, Attack, PythonRule
from amun_ext.validation import check_integer, is_number, require

MAX_RADIUS = 1e18  # its square is finite in float32; also the largest factor between two radii
PRECISIONS = {None: None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    method: str  # of a rule in Python its module and name, because its str() differs between runs
    step: ops.StepConfig
    rule: PythonRule | None  # if step.rule is "external"
    loss: str
    last_loss: str  # of the second half of a search of fixed length
    min_margin: float
    eps_init: float  # 0: estimated
    bounds: tuple[float, float]
    precision: torch.dtype | None  # of most of the iterations; None: the caller's
    refine: int
    quantize: int | None
    more_rounds: int
    last_bisections: int

    @property
    def first_step(self) -> float:
        """Its length in pgd; 0 if it is estimated."""
        return self.eps_init * self.step.step_fraction

    def as_metadata(self) -> dict[str, str]:
        """What identifies a search; without the batch size, which may depend on the machine."""
        own = {field.name: getattr(self, field.name) for field in fields(self)} | self.step._asdict()
        return {name: str(value) for name, value in own.items() if name != "step"}


def resolve_settings(
    method: str | PythonRule,
    chosen: dict[str, Any],
    *,
    loss: str | None,
    eps_max: float | None,
    diagonal: float,
    bounds: tuple[float, float],
    min_margin: float,
    refine: int,
    quantize: int | None,
    precision: str | None,
) -> Settings:
    """The settings; `chosen` has the options of the method, None for its defaults. InputError as the docstring says."""
    known = method in ATTACKS if isinstance(method, str) else callable(method)
    require(known, "method", f"one of {tuple(ATTACKS)} or a function", repr(method))
    if isinstance(method, str):
        row, name = ATTACKS[method], method
    else:
        row, name = replace(USER_RULE, rule=method), getattr(method, "__qualname__", type(method).__qualname__)
        name = f"{method.__module__}.{name}"
    loss, last_loss = (row.loss, row.last_loss) if loss is None else (loss, loss)
    require(loss in ops.LOSSES, "loss", f"one of {ops.LOSSES}", repr(loss))
    options = _options(name, row, chosen)
    radius = options.get("eps_init")
    require(radius is None or 1e-20 <= radius <= MAX_RADIUS, "eps_init", f"from 1e-20 to {MAX_RADIUS:g}", radius)
    if bounds != (0, 1) and chosen["eps_init"] is None:
        radius = None  # the default of 0.04 is a length in the box (0, 1)
    least = radius or 1e-20
    eps_max = diagonal if eps_max is None else eps_max
    _number("eps_max", eps_max)
    require(least <= eps_max < math.inf, "eps_max", f"finite and at least eps_init = {least}", eps_max)
    eps_max = min(eps_max, max(diagonal, least))  # no point of the box is farther
    refine = check_integer("refine", refine, 0)
    _number("min_margin", min_margin)
    require(0 <= min_margin < math.inf, "min_margin", "finite and not negative", min_margin)
    if quantize is not None:
        quantize = check_integer("quantize", quantize, 1)
        require(all(map(math.isfinite, bounds)), "quantize", f"None without a box, bounds = {bounds}", quantize)
    require(precision in PRECISIONS, "precision", f"one of {tuple(PRECISIONS)}", repr(precision))
    own = row.constants | {option: value for option, value in options.items() if option != "eps_init"}
    return Settings(
        method=name,
        step=ops.StepConfig(rule=name if name in ops.RULES else "external", eps_max=eps_max, **own),
        rule=row.rule,
        loss=loss,
        last_loss=last_loss,
        min_margin=float(min_margin),
        eps_init=radius or 0.0,
        bounds=bounds,
        precision=PRECISIONS[precision],
        refine=refine,
        quantize=quantize,
        more_rounds=row.more_rounds if chosen["steps"] is None else 0,
        last_bisections=row.last_bisections,
    )


def _options(method: str, row: Attack, given: dict[str, Any]) -> dict[str, Any]:
    """The method's default options, replaced by those that the caller has given."""
    named = {name: value for name, value in given.items() if value is not None}
    for name, value in named.items():
        require(name in row.options, name, f"left out: method {method} has no such setting", value)
        if name == "steps":
            named["steps"] = check_integer("steps", value, 1)
        elif name == "eps_init" and isinstance(value, str):
            require(value == "estimate", name, 'a radius or "estimate"', repr(value))
        else:
            _number(name, value)
        if name == "eps_growth":
            require(1 + 1e-6 <= value < math.inf, name, "at least 1.000001, finite", value)
            require(method != "ddn" or value < 1.5, name, "below 1.5 with method ddn", value)
        elif name == "step_fraction":
            require(1e-6 <= value <= 2, name, "in [1e-6, 2], a part of the radius", value)
    options = row.options | named
    if "eps_growth" in options:
        options["eps_growth"] = min(options["eps_growth"], MAX_RADIUS)
    return options | ({"eps_init": None} if options.get("eps_init") == "estimate" else {})


def _number(name: str, value: object) -> None:
    require(is_number(value), name, "a number", repr(value))
