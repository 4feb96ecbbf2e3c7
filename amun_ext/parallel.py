"""A pool of worker processes, each with its own copy of a model; they end when their parent ends."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from amun_ext.validation import InputError

Key = TypeVar("Key")
Result = TypeVar("Result")
Job = tuple[Any, ...]  # further arguments of the work
Dispatch = Callable[[Iterator[tuple[Key, Job]]], Iterator[tuple[Key, Result]]]


@contextlib.contextmanager
def process_pool(work: Callable[..., Result], model: object, count: int) -> Iterator[Dispatch[Any, Result]]:
    """A function that runs `work(model, *job)` for many jobs in `count` processes, or in this one if count is 1.

    It takes pairs (key, job) and yields pairs (key, result) as jobs end; the next job is taken when a process is free.
    It raises what the work raises, and OSError if a process ends during its job. `work` must be picklable by name, or a
    `partial` of such a function. InputError for a model that cannot be pickled.
    """
    if count == 1:
        yield lambda jobs: ((key, work(model, *job)) for key, job in jobs)
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
