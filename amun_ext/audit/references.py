"""Reference models: networks like the audited one, each trained on a random half of all samples.

What an attack compares a model with (RMIA, LiRA). Training and test samples are halved alike, as the published
experiments do: a prior that has seen the forget samples but not the test samples would call those members that are not.
One set of references serves every request, every method and every seed.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from amun_ext.checks import InputError, require, whole
from amun_ext.data import Splits, fingerprint
from amun_ext.digest import digest
from amun_ext.evaluation import predict
from amun_ext.evaluation.signals import SIGNALS
from amun_ext.files import claim, write_tensors
from amun_ext.training import Recipe
from amun_ext.unlearning import unlearn
from amun_ext.workers import started

FORMAT = "amun_ext.references.1"
IDENTITY, FILE = "references.json", "reference-{:04}.safetensors"
KEPT = ("log-odds", "sm-taylor")  # of every sample and model: not its logits
SEED = 2000  # added to the seed, so that no reference begins with the weights of the original or the retrained model


@dataclass(frozen=True, eq=False)
class References:
    """What M models say of N samples, those of the training set first and then those of the test set."""

    membership: Tensor  # [M, N] bool: the model was trained on the sample
    signals: Mapping[str, Tensor]  # name in KEPT -> [M, N] float32
    about: Mapping[str, object]  # what they were made of

    def __len__(self) -> int:
        return len(self.membership)


def halves(samples: int, models: int, seed: int = 0) -> Tensor:
    """Which model is trained on which sample, [M, N] bool: of models 2i and 2i + 1 one is, and the other is not.

    So every sample is in exactly half of the models, and more models leave the former ones as they are.
    """
    rows = []
    for pair in range(models // 2):
        generator = torch.Generator().manual_seed(seed + pair * 2**20)
        chosen = torch.zeros(samples, dtype=torch.bool)
        chosen[torch.randperm(samples, generator=generator)[: samples // 2]] = True
        rows += [chosen, ~chosen]
    return torch.stack(rows)


def train_references(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    models: int = 32,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> References:
    """Train `models` networks like `model`, from fresh weights, each on a random half of `splits` (paper, section 5).

    Of each the true-class log-odds and the SM-Taylor-softmax of every sample are kept, in a file of `out` that is there
    when the model is done: 8 bytes a sample. The same call goes on where a former one was stopped; with more `models`
    it adds to them. On one device and thread count the result follows from the seed.

    Args:
        model: its architecture is taken, its weights are not; every module must have a reset_parameters().
        splits: both sets, in the order that ids refer to.
        recipe: that of the model under audit. With augment, test images are augmented too.
        out: a folder, for these references alone.
        models: an even number; 8 to 16 do for an AUC (benchmarks/README.md), the paper has 128.
        workers: models at once, each in a process of its own.

    Raises:
        InputError: an argument is not what it must be; `out` is of other references; a file there is damaged.
    """
    whole("models", models, 2)
    require(models % 2 == 0, "models", "even: they come in pairs", models)
    whole("seed", seed, 0)
    whole("workers", workers, 1)
    out, everything = Path(out), pool(splits)
    membership = halves(len(everything), models, seed)
    require(len(everything) >= 4, "splits", "of four samples at least", len(everything))
    identity = _identity(model, splits, recipe, seed)
    claim(out / IDENTITY, identity, "set of references")
    todo = [number for number in range(models) if not (out / FILE.format(number)).exists()]
    jobs: Iterator[tuple[int, tuple[Tensor, int]]] = (
        (number, (membership[number], seed + SEED + number)) for number in todo
    )
    with (
        started(partial(_trained, everything, recipe), model, min(workers, max(1, len(todo)))) as trained,
        tqdm(total=models, initial=models - len(todo), desc="references", unit="model", disable=not progress) as bar,
    ):
        for number, signals in trained(jobs):
            write_tensors(out / FILE.format(number), {"membership": membership[number], **signals}, {"format": FORMAT})
            bar.update()
    return load_references(out, models)


def load_references(folder: str | os.PathLike[str], models: int | None = None) -> References:
    """What `train_references` has put there: all, or the first `models`.

    InputError where there are none, fewer than asked for, or an odd number, and for damaged files.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        known = about["format"] == FORMAT and {"data", "architecture"} <= about.keys()
        total = int(about["train samples"]) + int(about["test samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"references must be a folder that amun references has written, got {folder}: {error}"
        ) from error
    require(known, "references", f"of format {FORMAT}", about["format"])
    found = sorted(folder.glob(FILE.replace("{:04}", "*")))
    models = len(found) if models is None else models
    expected = [folder / FILE.format(number) for number in range(models)]
    missing = [path.name for path in expected if path not in found]
    complete = models >= 2 and models % 2 == 0 and not missing
    got = f"{len(found)} files" + (f", without {', '.join(missing[:3])}" if missing else "")
    require(complete, "references", "complete pairs of models (amun references goes on where it was)", got)
    rows = [_read(path, total) for path in expected]
    return References(
        membership=torch.stack([row["membership"] for row in rows]),
        signals={name: torch.stack([row[name] for row in rows]) for name in KEPT},
        about={**about, "models": models},
    )


def check_references(references: References, model: nn.Module, splits: Splits) -> None:
    """InputError for references of another architecture than the model's, or of other samples."""
    same = references.about["data"] == _data(splits)
    require(same, "references", "trained on these training and test samples, in this order", "others")
    same = references.about["architecture"] == architecture(model)
    require(same, "references", "of the model's architecture", "another")


def signals_from(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What is kept of logits [N, K]: name in KEPT -> [N] float32."""
    return {name: SIGNALS[name](logits, labels).float() for name in KEPT}


def _trained(everything: TensorDataset, recipe: Recipe, model: nn.Module, half: Tensor, seed: int) -> dict[str, Tensor]:
    inside, outside = (TensorDataset(*(tensor[rows] for tensor in everything.tensors)) for rows in (half, ~half))
    fresh = unlearn(model, outside, inside, method="retrain", recipe=recipe, seed=seed)
    images, labels = everything.tensors
    return signals_from(predict(fresh, images), labels)


def pool(splits: Splits) -> TensorDataset:
    """Training and test set, one behind the other, on the CPU."""
    pairs = zip(splits.train.tensors, splits.test.tensors, strict=True)
    return TensorDataset(*(torch.cat([first.cpu(), second.cpu()]) for first, second in pairs))


def _data(splits: Splits) -> str:
    return f"{fingerprint(splits.train)} {fingerprint(splits.test)}"


def _identity(model: nn.Module, splits: Splits, recipe: Recipe, seed: int) -> dict[str, object]:
    return {
        "format": FORMAT,
        "architecture": architecture(model),
        "data": _data(splits),
        "train samples": len(splits.train),
        "test samples": len(splits.test),
        "recipe": asdict(recipe),
        "seed": seed,
    }


def architecture(model: nn.Module) -> str:
    """A hash of its modules and the shapes of its weights."""
    shapes = {name: tensor.new_zeros(tensor.shape, device="cpu") for name, tensor in model.state_dict().items()}
    return digest(shapes, str(model))


def _read(path: Path, samples: int) -> dict[str, Tensor]:
    wanted = {"membership": torch.bool} | dict.fromkeys(KEPT, torch.float32)
    try:
        row = load_file(path)
        fits = {name: (tensor.dtype, tensor.shape) for name, tensor in row.items()} == {
            name: (dtype, (samples,)) for name, dtype in wanted.items()
        }
    except (OSError, SafetensorError) as error:
        raise InputError(f"references must be whole, got {path}: {error}; remove it, and it is made again") from error
    must_be = f"whole, with {', '.join(wanted)} of {samples} samples"
    require(fits, "references", must_be, f"{path}; remove it, and it is made again")
    return row
