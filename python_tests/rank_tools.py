"""Processes that form a process group, each of which does the same work."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kill_tools import HANG

place = "cpu"  # the device of this rank


def run_ranks(work: Callable[[Path], Any], ranks: int, folder: Path, device: str = "cpu") -> list[Any]:
    """What `work(folder)` returns in each of `ranks` processes; the text of its traceback where it raises, and the
    exit status, negative, where it is killed. `work` is of a module, by name. On "cuda" each has a GPU, and nccl.
    """
    if device == "cuda" and ranks > torch.cuda.device_count():
        pytest.skip(f"{ranks} ranks need as many GPUs")
    context = multiprocessing.get_context("spawn")
    store = folder / "store"
    store.unlink(missing_ok=True)
    ends = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(target=_rank, args=(work, number, ranks, folder, device, store, end), daemon=True)
        for number, (_, end) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for _, theirs in ends:
        theirs.close()
    results = []
    for process, (ours, _) in zip(processes, ends, strict=True):
        try:
            results.append(pickle.loads(ours.recv_bytes()))
        except EOFError:
            process.join()
            results.append(process.exitcode)
    for process in processes:
        process.join()
    return results


def _rank(
    work: Callable[[Path], Any], number: int, ranks: int, folder: Path, device: str, store: Path, end: Any
) -> None:
    global place
    place = device
    if device == "cuda":
        torch.cuda.set_device(number)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    options = {"rank": number, "world_size": ranks, "timeout": timedelta(seconds=HANG)}
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", init_method=f"file://{store}", **options
    )
    try:
        result = work(folder)
    except BaseException:
        result = traceback.format_exc()
    end.send_bytes(pickle.dumps(result))  # by value: a tensor would need its process
    end.close()
    os._exit(0)  # a group that has lost a rank may wait for it at the end
