"""The signals of many models for the same samples: one file per model, without its weights."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import Splits, fingerprint, training_data
from amun_ext.data.images import concat, moved
from amun_ext.digest import architecture
from amun_ext.distributed import by_first_rank, claimed, entered_by_first_rank
from amun_ext.files import claim_folder, to_jsonable, workplace, write_tensors
from amun_ext.metrics.signals import SIGNALS
from amun_ext.models.reinitialise import Init, check_init, describe_init
from amun_ext.parallel import unfinished, workers
from amun_ext.progress import progress_bar
from amun_ext.reading import read_json
from amun_ext.training import Recipe
from amun_ext.validation import InputError, check_integer, require

KEPT_SIGNALS = ("log-odds", "sm-taylor")  # of every sample and model
LOGITS = "logits"  # which are kept on demand
IDENTITY = ("architecture", "data", "recipe", "init", "seed")  # what decides a set of models, beside their halves
Signals = dict[str, Tensor]  # name in KEPT_SIGNALS -> [N] float32
Start = tuple[nn.Module, Init]  # the architecture and the initial weights of each model
Work = Callable[[Start, Tensor, int], Signals]


@dataclass(frozen=True, eq=False)
class ModelSignals:
    """The signals of M models for N samples, and which model was trained on which sample."""

    membership: Tensor  # [M, N] bool
    signals: Mapping[str, Tensor]  # name in KEPT_SIGNALS -> [M, N] float32; "logits", if loaded -> [M, N, K]
    about: Mapping[str, object]  # architecture, data, recipe and other settings

    def __len__(self) -> int:
        return len(self.membership)

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of what decides each model: it is known in whatever file, and if it was trained again elsewhere."""
        settings = json.dumps([self.about.get(name) for name in IDENTITY], sort_keys=True).encode()
        return tuple(hashlib.sha256(settings + row.numpy().tobytes()).hexdigest() for row in self.membership)


