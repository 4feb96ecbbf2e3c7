"""Processes that end at a place in their work and not at a time: how busy the machine is does not matter."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from amun_ext.tuning import context

ROOT = Path(__file__).parents[1]
HANG = 1800  # seconds after which a test gives up waiting; on a slow and busy machine, too, nothing takes so long
SELF = "os.kill(os.getpid(), signal.SIGKILL)"
# What Ctrl-C does in a terminal: it goes to the command and to its workers.
INTERRUPT = "os.killpg(0, signal.SIGINT)"

SCRIPT = """
import multiprocessing, os, pkgutil, signal, sys
from amun_ext import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
owner, left = pkgutil.resolve_name({owner!r}), [{call}]
function = getattr(owner, {name!r})

def ending(*arguments, **options):
    left[0] -= 1
    if left[0] == 0:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        {end}
    return function(*arguments, **options)

setattr(owner, {name!r}, ending)
sys.exit(cli.main({command!r}))
"""


def ended_at(target: str, call: int, command: list[str], end: str = SELF) -> subprocess.CompletedProcess[str]:
    """`amun command`, which does `end` in place of its `call`-th call of `target`; it prints its workers' ids then."""
    owner, _, name = target.rpartition(".")
    script = SCRIPT.format(owner=owner, name=name, call=call, end=end, command=command)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
        start_new_session=True,
    )


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + HANG
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)  # of another's child no end is told


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def begun(
    given: context.TrialContext, folder: Path, model: nn.Module, name: str, *job: object
) -> context.TrialResult | str:
    """The work of a worker, which says that it has begun; "killed" comes to no end."""
    (folder / name).touch()
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return context.run_trial(given, model, *job)
