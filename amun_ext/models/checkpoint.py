"""Weights on disk: written whole or not at all, loaded exactly or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from amun_ext.checks import InputError, listed, require
from amun_ext.files import write_tensors

PARALLEL = "module."  # what DataParallel puts before every name


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the state dict of `model` with `metadata` to a .safetensors file. InputError for NaN weights and for a
    state that is not all tensors."""
    path = Path(path)
    require(path.suffix == ".safetensors", "checkpoint", "a path that ends in .safetensors", path)
    text = all(isinstance(part, str) for pair in metadata.items() for part in pair)
    require(text, "metadata", "strings by strings", dict(metadata))
    state = model.state_dict()
    _check_tensors(str(path), state)
    # cloned, because the format refuses tensors that share memory, as tied weights do
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    write_tensors(path, tensors, dict(metadata))


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module) -> dict[str, str]:
    """Load weights into `model` and return the file's metadata (none but in .safetensors).

    Reads .safetensors, and .pt or .pth with a state dict in it or under "state_dict" or "model". Keys and shapes must
    be the model's; floating-point tensors are cast to the model's type (half precision into a float32 model and back),
    all others must have it. InputError else, also for NaN; the model is then as it was.
    """
    path = Path(path)
    state, metadata = _read(path)
    if state and all(key.startswith(PARALLEL) for key in state):
        state = {key.removeprefix(PARALLEL): value for key, value in state.items()}
    _check_tensors(str(path), state)
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "other shape or type": [
            f"{key} ({_describe(state[key])} in the file, {_describe(own)} in the model)"
            for key, own in expected.items()
            if key in state and not _fits(state[key], own)
        ],
    }
    found = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in problems.items() if keys)
    require(not found, str(path), "a checkpoint of this architecture", f"one with keys that do not fit: {found}")
    model.load_state_dict(state)
    return metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a .safetensors checkpoint, without its weights."""
    path = Path(path)
    require(path.suffix == ".safetensors", "checkpoint", "a .safetensors file", path)
    return _read(path, weights=False)[1]


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
    require(path.is_file(), "checkpoint", "a file", f"{path}, which does not exist")
    require(path.suffix in (".safetensors", ".pt", ".pth"), "checkpoint", "a .safetensors, .pt or .pth file", path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                keys = file.keys() if weights else ()
                return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything at a file that is no checkpoint
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} must be a checkpoint: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    require(isinstance(state, dict), str(path), "a state dict (names to tensors)", type(state).__name__)
    return {str(key): value for key, value in state.items()}, {}


def _check_tensors(name: str, state: Mapping[str, Any]) -> None:
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    require(not others, name, "a state dict of tensors", f"other things at {listed(others)}")
    unlike = [key for key, value in state.items() if not _is_plain(value)]
    require(
        not unlike, name, "of dense tensors with values", f"sparse, quantised, nested or meta ones at {listed(unlike)}"
    )
    nan = [key for key, value in state.items() if value.is_floating_point() and value.float().isnan().any()]
    require(not nan, name, "free of NaN", f"NaN in {listed(nan)}")


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def _fits(stored: Tensor, own: Tensor) -> bool:
    castable = stored.is_floating_point() and own.is_floating_point()
    return stored.shape == own.shape and (castable or stored.dtype == own.dtype)


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
