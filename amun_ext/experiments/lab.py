"""What experiments share: trained models, references, searches and tuned options, each made once and kept."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import amun_ext
from amun_ext import models, tuning
from amun_ext.auditing.audit import observe, set_rows
from amun_ext.auditing.model_signals import ModelSignals, concat_splits
from amun_ext.auditing.references import KIND, load_references, train_references
from amun_ext.data import Splits, fingerprint, load
from amun_ext.data.images import subset as rows_of
from amun_ext.deletion import Record, forget_ids
from amun_ext.deletion.ids import some_ids
from amun_ext.deletion.request import RETRAIN, RETRAIN_SEED, Sets, sets
from amun_ext.distributed import by_first_rank
from amun_ext.experiments.cache import Cache
from amun_ext.experiments.scales import Scale
from amun_ext.lipschitz import without_batch_norm
from amun_ext.metrics.measures import MEASURES, Observation, Values, measure
from amun_ext.random_state import own_random_state
from amun_ext.search import AdversarialSet, find_min_adversarial
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.unlearning import METHODS
from amun_ext.unlearning.config import MethodConfig, load_tuned_options, resolve_config

PLAIN, CONFIDENCE = "plain", "confidence"


@dataclass(frozen=True)
class Training:
    """How a network is trained: fields of the recipe that differ from the scale's, and whether it has BatchNorm."""

    recipe: Mapping[str, Any]
    batch_norm: bool = True


TRAININGS = {
    PLAIN: Training({}),
    "clipped": Training({"spectral_norm": 1.0}),
    "clipped, no BatchNorm": Training({"spectral_norm": 1.0}, batch_norm=False),
    "trades-linf": Training({"robust": "trades-linf"}),
    "trades-l2": Training({"robust": "trades-l2"}),
}
LARGE = 0.5  # share of the data from which on AMUN leaves D_F out (paper, section 6.1)


