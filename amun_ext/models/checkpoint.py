"""Write and read checkpoints: complete and of this architecture, or not at all."""

import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from amun_ext.files import write_tensors
from amun_ext.reading import check_file
from amun_ext.sharded import check_shards, shard_like, write_whole
from amun_ext.validation import InputError, listed, require

WRAPPERS = ("module.", "_orig_mod.")  # prefixes of every name, by DataParallel and torch.compile


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the state dict of `model` with `metadata` to a .safetensors file. InputError for a state that
    `load_checkpoint` would refuse."""
    path = Path(path)
    require(path.suffix == ".safetensors", "checkpoint", "a path that ends in .safetensors", path)
    text = all(isinstance(part, str) for pair in metadata.items() for part in pair)
    require(text, "metadata", "strings by strings", dict(metadata))
    check_shards(model)
    state = model.state_dict()
    _check_tensors(str(path), state)

    def write(state: dict[str, Tensor]) -> None:
        _check_values(str(path), state, model)
        # cloned, because safetensors refuses tensors that share memory, such as tied weights
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        write_tensors(path, tensors, dict(metadata))

    write_whole(write, state)


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module) -> dict[str, str]:
    """Load weights into `model` and return the file's metadata (empty for other formats than .safetensors).

    Reads .safetensors, and .pt or .pth with a state dict at the top or under "state_dict" or "model". Keys and shapes
    must be the model's; floating-point tensors are cast to the model's type, others must have it. InputError otherwise,
    for NaN, for infinite parameters or running statistics, and for negative running variances; the model is then
    unchanged. Other buffers may be infinite, such as attention masks.
    """
    path = Path(path)
    check_shards(model)
    expected = model.state_dict()
    state, metadata = _fitting(path, expected)
    cast = {key: value.to(expected[key].dtype) for key, value in state.items()}  # which may overflow
    _check_values(str(path), cast, model)
    model.load_state_dict({key: shard_like(value, expected[key]) for key, value in state.items()})
    return metadata


def check_fits(path: str | os.PathLike[str], model: nn.Module) -> None:
    """InputError as `load_checkpoint`, without a check of values; `model` may be on the device meta."""
    _fitting(Path(path), model.state_dict())


def _fitting(path: Path, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of the file, whose names, shapes and types must be those of `expected`."""
    state, metadata = _read(path)
    for prefix in WRAPPERS:
        if state.keys() != expected.keys() and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    _check_tensors(str(path), state)
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
    return state, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a .safetensors checkpoint, without its weights."""
    path = Path(path)
    require(path.suffix == ".safetensors", "checkpoint", "a .safetensors file", path)
    return _read(path, weights=False)[1]


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
    check_file("checkpoint", path)
    require(path.suffix in (".safetensors", ".pt", ".pth"), "checkpoint", "a .safetensors, .pt or .pth file", path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                keys = file.keys() if weights else ()
                return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
        _check_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # whose text is about how to run the code in it nevertheless
        raise InputError(f"{path} must be a checkpoint: a state dict of tensors, got other objects") from error
    except Exception as error:  # an unpickler may raise anything
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
    actual = f"sparse, quantised, nested or meta ones at {listed(unlike)}"
    require(not unlike, name, "of dense tensors with values", actual)


def _check_values(name: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """InputError for values that no training produces, in a state with the model's names and shapes."""
    edges = {}
    for key, value in state.items():
        if value.is_floating_point() and value.numel():
            wide = value if value.itemsize >= 4 else value.float()  # 8-bit types have no aminmax
            edges[key] = [float(edge) for edge in wide.aminmax()]
    nan = [key for key, (low, _) in edges.items() if math.isnan(low)]
    require(not nan, name, "free of NaN", f"NaN in {listed(nan)}")
    statistics = _statistics(model)
    finite = [*(key for key, _ in model.named_parameters(remove_duplicate=False)), *statistics]
    infinite = [key for key in finite if not all(map(math.isfinite, edges.get(key, ())))]
    require(not infinite, name, "of finite weights and running statistics", f"infinite values in {listed(infinite)}")
    below = [key for key in statistics if key.endswith("running_var") and key in edges and edges[key][0] < 0]
    require(not below, name, "of running variances from 0 on", f"values below 0 in {listed(below)}")


def _statistics(model: nn.Module) -> list[str]:
    """The names of running means and variances."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _NormBase)]
    return [key for name, module in norms for key, _ in module.named_buffers(name, recurse=False)]


def _check_packed(path: Path) -> None:
    """InputError for a compressed file, which torch.save does not write: it may unpack to any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            size = sum(part.file_size for part in packed.infolist())
        actual = f"one that unpacks to {size} bytes"
        require(size <= path.stat().st_size, str(path), "a checkpoint as torch.save writes it", actual)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def _fits(stored: Tensor, own: Tensor) -> bool:
    castable = stored.is_floating_point() and own.is_floating_point()
    return stored.shape == own.shape and (castable or stored.dtype == own.dtype)


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
