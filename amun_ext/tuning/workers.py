"""Several processes at once, each with the model and data of its own; they end with the one that asked."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from amun_ext.checks import InputError
from amun_ext.tuning.stage import Seen, Stage, attempt

Key = TypeVar("Key")
Job = tuple[str, Mapping[str, Any], int]  # method, options and run


@contextlib.contextmanager
def started(stage: Stage, count: int) -> Iterator[Sequence[Connection]]:
    """The ends of `count` connections, at whose others processes make attempts; none for one, which needs no other.

    InputError for a model that cannot travel.
    """
    if count == 1:
        yield []
        return
    try:
        model = pickle.dumps(stage.original)  # by value: tensors would travel as open files, of which there are few
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"workers must be 1 for a model that cannot be pickled, got {count}: {error}") from error
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // count)
    ends, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, model, replace(stage, original=torch.nn.Identity()), threads)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            with _without_interrupts():
                process.start()
                processes.append(process)
            theirs.close()  # so that the end of the process is the end of the connection
            ends.append(ours)
        yield ends
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started here never sees a Ctrl-C: it is for the one who asked, who then ends the others."""
    resource_tracker.ensure_running()  # its own start would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def attempts(
    stage: Stage, jobs: Iterator[tuple[Key, Job]], ends: Sequence[Connection]
) -> Iterator[tuple[Key, Seen | str]]:
    """The key and the outcome of each of `jobs`, as they are done; one is only asked for when it can be begun.

    What an attempt raises is raised here. OSError when a process ends before its attempt does.
    """
    if not ends:
        for key, job in jobs:
            yield key, attempt(stage, *job)
        return
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
                raise OSError("a worker ended during a trial; was there too little memory?") from error
            if isinstance(outcome, Exception):
                raise outcome
            idle.append(end)
            yield busy.pop(end), outcome


def _serve(end: Connection, model: bytes, stage: Stage, threads: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: there are semaphores to give back
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    stage = replace(stage, original=pickle.loads(model))
    with contextlib.suppress(EOFError):  # the one who asked has ended
        while True:
            job = end.recv()
            try:
                end.send(attempt(stage, *job))
            except Exception as error:  # to be raised where it was asked for
                end.send(error)