@dataclass(frozen=True, eq=False)
class Lab:
    """The shared things of all experiments at one scale, in one cache. Numbers of models and draws count from 0."""

    scale: Scale
    cache: Cache
    data_dir: Path | None = None
    device: str = "cpu"
    workers: int = 1
    progress: bool = False
    _references: dict[str, ModelSignals] = field(init=False, default_factory=dict)  # that are loaded

    @cached_property
    def splits(self) -> Splits:
        splits = load(self.scale.data, self.data_dir)
        if self.scale.images is None:
            return splits

        def some(data: TensorDataset, count: int) -> TensorDataset:
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0), device="cpu")
            return rows_of(data, order[:count])

        train, test = (some(*pair) for pair in zip((splits.train, splits.test), self.scale.images, strict=True))
        return Splits(train, test, splits.classes)  # type: ignore[arg-type]

    @cached_property
    def test(self) -> Tensor:
        """The rows of the test set that no tuning has seen."""
        rows = torch.arange(len(self.splits.test), device="cpu")
        used = some_ids(len(rows), count=len(rows) // 2, seed=0) if self.scale.trials else rows[:0]
        return rows[~torch.isin(rows, used)]

    def recipe(self, training: str = PLAIN) -> Recipe:
        return replace(self.scale.training, **TRAININGS[training].recipe)

    def identity(self, training: str = PLAIN) -> dict[str, object]:
        """What decides a model that is trained on these data."""
        how = {"recipe": asdict(self.recipe(training)), "batch_norm": TRAININGS[training].batch_norm}
        return {**self._data, **how}

    @cached_property
    def _data(self) -> dict[str, object]:
        return {
            "data": [fingerprint(part) for part in (self.splits.train, self.splits.test)],
            "model": [self.scale.model, self.scale.width],
            "device": torch.device(self.device).type,  # not its number, which is another one on each rank
            "amun_ext": amun_ext.__version__,
        }

    def untrained(self, seed: int, training: str = PLAIN) -> nn.Module:
        shape = {"num_classes": len(self.splits.classes), "in_channels": self.splits.train[0][0].shape[0]}
        with own_random_state():
            torch.manual_seed(seed)
            return untrained(self.scale, training, **shape).to(self.device)

    def original(self, model: int, training: str = PLAIN) -> nn.Module:
        """The network before unlearning, of which `model` is the seed."""
        recipe = self.recipe(training)

        def train(network: nn.Module, checkpoint: Path) -> None:
            run = RunOptions(seed=model, checkpoint=checkpoint, progress=self.progress)
            fit(
                network, [Pass([DataPart(self.splits.train)])], recipe, run, description=f"original {model}, {training}"
            )

        return self._model(
            "original", {**self.identity(training), "seed": model}, self.untrained(model, training), train
        )

    def retrained(self, model: int, subset: int, run: int, fraction: float, training: str = PLAIN) -> nn.Module:
        """A network that never saw the forget set."""
        forgotten = self.sets(model, subset, fraction)
        seed = RETRAIN_SEED + _seed(model, subset, run)

        def train(network: nn.Module, checkpoint: Path) -> None:
            config = resolve_config(RETRAIN, default={"recipe": self.recipe(training)})
            how: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "progress": self.progress}
            made = config.unlearn(network, forgotten.forget, forgotten.retain, **how)
            network.load_state_dict(made.state_dict())

        identity = {**self.identity(training), "ids": forgotten.ids.tolist(), "seed": seed}
        return self._model("retrained", identity, self.untrained(seed, training), train)

    def _model(
        self, name: str, identity: object, network: nn.Module, train: Callable[[nn.Module, Path], None]
    ) -> nn.Module:
        def make(path: Path) -> None:
            train(network, path.with_suffix(".training"))
            models.save_checkpoint(path, network, {})

        path = self.cache.file(name, identity, ".safetensors", by_first_rank(make))  # as in one process, to the bit
        models.load_checkpoint(path, network)
        return network

    def sets(self, model: int, subset: int, fraction: float) -> Sets:
        """What is forgotten and what is retained: another draw for every model."""
        ids = forget_ids(len(self.splits.train), fraction=fraction, seed=_seed(model, subset))
        return sets(self.splits, ids, Record(), include_duplicates=True)

    def examples(
        self, model: int, data: TensorDataset, search: str | None = None, training: str = PLAIN
    ) -> AdversarialSet:
        """The closest adversarial examples of `data` by an original network."""
        method = search or self.scale.search
        identity = {**self.identity(training), "seed": model, "of": fingerprint(data), "search": method}

        def make(path: Path) -> None:
            find_min_adversarial(self.original(model, training), data, method=method, out=path)

        return AdversarialSet.load(self.cache.file("examples", identity, ".safetensors", make))

    def references(self, training: str = PLAIN) -> ModelSignals | None:
        """None where the scale has none."""
        if not self.scale.references:
            return None
        identity = {**self.identity(training), "references": self.scale.references}

        def make(folder: Path) -> None:
            how: dict[str, Any] = {"num_workers": self.workers, "progress": self.progress}
            recipe, number = self.recipe(training), self.scale.references
            train_references(self.untrained(0, training), self.splits, recipe, out=folder, models=number, **how)

        if training not in self._references:
            self._references[training] = load_references(self.cache.file(KIND, identity, "", make))
        return self._references[training]

    def config(
        self, method: str, retain: bool, fraction: float, training: str = PLAIN, search: str | None = None
    ) -> MethodConfig:
        """How a method is run: tuned if the scale has trials, else by its own options and the paper's form of AMUN."""
        tuned, row, ours = self.tuned(method, retain, fraction, search), METHODS[method], self.recipe(training)
        known = (method, retain) in tuned
        options: dict[str, Any] = {}
        if "include_forget" in row.options:
            options = {"search": search or self.scale.search}
            options |= {} if known else {"include_forget": fraction < LARGE}
        recipe: dict[str, Any] = {} if known else {"batch_size": ours.batch_size}
        if row.trains and not known:
            recipe |= {name: getattr(ours, name) for name in ("augment", "precision", "channels_last")}
            recipe["epochs"] = self.scale.epochs
        if row.trains:
            recipe["spectral_norm"] = ours.spectral_norm  # also while unlearning
        return resolve_config(method, retain, tuned=tuned if known else None, recipe=recipe, **options)

    def tuned(
        self, method: str, retain: bool, fraction: float, search: str | None = None
    ) -> Mapping[tuple[str, bool], Mapping[str, Any]]:
        """What is known to be best for a method and size, or what `tune` chooses (appendix C).

        It compares with a model retrained without other samples than those to forget.
        """
        if not self.scale.trials:
            return {}
        known = {} if search else self.scale.tuned_options(fraction)
        if (method, retain) in known:
            return known
        how: dict[str, Any] = {"trials": self.scale.trials, "with_retain": retain, "objective": "retrain"}
        how["search"] = search or self.scale.search
        identity = {**self.identity(), "fraction": fraction, "method": method, **how, "epochs": self.scale.epochs}

        def make(path: Path) -> None:
            recipe = replace(self.recipe(), epochs=self.scale.epochs, schedule="constant", warmup_epochs=0)
            folder, metadata = path.with_suffix(""), Record(recipe=self.recipe()).to_metadata()
            more = {
                "recipe": recipe,
                "metadata": metadata,
                "num_workers": self.workers,
                "progress": self.progress,
                **how,
            }
            ids = self.sets(0, 0, fraction).ids
            tuned = tuning.tune(self.original(0), self.splits, ids, [method], out=folder, **more)
            by_first_rank(tuning.write)(tuned, folder)
            by_first_rank((folder / "tuned.json").replace)(path)

        return load_tuned_options(self.cache.file(f"tuned-{method}", identity, ".json", make))[0]

    def measure(self, network: nn.Module, ids: list[int], references: ModelSignals | None) -> Values:
        """All measures of a network that is to have forgotten the `ids`.

        The AUCs are those of RMIA where there are references, and beside them those of the confidence attack.
        """
        seen = self._observe(network, ids, {} if references is None else {KIND: references})
        plain = replace(seen, attacks={CONFIDENCE: seen.attacks[CONFIDENCE]})
        measures = [each for each in MEASURES if not each.has_baseline and each.name != "seconds"]
        values = {name: of.value for name, of in measure([seen], [], measures).items()}
        areas = [each for each in measures if each.name.endswith("AUC")]
        return values | {f"{name}, {CONFIDENCE}": of.value for name, of in measure([plain], [], areas).items()}

    def in_gap(self, network: nn.Module, ids: list[int]) -> Values:
        """The measures that the gap is of, which take no time: UA, RA, TA and the FT AUC of the confidence attack."""
        measures = [each for each in MEASURES if each.in_gap]
        return {name: of.value for name, of in measure([self._observe(network, ids, {})], [], measures).items()}

    def log_odds(self, network: nn.Module, ids: list[int]) -> Mapping[str, NDArray[np.float64]]:
        """Set -> log-odds of the true class [n]."""
        return self._observe(network, ids, {}).scores

    def _observe(self, network: nn.Module, ids: list[int], others: dict[str, ModelSignals]) -> Observation:
        forgotten = torch.tensor(ids, dtype=torch.int64, device="cpu")
        rows = set_rows(len(self.splits.train), len(self.splits.test), forgotten, forgotten)
        rows["test"] = rows["test"][self.test]
        return observe(network, concat_splits(self.splits), rows, others, math.nan)


def untrained(scale: Scale, training: str = PLAIN, **shape: int) -> nn.Module:
    """A network of random weights; shape: in_channels, num_classes."""
    network = models.build(scale.model, width=scale.width, **shape)
    return network if TRAININGS[training].batch_norm else without_batch_norm(network)


def _seed(model: int, subset: int, run: int = 0) -> int:
    return 100 * model + 10 * subset + run
