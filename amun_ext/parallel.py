"""Independent tasks in several processes: the ranks of a process group, or a pool of this process.

A pool is not a process group, because its parent may be a notebook, which takes no part in the work, gets all results
and hears at once of a process that has died.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from amun_ext.distributed import alone, by_first_rank, exchange, fail_together, world_size
from amun_ext.validation import InputError, require

Key = TypeVar("Key")
Result = TypeVar("Result")
Job = tuple[Any, ...]  # further arguments of the work
Dispatch = Callable[[Generator[tuple[Key, Job]]], Iterator[tuple[Key, Result]]]


@contextlib.contextmanager
def workers(work: Callable[..., Result], model: object, count: int) -> Iterator[Dispatch[Any, Result]]:
    """A function that runs `work(model, *job)` for many jobs in `count` processes, or in this one if count is 1.

    It takes pairs (key, job) and yields pairs (key, result) as jobs end; the next job is taken when a process is free.
    It raises what the work raises, and OSError if a process ends during its job. `work` must be picklable by name, or a
    `partial` of such a function. InputError for a model that cannot be pickled.

    In a process group each rank gives its own jobs, made of `claimed` ones, gets their results, and waits for the
    others at the end. RankError if one of them has failed.
    """
    if count == 1 or world_size() > 1:
        require(count == 1, "num_workers", "1 in a process group, whose ranks are the workers", count)
        yield partial(_one_by_one, work, model)
        return
    try:
        packed = pickle.dumps(model)  # by value: multiprocessing sends tensors as open files, whose number is limited
    except Exception as error:  # user code may raise anything
        expected = "1 for a model or init that cannot be pickled"
        raise InputError(f"num_workers must be {expected}, got {count}: {error}") from error
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // count)
    ends, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker_main, args=(theirs, work, packed, threads), daemon=True)
            with _signals_blocked():
                process.start()
                processes.append(process)
            theirs.close()  # so that the connection ends with the process
            ends.append(ours)
        yield partial(_dispatch, ends)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start a process in here: it ignores Ctrl-C and SIGHUP, on which the parent ends it, and blocks SIGTERM until it
    can clean up. It imports nothing from the current folder before it has the parent's path.
    """
    safe_path = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"
    resource_tracker.ensure_running()  # its start would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.environ["PYTHONSAFEPATH"] = safe_path  # empty means unset


def unfinished(paths: Sequence[Path]) -> list[int]:
    """The numbers of the paths where no file is, the same on every rank."""
    return by_first_rank(lambda: [number for number, path in enumerate(paths) if not path.exists()])()


def _one_by_one(
    work: Callable[..., Result], model: object, jobs: Generator[tuple[Key, Job]]
) -> Iterator[tuple[Key, Any]]:
    with fail_together(), contextlib.closing(jobs):  # which leaves none to the others if this rank fails
        for key, job in jobs:
            with alone():
                result = work(model, *job)
            yield key, result
    exchange()


def _dispatch(ends: Sequence[Connection], jobs: Iterator[tuple[Key, Job]]) -> Iterator[tuple[Key, Any]]:
    idle = list(ends)
    busy: dict[Connection, Key] = {}
    while True:
        while idle and (pair := next(jobs, None)) is not None:
            key, job = pair
            end = idle.pop()
            end.send(job)
            busy[end] = key
        if not busy:
            return
        ready = wait(list(busy))
        for end in [end for end in busy if end in ready]:
            try:
                outcome = end.recv()
            except (EOFError, ConnectionError) as error:
                raise OSError("a worker ended during its work; was there too little memory?") from error
            if isinstance(outcome, Exception):
                raise outcome
            idle.append(end)
            yield busy.pop(end), outcome


def _worker_main(end: Connection, work: Callable[..., Any], packed: bytes, threads: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by an exception, which releases semaphores
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    model = pickle.loads(packed)
    with contextlib.suppress(EOFError):  # the parent has ended
        while True:
            job = end.recv()
            try:
                end.send(work(model, *job))
            except Exception as error:  # raised in the parent
                end.send(error)
