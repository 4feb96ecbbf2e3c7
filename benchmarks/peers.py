"""Minimum-norm L2 searches of other packages, as their authors ship them.

    pip install --no-deps -r benchmarks/peers.txt

Each is called as PEERS[name](model, inputs [N, ...] in [0, 1], labels [N]) and returns examples [N, ...]. The model is
in eval mode, its parameters need no gradient. Where a search finds nothing the example is as the package left it, and
what a package raises is raised. The first call imports the package, so it is not one to time.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from rivals import MAX_ROUNDS
from torch import Tensor, nn

from amun_ext.data.vision import import_torchvision
from amun_ext.validation import InputError

INSTALL = "pip install --no-deps -r benchmarks/peers.txt"
BATCH_SIZE = 128

Search = Callable[[nn.Module, Tensor, Tensor], Tensor]


def imported(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # theirs, of SciPy and distutils
            return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} must be importable: {INSTALL} ({error})") from error


def in_batches(search: Callable[..., Tensor], **settings: Any) -> Search:
    """`search` with `settings`, batch by batch; the same random numbers every time, and the caller's left alone."""

    def run(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        batches = zip(inputs.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
        with torch.random.fork_rng([inputs.device] if inputs.is_cuda else []):
            torch.manual_seed(0)
            return torch.cat([search(model, x, y, **settings).detach() for x, y in batches])

    return run


def torchattacks_pgd(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float = 0.04, steps: int = 50) -> Tensor:
    """PGDL2 knows one radius only; its user doubles it, and attacks again those that are still classified correctly."""
    torchattacks = imported("torchattacks")
    examples, left = inputs.clone(), torch.arange(len(inputs), device=inputs.device)
    for _ in range(MAX_ROUNDS):
        attack = torchattacks.PGDL2(model, eps=eps, alpha=eps / 10, steps=steps, random_start=False)
        examples[left] = attack(inputs[left], labels[left])
        with torch.no_grad():
            left = left[model(examples[left]).argmax(1) == labels[left]]
        if not len(left):
            break
        eps *= 2
    return examples


def foolbox_attack(model: nn.Module, inputs: Tensor, labels: Tensor, attack: str, **settings: Any) -> Tensor:
    foolbox = imported("foolbox")
    # Without a device it would move the model to the first GPU.
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=inputs.device)
    examples: Tensor = getattr(foolbox.attacks, attack)(**settings)(wrapped, inputs, labels, epsilons=None)[0]
    return examples


def adv_lib_attack(model: nn.Module, inputs: Tensor, labels: Tensor, attack: str, **settings: Any) -> Tensor:
    import_torchvision()  # adv_lib's own import of it fails beside a CPU build of torch
    if "visdom" not in sys.modules and find_spec("visdom") is None:
        # A server for plots with many dependencies; adv_lib imports it always and uses it in callbacks only.
        sys.modules["visdom"] = ModuleType("visdom")
    examples: Tensor = getattr(imported("adv_lib.attacks"), attack)(model, inputs, labels, **settings)
    return examples


foolbox_ddn = partial(in_batches, foolbox_attack, attack="DDNAttack")
adv_lib_ddn = partial(in_batches, adv_lib_attack, attack="ddn")
adv_lib_fmn = partial(in_batches, adv_lib_attack, attack="fmn", norm=2)

# adv-lib's DDN rounds its examples to 8 bits unless told `levels=None`.
PEERS: dict[str, Search] = {
    "torchattacks PGDL2, eps doubled": in_batches(torchattacks_pgd),
    "foolbox DDN, 100 steps": foolbox_ddn(steps=100),
    "foolbox DDN, 20 steps": foolbox_ddn(steps=20),
    "adv-lib DDN, 100 steps": adv_lib_ddn(steps=100),
    "adv-lib DDN, 20 steps": adv_lib_ddn(steps=20),
    "adv-lib DDN, 20 steps, tuned": adv_lib_ddn(steps=20, init_norm=0.3, γ=0.1),
    "adv-lib DDN, 20 steps, tuned, not rounded": adv_lib_ddn(steps=20, init_norm=0.3, γ=0.1, levels=None),
    "adv-lib FMN, 100 steps": adv_lib_fmn(steps=100),
    "adv-lib FMN, 20 steps": adv_lib_fmn(steps=20),
    "adv-lib ALMA, 100 steps": in_batches(adv_lib_attack, attack="alma", num_steps=100),
    "adv-lib DeepFool": in_batches(adv_lib_attack, attack="df"),
    "adv-lib SuperDeepFool": in_batches(adv_lib_attack, attack="sdf"),
}
