"""Several processes at once, each with the model and data of its own; they end with the one that asked."""

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
Done = Callable[[Iterator[tuple[Key, Job]]], Iterator[tuple[Key, Result]]]


@contextlib.contextmanager
def started(work: Callable[..., Result], model: object, count: int) -> Iterator[Done[Any, Result]]:
    """A function from jobs to what `work(model, *job)` returns, made in `count` processes; for one, in this process.

    It takes pairs of a key and a job, and gives the key and the result of each as they are done; a job is only asked
    for when it can be begun. What the work raises is raised there; OSError when a process ends before its job does.
    `model` is one, or what a model is made of. `work` must be pickled by name or be a `partial` of such a function.
    InputError for a model that cannot travel.
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
            process = context.Process(target=_serve, args=(theirs, work, packed, threads), daemon=True)
            with _begun_safely():
                process.start()
                processes.append(process)
            theirs.close()  # so that the end of the process is the end of the connection
            ends.append(ours)
        yield partial(_shared_out, ends)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _begun_safely() -> Iterator[None]:
    """A process that is started here never sees a Ctrl-C or SIGHUP: they are for the one who asked, who then ends the
    others; and SIGTERM when it can end in order. Nor does one of them end us before it has all that it is to read.

    Nor does it begin with modules of the current folder, as Python does otherwise, before it has our path.
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


def _shared_out(ends: Sequence[Connection], jobs: Iterator[tuple[Key, Job]]) -> Iterator[tuple[Key, Any]]:
    idle = list(ends)
    busy: dict[Connection, Key] = {}
    while True:
        while idle and (asked := next(jobs, None)) is not None:
            key, job = asked
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


def _serve(end: Connection, work: Callable[..., Any], packed: bytes, threads: int) -> None:
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
    with contextlib.suppress(EOFError):  # the one who asked has ended
        while True:
            job = end.recv()
            try:
                end.send(work(model, *job))
            except Exception as error:  # to be raised where it was asked for
                end.send(error)
