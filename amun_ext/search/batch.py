"""The default batch size of a search."""

from pathlib import Path

import torch
from torch import Tensor, nn

from amun_ext.models.state import eval_mode

ON_GPU, PER_THREAD, FEWEST = 128, 32, 8
UNKNOWN_CACHE = 32 * 2**20


def default_batch_size(model: nn.Module, probe: Tensor) -> int:
    """On a CPU 32 samples a thread, or fewer if the input and output of a layer do not fit the last-level cache.

    Measured on ResNet-18, VGG-19 and small networks: time per sample is constant from 32 on, and rises beyond the
    cache. `probe` [n, ...] is on the model's device and in its dtype.
    """
    if probe.device.type != "cpu":
        return ON_GPU
    largest = 0

    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor) and output.shape[:1] == (1,):
            largest = max(largest, output.nbytes)

    leaves = (module for module in model.modules() if not [*module.children()])
    scripted = torch.jit.ScriptModule, torch.jit.ScriptFunction  # which have no hooks
    handles = [module.register_forward_hook(record) for module in leaves if not isinstance(module, scripted)]
    try:
        with eval_mode(model), torch.no_grad():
            model(probe[:1].clone())
    finally:
        for handle in handles:
            handle.remove()
    most = PER_THREAD * torch.get_num_threads()
    return most if not largest else min(most, max(FEWEST, last_level_cache() // (2 * largest)))


def last_level_cache() -> int:
    """Its size in bytes, from Linux."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=UNKNOWN_CACHE)
