"""Save and restore torch's random state, which all threads of a process share."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import nn

Devices = Sequence[torch.device | int]  # CUDA devices whose generators are saved, beside the CPU's

_in_use = threading.RLock()


def cuda_devices(model: nn.Module) -> list[int]:
    """The CUDA devices of its parameters and buffers."""
    return sorted({tensor.device.index for tensor in chain(model.parameters(), model.buffers()) if tensor.is_cuda})


@contextlib.contextmanager
def own_random_state(devices: Devices = ()) -> Iterator[None]:
    """One thread at a time; afterwards the state is as before."""
    with _in_use, torch.random.fork_rng(list(devices)):
        yield


@contextlib.contextmanager
def same_random_state(devices: Devices = ()) -> Iterator[None]:
    """Afterwards the state is as before, unless a thread is in `own_random_state` at the beginning or the end."""
    before = _states(devices)
    try:
        yield
    finally:
        if before is not None and _in_use.acquire(blocking=False):
            try:
                torch.set_rng_state(before[0])
                for device, state in zip(devices, before[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            finally:
                _in_use.release()


def _states(devices: Devices) -> list[torch.Tensor] | None:
    if not _in_use.acquire(blocking=False):
        return None
    try:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    finally:
        _in_use.release()