def draw_membership(samples: int, models: int, seed: int = 0) -> Tensor:
    """[M, N] bool, True where a model is trained on a sample. Models 2i and 2i + 1 have complementary random halves.

    Every sample is in exactly half of the models. Adding models does not change the earlier rows.
    """
    rows = []
    for pair in range(models // 2):
        generator = torch.Generator().manual_seed(seed + pair * 2**20)
        chosen = torch.zeros(samples, dtype=torch.bool, device="cpu")
        chosen[torch.randperm(samples, generator=generator, device="cpu")[: samples // 2]] = True
        rows += [chosen, ~chosen]
    return torch.stack(rows)


def signals_from(logits: Tensor, labels: Tensor) -> Signals:
    """KEPT_SIGNALS of logits [N, K]."""
    return {name: SIGNALS[name](logits, labels).float() for name in KEPT_SIGNALS}


def check_settings(models: int, seed: int, num_workers: int) -> tuple[int, int, int]:
    """The arguments as Python integers."""
    models = check_integer("models", models, 2)
    require(models % 2 == 0, "models", "even, because models come in pairs", models)
    return models, check_integer("seed", seed, 0), check_integer("num_workers", num_workers, 1)


def collect(
    kind: str,
    folder: str | os.PathLike[str],
    identity: Mapping[str, object],
    work: Work,
    start: Start,
    membership: Tensor,
    *,
    first_seed: int,
    num_workers: int,
    progress: bool,
) -> ModelSignals:
    """Call `work` with the start, a row of `membership` [M, N] and a seed for every model that is not in the folder.

    Each model has its own file, so the same call resumes after a kill, and a call with more rows adds models. `kind`:
    "references" or "shadows".
    """
    folder, models = Path(folder), len(membership)
    manifest = to_jsonable({"format": _format(kind), "samples": membership.shape[1], **identity})
    assert isinstance(manifest, dict)
    with entered_by_first_rank(workplace(folder, kind)) as place:
        by_first_rank(claim_folder)(folder / f"{kind}.json", manifest, f"set of {kind}", place)
        paths = [_path(kind, folder, number) for number in range(models)]
        todo = unfinished(paths)
        jobs = ((number, (membership[number], first_seed + number)) for number in claimed(todo))
        with (
            workers(work, start, min(num_workers, max(1, len(todo)))) as run_jobs,
            progress_bar(progress, total=models, initial=models - len(todo), desc=kind, unit="model") as bar,
        ):
            for number, signals in run_jobs(jobs):
                tensors = {"membership": membership[number], **signals}
                write_tensors(paths[number], tensors, {"format": _format(kind)}, place)
                bar.update()
    return load(kind, folder, models)


def load(kind: str, folder: str | os.PathLike[str], models: int | None = None, *, logits: bool = False) -> ModelSignals:
    """Read what `collect` has written: all models, or the first `models`; of models that keep them also the `logits`.

    InputError where there are none, fewer than asked for, or an odd number, and for damaged files.
    """
    folder = Path(folder)
    try:
        path = folder / f"{kind}.json"
        about = read_json(path)
        known = about["format"] == _format(kind) and {"data", "architecture", "recipe"} <= about.keys()
        total = int(about["samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{kind} must be a folder that amun {kind} has written, got {folder}: {error}") from error
    require(known, kind, f"of format {_format(kind)}", about["format"])
    found = sorted(folder.glob(_path(kind, folder, 0).name.replace("0000", "*")))
    models = len(found) if models is None else models
    expected = [_path(kind, folder, number) for number in range(models)]
    missing = [path.name for path in expected if path not in found]
    complete = models >= 2 and models % 2 == 0 and not missing
    actual = f"{len(found)} files" + (f", without {', '.join(missing[:3])}" if missing else "")
    require(complete, kind, f"complete pairs of models (run amun {kind} again to resume)", actual)
    kept = about.get(LOGITS) is True
    require(kept or not logits, kind, f"of models with their logits (amun {kind} --keep-logits)", f"{folder}, without")
    rows = [_read(kind, path, total, logits) for path in expected]
    shapes = {tuple(row[LOGITS].shape) for row in rows if logits}
    require(len(shapes) <= 1, kind, "of models with logits of the same classes", f"{folder}, with {sorted(shapes)}")
    return ModelSignals(
        membership=torch.stack([row["membership"] for row in rows]),
        signals={name: torch.stack([row[name] for row in rows]) for name in (*KEPT_SIGNALS, *[LOGITS] * logits)},
        about={**about, "models": models},
    )


def set_identity(model: nn.Module, splits: Splits, recipe: Recipe, seed: int, init: Init) -> dict[str, object]:
    """What identifies a set of models. InputError for initial weights that are not available."""
    check_init(model, init)
    return {
        "architecture": architecture(model),
        "data": _data_identity(splits),
        "recipe": asdict(recipe),
        "init": describe_init(init),
        "seed": seed,
    }


def check_same(kind: str, others: ModelSignals, model: nn.Module, splits: Splits) -> None:
    """InputError for models of another architecture than the model's, or of other samples."""
    same = others.about["data"] == _data_identity(splits)
    require(same, kind, "trained on these training and test samples, in this order", "models of other data")
    same = others.about["architecture"] == architecture(model)
    require(same, kind, "of the model's architecture", "another")


def concat_splits(splits: Splits) -> TensorDataset:
    """The training set followed by the test set, on the CPU."""
    cpu = torch.device("cpu")
    return concat([moved(data, cpu, data.stored[0].dtype) for data in (splits.train, splits.test)])


def _data_identity(splits: Splits) -> str:
    return f"{training_data(splits)} {fingerprint(splits.test)}"


def _format(kind: str) -> str:
    return f"amun_ext.{kind}.1"


def _path(kind: str, folder: Path, number: int) -> Path:
    return folder / f"{kind.removesuffix('s')}-{number:04}.safetensors"


def _read(kind: str, path: Path, samples: int, logits: bool) -> dict[str, Tensor]:
    wanted = {"membership": torch.bool} | dict.fromkeys(KEPT_SIGNALS, torch.float32)
    try:
        row = load_file(path)
        answers = row.pop(LOGITS, torch.empty(0))
        fits = {name: (tensor.dtype, tensor.shape) for name, tensor in row.items()} == {
            name: (dtype, (samples,)) for name, dtype in wanted.items()
        }
    except (OSError, SafetensorError) as error:
        raise InputError(f"{kind} must be whole, got {path}: {error}; remove it and run the command again") from error
    expected = f"whole, with {', '.join(wanted)} of {samples} samples"
    if logits:
        fits = fits and answers.dtype == torch.float32 and answers.dim() == 2 and len(answers) == samples
        fits = fits and bool(answers.isfinite().all())
        row[LOGITS] = answers
    require(fits, kind, expected, f"{path}; remove it and run the command again")
    return row
