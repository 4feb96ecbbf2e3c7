"""How a method is run: its options, resolved before any work from defaults, a preset, tuned options and arguments."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import fingerprint
from amun_ext.files import to_jsonable, write_json
from amun_ext.models.reinitialise import Init, describe_init
from amun_ext.reading import read_json
from amun_ext.search import AdversarialSet
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS, Targets, unlearn
from amun_ext.unlearning.methods import INPUTS
from amun_ext.unlearning.presets import preset_options
from amun_ext.validation import InputError, check_integer, require

# Keyword arguments of `unlearn` with their `recipe`, by method and by whether the retain set is used.
TunedOptions = Mapping[tuple[str, bool], Mapping[str, Any]]

FORMAT = "amun_ext.tuned_options.1"
TUNED_FILE = "a file of tuned options, from amun tune"


@dataclass(frozen=True)
class MethodConfig:
    """A name in METHODS, and all arguments of `unlearn` for it."""

    method: str
    with_retain: bool
    source: str  # of the options
    mask: float | None  # the fraction for `saliency_mask`
    mask_gradient_only: bool
    options: Mapping[str, Any]  # the method's own, with its `recipe`

    @property
    def recipe(self) -> Recipe:
        recipe: Recipe = self.options["recipe"]
        return recipe

    @property
    def search(self) -> dict[str, Any] | None:
        """Arguments of `find_min_adversarial`; None where the method needs no examples."""
        own = inspect.signature(METHODS[self.method].function).parameters
        if "adversarial" not in own:
            return None
        settings = {name: value for name, value in self.options.items() if name not in own}
        return {"method": self.options["search"], **settings}

    @property
    def inputs(self) -> dict[str, Any]:
        """What the method needs beside the request, by name in INPUTS."""
        return {name: self.options[name] for name in METHODS[self.method].inputs}

    @property
    def targets(self) -> Targets | None:
        """The prepared out-of-fold logits; None where the method needs none."""
        return self.options.get("targets")

    def with_init(self, init: Init) -> "MethodConfig":
        """With this source of first weights, for a method that takes one and was given none."""
        missing = "init" in self.options and self.options["init"] is None
        return replace(self, options={**self.options, "init": init}) if missing else self

    def unlearn(
        self,
        model: nn.Module,
        forget: TensorDataset,
        retain: TensorDataset,
        *,
        adversarial: AdversarialSet | None = None,
        targets: Tensor | None = None,
        **run: Any,
    ) -> nn.Module:
        """`unlearn` with these options; `run` is passed on.

        `adversarial` takes the place of a search, and `targets` [N, classes] that of the prepared ones.
        """
        options = dict(self.options)
        if self.targets is not None:
            options["targets"] = self.targets.of(forget) if targets is None else targets
        if self.search is not None and adversarial is not None:
            settings = ("search", *(name for name in self.search if name != "method"))
            options = {name: value for name, value in options.items() if name not in settings}
            options["adversarial"] = adversarial
        return unlearn(
            model,
            forget,
            retain if self.with_retain else None,
            method=self.method,
            mask_gradient_only=self.mask_gradient_only,
            **{"mask": self.mask} | run,
            **options,
        )

    def to_dict(self) -> dict[str, object]:
        """What decides the result, in values of JSON."""
        masked = {} if self.mask is None else {"mask": self.mask, "mask_gradient_only": self.mask_gradient_only}
        retain = "used" if self.with_retain else "not used"
        init = {"init": describe_init(self.options["init"])} if "init" in self.options else {}
        inputs = {
            name: given.settings() if isinstance(given, Targets) else fingerprint(given)
            for name, given in self.inputs.items()
        }
        own = {**self.options, **init, **inputs, "recipe": asdict(self.recipe)}
        everything = {"method": self.method, "retain_set": retain, **masked, **own}
        return {name: to_jsonable(value) for name, value in everything.items()}


def resolve_config(
    method: str,
    with_retain: bool = True,
    *,
    preset: str | None = None,
    tuned: TunedOptions | None = None,
    default: Mapping[str, Any] | None = None,
    fraction: float | None = None,
    recipe: Mapping[str, Any] | None = None,
    targets: Targets | None = None,
    held_out: TensorDataset | None = None,
    **options: Any,
) -> MethodConfig:
    """The options of a preset, or tuned ones (amun tune), or else `default` and the method's own.

    fraction: that of a saliency mask. recipe: single fields, which come before those of the recipe there is;
    `options` come before all others. targets, held_out: for the methods that need them, ignored by others. InputError
    for what the method, the preset or the tuned options do not have.
    """
    require(method in METHODS, "method", f"one of {tuple(METHODS)}", repr(method))
    row = METHODS[method]
    expected = f"used: method {method} trains on it"
    require(with_retain or not row.needs_retain, "the retain set", expected, "left out")
    chosen, source = dict(default or {}), "defaults"
    if preset is not None:
        chosen, source = preset_options(preset, method), f"preset {preset}"
    elif tuned is not None:
        has = [name for name, retain in tuned if retain == with_retain]
        setting = "with" if with_retain else "without"
        expected = f"one of {has}, which have tuned options {setting} the retain set"
        require((method, with_retain) in tuned, "method", expected, method)
        chosen, source = dict(tuned[method, with_retain]), "tuned"
    mask = chosen.pop("mask", row.fraction) if fraction is None else fraction
    require(mask is None or 0 < mask <= 1, "mask fraction", "in (0, 1]", mask)
    require(mask is None or method != "retrain", "mask fraction", "left out: retraining changes all weights", mask)
    gradient_only = chosen.pop("mask_gradient_only", False)
    own = inspect.signature(row.function).parameters
    names = [name for name in row.options if name in own and name not in ("adversarial", *row.inputs)]
    defaults = {name: own[name].default for name in names}
    resolved = {**defaults, **chosen, **options}
    given = {"targets": targets, "held_out": held_out}
    for name in row.inputs:
        require(given[name] is not None, name, f"given for method {method} ({INPUTS[name]})", "none")
        resolved[name] = given[name]
    for name, value in resolved.items():
        require(name in row.options, name, f"left out: method {method} has the options {sorted(row.options)}", value)
    unused = sorted((recipe or {}).keys() - {"batch_size"})
    require(row.trains or not unused, ", ".join(unused), f"left out: method {method} trains nothing", "given")
    resolved["recipe"] = replace(resolved["recipe"], **(recipe or {}))
    return MethodConfig(method, with_retain, source, mask, gradient_only, resolved)


def save_tuned_options(path: str | os.PathLike[str], tuned: TunedOptions, metadata: Mapping[str, Any]) -> None:
    """Write the options as JSON, with `metadata` for a reader."""
    rows = [
        {"method": method, "retain": retain, "options": {**options, "recipe": asdict(options["recipe"])}}
        for (method, retain), options in tuned.items()
    ]
    write_json(path, {"format": FORMAT, "tuned_options": rows, "metadata": metadata})


def load_tuned_options(
    path: str | os.PathLike[str],
) -> tuple[dict[tuple[str, bool], dict[str, Any]], dict[str, Any]]:
    """The options and the metadata that `save_tuned_options` wrote. InputError for another file or a bad recipe."""
    try:
        content = read_json(path, expected=TUNED_FILE)
        require(content.get("format") == FORMAT, str(path), TUNED_FILE, "another")
        tuned = {
            (row["method"], row["retain"]): {**row["options"], "recipe": Recipe(**row["options"]["recipe"])}
            for row in content["tuned_options"]
        }
        metadata = dict(content["metadata"])
        check_integer(f"{path}: seed", metadata.get("seed", 0), 0)
        return tuned, metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} must be {TUNED_FILE}, got {error!r}") from error
