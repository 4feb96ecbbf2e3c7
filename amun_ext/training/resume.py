"""The file from which a stopped training resumes after its last epoch."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from amun_ext.data import ImageDataset, fingerprint
from amun_ext.digest import digest
from amun_ext.distributed import rank
from amun_ext.files import write_tensors
from amun_ext.sharded import gathered, shard_like
from amun_ext.training.parts import DataPart, Pass
from amun_ext.validation import InputError, require

FORMAT = "amun_ext.training.1"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training, and its file at `path`; None for no file."""

    path: Path | None
    training_id: str
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    order: torch.Generator

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the state after an epoch, completely or not at all; the first rank does. OSError if it cannot."""
        if self.path is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in slots.items() if value is not None}
        tensors |= {"order": self.order.get_state(), "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        tensors = gathered(tensors)
        if rank() > 0:
            return
        # cloned, because safetensors refuses tensors that share memory, such as tied weights
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        state = json.dumps({"history": list(history), "scaler": self.scaler.state_dict()})
        metadata = {"format": FORMAT, "training_id": self.training_id, "state": state, "digest": _digest(copies, state)}
        write_tensors(self.path, copies, metadata)

    def resume(self) -> list[dict[str, Any]]:
        """Restore the state from the file, if there is one. Returns its epochs.

        InputError for a file of another training, before anything is changed.
        """
        if self.path is None or not self.path.exists():
            return []
        tensors, metadata = _read(self.path)
        expected = "a new file or one of this training (the same weights, data, options and seed)"
        same = metadata.get("format") == FORMAT and metadata.get("training_id") == self.training_id
        require(same, "checkpoint", expected, f"another at {self.path}")
        intact = metadata["digest"] == _digest(tensors, metadata["state"])
        require(intact, "checkpoint", "as it was written", f"a damaged file, {self.path}")
        progress = json.loads(metadata["state"])
        own = self.model.state_dict()
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        saved = _under("model.", tensors)
        self.model.load_state_dict({name: shard_like(value, own[name]) for name, value in saved.items()})
        state = self.optimizer.state_dict()
        for name, value in _under("optimizer.", tensors).items():
            number, _, slot = name.partition(".")
            state["state"].setdefault(int(number), {})[slot] = shard_like(value, weights[int(number)])
        self.optimizer.load_state_dict(state)
        self.scaler.load_state_dict(progress["scaler"])
        self.order.set_state(tensors["order"])
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        history: list[dict[str, Any]] = progress["history"]
        return history


def training_id(model: nn.Module, passes: Sequence[Pass], mask: Mapping[str, Tensor] | None, settings: object) -> str:
    """A digest of all inputs of a training: initial weights, data, mask and settings."""
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    parts = [[_settings(part) for part in each.parts] for each in passes]
    data = [(each.ascend, each.epochs, some) for each, some in zip(passes, parts, strict=True)]
    content = (settings, data, digest(model.state_dict()), trainable, None if mask is None else digest(mask))
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _settings(part: DataPart) -> object:
    targets = digest({"targets": part.targets}) if isinstance(part.targets, Tensor) else part.targets is None
    return part.augment, part.count, part.labels is None, targets, _contents(part.data)


def _contents(data: Any) -> object:
    """A digest of tensors; the length of another Dataset, whose items may be random."""
    if isinstance(data, ImageDataset):
        return fingerprint(data)
    return digest(dict(enumerate(data.tensors))) if isinstance(data, TensorDataset) else len(data)


def check_place(path: Path) -> None:
    """InputError if no file can be written at `path`; missing folders are created later."""
    folder = next(each for each in path.absolute().parents if each.exists())
    fits = not path.is_dir() and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    require(fits, "checkpoint", "a file in a folder that can be written to", path)


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    """Of the whole content; safetensors checks only its header."""
    return hashlib.sha256(f"{state}{digest(dict(sorted(tensors.items())))}".encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint must be a new file or one of this training, got {path}: {error}") from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
