"""A pool of processes, each with its own copy of model and data; they end when their parent ends."""

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
    """A function that maps jobs to `work(model, *job)` in `count` processes, or in this one where count is 1.

    It takes pairs (key, job) and yields pairs (key, result) in the order in which jobs end; the next job is drawn when
    a process is free. What the work raises is raised there; OSError when a process ends before its job does.
    `model` is a model, or what it is made of. `work` must be picklable by name, or a `partial` of such a function.
    InputError for a model that cannot be pickled.
    """
    if count == 1:
        yield lambda jobs: ((key, work(model, *job)) for key, job in jobs)
        return
    try:
        packed = pickle.dumps(model)  # by value: tensors would travel as open files, of which there are few
    except Exception as error:  # it is the user's, and may raise anything: a parametrised module refuses
        raise InputError(
            f"num_workers must be 1 for a model or init that cannot be pickled, got {count}: {error}"
        ) from error
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
            theirs.close()  # so that the end of the process is the end of the connection
            ends.append(ours)
        yield partial(_dispatch, ends)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that starts in here gets no Ctrl-C or SIGHUP: the parent gets them and ends the others. SIGTERM is
    blocked until the process can end in order; the parent, until the process has read all that it needs.

    Nor does it import from the current folder, as Python would, before it has the parent's path.
    """
    safe_path = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"
    resource_tracker.ensure_running()  # its own start would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.environ["PYTHONSAFEPATH"] = safe_path  # empty is as good as unset


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: there are semaphores to give back
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
