"""A command that torchrun starts in several processes: they share its work, and one of them speaks."""

import contextlib
import datetime
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from amun_ext.distributed import RankError, exchange, picklable, store, world_size
from amun_ext.validation import require

Answer = TypeVar("Answer")

TIMEOUT = "AMUN_TIMEOUT"  # of the environment: seconds in which every rank must answer
NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # of the environment: "1" gives each start of the ranks its own store
DAY = "86400"  # a rank may wait for another one that trains a model
FAILURE, TOLD, SAID = "amun_ext/failure", "amun_ext/told", "amun_ext/said"  # keys of the group's store
PATIENCE = datetime.timedelta(seconds=60)  # with the store, and with the line of another rank


def join() -> None:
    """Form the process group of all commands that torchrun has started. InputError for a wrong environment."""
    given = os.environ.get(TIMEOUT, DAY)
    require(given.isdecimal() and 0 < int(given) < 2**31, TIMEOUT, "a whole number of seconds from 1 on", repr(given))
    # in the store of the last start ranks find its addresses and counters: pytorch issue 135712
    again = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    require(not again or os.environ.get(NEW_STORE) == "1", NEW_STORE, "1 for torchrun --max-restarts", "not 1")
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local < gpus:
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=int(given)))


def check_device(device: torch.device) -> None:
    """InputError for a GPU that is not this rank's own."""
    own = device.type == "cpu" or device.index == int(os.environ.get("LOCAL_RANK", 0))
    require(own or world_size() == 1, "--device", "cpu, or cuda with a GPU for every rank on the machine", device)


def leave() -> None:
    """When all ranks have said what they have to say, because torchrun ends all with the first that fails."""
    sys.stdout.flush()
    exchange()
    dist.destroy_process_group()


def first_failure(error: BaseException) -> tuple[BaseException, bool]:
    """What has ended the command, which another rank may know better than `error` says; and whether to say it here."""
    if isinstance(error, RankError) and error.reason is not None:
        error = error.reason
    if world_size() == 1:
        return error, True

    def agree() -> tuple[BaseException, bool]:
        first = store().compare_set(FAILURE, "", pickle.dumps(picklable(error)).hex())
        return pickle.loads(bytes.fromhex(first.decode())), store().add(TOLD, 1) == 1

    return _in_time(agree) or (error, True)


def _in_time(ask: Callable[[], Answer]) -> Answer | None:
    """The answer of the store; None if it has gone with its rank, or behind a network that is cut: there torch waits
    until the system gives up the connection, which can take 15 minutes."""
    answers: list[Answer] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError, ValueError):  # the group may not exist yet
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE.total_seconds())
    return answers[0] if answers else None


def end(status: int, said: bool) -> NoReturn:
    """End this rank of a group that has failed, in which a rank that leaves as usual may wait for ever.

    Others end after the one that says why, because torchrun then ends all.
    """
    for stream in (sys.stdout, sys.stderr, sys.__stderr__):
        if stream is not None:
            stream.flush()
    _in_time(lambda: store().set(SAID, "") if said else store().wait([SAID], PATIENCE))
    os._exit(status)
