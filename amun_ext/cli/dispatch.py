"""Run a parsed command. All that needs torch is imported here."""

import argparse
from importlib import import_module

import torch

from amun_ext.validation import InputError


def dispatch(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    if "device" in options:
        options.device = _device(options.device)
    return import_module(f"amun_ext.cli.{options.run}").run(options) or 0


def _device(name: str | None) -> torch.device:
    """The device of that name; by default a GPU, if there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device must be available in this torch, got {name}: {reason}") from error
