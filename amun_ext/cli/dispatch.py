"""Run a parsed command. All that needs torch is imported here."""

import argparse
from importlib import import_module

import torch

from amun_ext.cli import ranks
from amun_ext.cli.process import launched_by_torchrun
from amun_ext.distributed import by_first_rank
from amun_ext.validation import InputError

# The commands whose work the ranks of a process group share; another one is run by the first.
SHARED = ("train", "prepare", "forget", "search", "compare", "tune", "audit", "references", "shadows", "reproduce")


def dispatch(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    if launched_by_torchrun():
        ranks.join()
    if "device" in options:
        options.device = _device(options.device)
        ranks.check_device(options.device)
    run = import_module(f"amun_ext.cli.{options.run}").run
    return (run if options.run in SHARED else by_first_rank(run))(options) or 0


def _device(name: str | None) -> torch.device:
    """The device of that name; by default a GPU, if there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device must be available in this torch, got {name}: {reason}") from error
