"""Cross-fitting: what models say of the training samples that they were not trained on, prepared before any request.

The training set is divided into folds. A model is trained on all folds but one, and its logits of that one are kept.
A request takes the rows of its samples (see `distill`), and no model of the cross-fit is kept.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import Splits, training_data
from amun_ext.data.images import HASH_BYTES, hashes_of, subset
from amun_ext.digest import architecture
from amun_ext.distributed import by_first_rank, claimed, entered_by_first_rank
from amun_ext.files import keep_only, workplace, write_tensors
from amun_ext.models import predict
from amun_ext.models.reinitialise import Init, check_init, describe_init
from amun_ext.parallel import unfinished, workers
from amun_ext.progress import progress_bar
from amun_ext.reading import check_file, parse_json
from amun_ext.training import Recipe
from amun_ext.unlearning.retrain import train_from_scratch
from amun_ext.validation import InputError, check_integer, differences, is_integer, require

FORMAT = "amun_ext.targets.1"
SEED = 4000  # added to the seed, so that no model begins with the weights of one that an audit judges with
SETTINGS = ("folds", "seed", "recipe", "init")
EXPECTED = "a file that amun prepare has written"


@dataclass(frozen=True, eq=False)
class Targets:
    """Out-of-fold logits by sample. A sample is known by a hash of its image, so its row number does not matter."""

    logits: Tensor  # [N, classes] float32
    hashes: Tensor  # [N, 16] uint8
    metadata: Mapping[str, object]  # data, architecture, recipe, init, folds and seed of the models that gave them

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def folds(self) -> int:
        folds = self.metadata["folds"]
        assert isinstance(folds, int)
        return folds

    @property
    def teachers(self) -> tuple[str, ...]:
        """Digests of the reference models that gave them; of a cross-fit, whose models are not kept, none."""
        teachers = self.metadata.get("teachers", ())
        assert isinstance(teachers, list | tuple)
        return tuple(teachers)

    @property
    def repeats(self) -> int:
        """Number of cross-fits that they are the mean of: references come in pairs, each a cross-fit of two folds."""
        return max(1, len(self.teachers) // 2)

    def of(self, samples: TensorDataset) -> Tensor:
        """The logits [n, classes] of these samples. InputError for one that has none."""
        rows = {known: row for row, known in enumerate(map(bytes, self.hashes.numpy()))}
        found = [rows.get(wanted, -1) for wanted in hashes_of(samples).tolist()]
        missing = [row for row, place in enumerate(found) if place < 0]
        actual = f"a file without {len(missing)} of {len(found)} samples"
        require(not missing, "targets", "logits of all forget samples (amun prepare makes them)", actual)
        return self.logits[found]

    def without(self, samples: TensorDataset) -> "Targets":
        """The same, but for the rows of these samples."""
        removed = {*hashes_of(samples).tolist()}
        kept = [row for row, known in enumerate(map(bytes, self.hashes.numpy())) if known not in removed]
        return replace(self, logits=self.logits[kept], hashes=self.hashes[kept])

    def settings(self) -> dict[str, Any]:
        """What decides them beside the data and the architecture."""
        references = {"references": len(self.teachers)} if self.teachers else {}
        return {name: self.metadata[name] for name in SETTINGS} | references

    def save(self, path: str | os.PathLike[str], scratch: Path | None = None) -> None:
        """OSError when it cannot be written."""
        tensors = {"logits": self.logits, "hashes": self.hashes}
        write_tensors(path, tensors, {"format": FORMAT, "metadata": json.dumps(self.metadata)}, scratch)


def load_targets(path: str | os.PathLike[str]) -> Targets:
    """What `prepare` has written. InputError for another file."""
    check_file("targets", path, EXPECTED)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            require(metadata.get("format") == FORMAT, "targets", EXPECTED, path)
            targets = Targets(
                file.get_tensor("logits"), file.get_tensor("hashes"), parse_json(str(path), metadata["metadata"])
            )
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"targets must be {EXPECTED}, got {path}: {error}") from error
    logits, hashes = targets.logits, targets.hashes
    fits = logits.dim() == 2 and logits.dtype == torch.float32 and hashes.dtype == torch.uint8
    fits = fits and hashes.shape == (len(logits), HASH_BYTES) and bool(logits.isfinite().all())
    known = targets.metadata
    fits = fits and isinstance(known, dict) and known.keys() >= {"data", "architecture", *SETTINGS}
    fits = fits and is_integer(known["folds"]) and isinstance(known["recipe"], dict)
    teachers = known.get("teachers", []) if fits else []
    fits = fits and isinstance(teachers, list) and all(isinstance(each, str) for each in teachers)
    require(fits, "targets", EXPECTED, f"{path}, with other contents")
    return targets


def remove_targets(path: str | os.PathLike[str], samples: TensorDataset) -> None:
    """Take the rows of these samples out of the file, for good."""
    path = Path(path)
    with workplace(path.parent, f"remove-{path.name}") as place:
        load_targets(path).without(samples).save(path, place)


def prepare(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    folds: int = 5,
    init: Init = None,
    previously_forgotten: Sequence[int] = (),
    seed: int = 0,
    num_workers: int = 1,
    progress: bool = False,
    overwrite: bool = False,
) -> Targets:
    """Cross-fit `folds` models on the training set, each without one fold, and keep their out-of-fold logits.

    The cost is that of training the original folds - 1 times; with two folds that of one training. The same call
    resumes after a kill, with the same result, and does nothing when the file exists. Equal images are in one fold. The
    models are not kept.

    Args:
        model: gives the architecture; its weights are not used.
        splits: the training set; test samples are not used.
        recipe: that of the original.
        out: the file to write (.safetensors).
        init: where the first weights come from, see `amun_ext.unlearning.retrain.retrain`.
        previously_forgotten: ids that get no logits, and that no model is trained on.
        seed: of the folds, the first weights and the shuffling.
        num_workers: models to train in parallel, one process each.
        overwrite: replace the targets of another cross-fit.

    Raises:
        InputError: an argument is not what it must be; `out` has targets of another cross-fit.

    Examples:
        >>> import tempfile
        >>> from torch.utils.data import TensorDataset
        >>> from amun_ext import data, models
        >>> from amun_ext.training import Recipe
        >>> from amun_ext.unlearning import prepare
        >>> digits = data.load("digits")
        >>> few = data.Splits(TensorDataset(*digits.train[:40]), digits.test, digits.classes)
        >>> model = models.build("small-cnn", num_classes=10, in_channels=1, width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     targets = prepare(model, few, Recipe(epochs=1, lr=0.1), out=f"{folder}/targets.safetensors", folds=2)
        >>> targets.of(TensorDataset(*few.train[:3])).shape
        torch.Size([3, 10])
    """
    out, folds = Path(out), check_integer("folds", folds, 2)
    seed, num_workers = check_integer("seed", seed, 0), check_integer("num_workers", num_workers, 1)
    require(isinstance(recipe, Recipe), "recipe", "a Recipe", type(recipe).__name__)
    check_init(model, init)
    removed = {*previously_forgotten, *splits.absent}
    data = subset(splits.train, other_rows(len(splits.train), removed))
    numbers = fold_numbers(data, folds, seed)
    metadata = {
        "data": training_data(splits),
        "architecture": architecture(model),
        "recipe": asdict(recipe),
        "init": describe_init(init),
        "folds": folds,
        "seed": seed,
        "previously_forgotten": sorted(removed),
    }
    with entered_by_first_rank(workplace(out.parent, f"prepare-{out.name}")) as place:
        there = by_first_rank(targets_there)(out, metadata, overwrite)
        if there is not None:
            return there
        by_first_rank(keep_only)(place, json.dumps(metadata), overwrite)
        paths = [place / f"fold-{number}.safetensors" for number in range(folds)]
        todo = unfinished(paths)
        jobs = ((number, (number, seed + SEED + number)) for number in claimed(todo))
        work = partial(_fold_logits, data, numbers, recipe)
        with (
            workers(work, (model, init), min(num_workers, folds)) as dispatch,
            progress_bar(progress, total=folds, desc="prepare", unit="model") as bar,
        ):
            for number, logits in dispatch(jobs):
                write_tensors(paths[number], {"logits": logits}, {})
                bar.update()
        logits = _joined(numbers, [load_file(path)["logits"] for path in paths])
        made = targets_for(data, logits, metadata)
        by_first_rank(made.save)(out, place)
    return made


def targets_there(out: Path, metadata: Mapping[str, object], overwrite: bool) -> Targets | None:
    """Those in the file `out`, unless they are to be replaced. InputError where they have other `metadata`."""
    if overwrite or not out.exists():
        return None
    there = load_targets(out)
    differ = differences(there.metadata, metadata)
    require(not differ, "out", "a new file or one of these targets", f"{out}, of others with {differ}")
    return there


def targets_for(data: TensorDataset, logits: Tensor, metadata: Mapping[str, object]) -> Targets:
    """The logits [N, classes] of these samples as targets."""
    hashes = torch.frombuffer(bytearray(hashes_of(data)), dtype=torch.uint8).view(-1, HASH_BYTES)
    return Targets(logits, hashes, metadata)


def other_rows(count: int, removed: Collection[int]) -> Tensor:
    """The rows below `count` that are not removed."""
    rows = [row for row in range(count) if row not in removed]
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def cost(samples: int, folds: int, recipe: Recipe) -> str:
    """A sentence on what a cross-fit costs."""
    share = samples - samples // folds
    return (
        f"{folds} models, each trained on about {share:,} of {samples:,} samples for {recipe.epochs} epochs; together "
        f"as much as training the original {folds - 1} times"
    )


def cross_fit(
    model: nn.Module,
    data: TensorDataset,
    recipe: Recipe,
    *,
    folds: int,
    seed: int,
    repeats: int = 1,
    init: Init = None,
) -> Tensor:
    """Out-of-fold logits [N, classes] of `data`, the mean of `repeats` cross-fits; in this process, without a file."""
    start, fits = (model, init), []
    for first in range(seed, seed + repeats * 2**20, 2**20):
        numbers = fold_numbers(data, folds, first)
        logits = [_fold_logits(data, numbers, recipe, start, fold, first + SEED + fold) for fold in range(folds)]
        fits.append(_joined(numbers, logits))
    return torch.stack(fits).mean(0)


def fold_numbers(data: TensorDataset, folds: int, seed: int) -> Tensor:
    """The fold of each sample [N], drawn by the seed; folds are of equal sizes, and equal images are in one fold."""
    numbers = image_numbers(data)
    count = len(numbers.unique())
    require(count >= max(folds, 4), "splits", f"of more different samples than the {folds} folds", count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    return order[numbers] % folds


def image_numbers(data: TensorDataset) -> Tensor:
    """The number of each image [N] among the different ones: equal images have one number."""
    hashes = hashes_of(data).tolist()
    numbers = {known: number for number, known in enumerate(dict.fromkeys(hashes))}
    return torch.tensor([numbers[known] for known in hashes], dtype=torch.int64, device="cpu")


def _fold_logits(
    data: TensorDataset, numbers: Tensor, recipe: Recipe, start: tuple[nn.Module, Init], fold: int, seed: int
) -> Tensor:
    model, init = start
    trained = train_from_scratch(model, subset(data, numbers != fold), recipe, seed, init)
    return predict(trained, subset(data, numbers == fold))


def _joined(numbers: Tensor, logits: Sequence[Tensor]) -> Tensor:
    """[N, classes], of which each fold has its rows."""
    joined = torch.empty(len(numbers), logits[0].shape[1])
    for fold, rows in enumerate(logits):
        joined[numbers == fold] = rows
    return joined
