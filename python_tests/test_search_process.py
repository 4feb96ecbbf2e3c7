"""A search in a process of its own: one that is killed, and the memory of a large one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_tools import HANG
from search_tools import COUNT, check_alike, check_guarantees, may_run_out, plain_ddn, problem, rows_done, rows_seen
from torch import nn

from amun_ext import AdversarialSet, InputError, find_min_adversarial
from amun_ext.search import find as search_module

pytestmark = [may_run_out, pytest.mark.slow]


def child(function: Callable[..., None], *arguments: object) -> subprocess.Popen[str]:
    """`function` of this module in a process of its own."""
    here = Path(__file__).parent
    command = f"import test_search_process as t; t.{function.__name__}(*{[str(argument) for argument in arguments]!r})"
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "131072"  # freed blocks go back to the system, so that they can be counted
    return subprocess.Popen([sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE, text=True)


def search_in_part(folder: str) -> None:
    """Three chunks and no more: then it says so, and waits to be killed."""
    torch.set_num_threads(1)
    search_module.CHUNK_BATCHES = 1
    model, images, labels = problem()
    search_module.CHUNK_BYTES = 4 * images[0].nbytes
    write, left = search_module._write, [3]

    def stopping(*arguments: object) -> None:
        if left[0] == 0:
            print("three", flush=True)
            signal.pause()
        left[0] -= 1
        write(*arguments)

    search_module._write = stopping
    find_min_adversarial(model, images, labels, method=plain_ddn, batch_size=4, out=Path(folder) / "set")


def test_a_killed_process(tmp_path, monkeypatch) -> None:
    model, images, labels = problem(seen=tmp_path / "seen")
    monkeypatch.setattr(search_module, "CHUNK_BATCHES", 1)
    monkeypatch.setattr(search_module, "CHUNK_BYTES", 4 * images[0].nbytes)
    options = {"method": plain_ddn, "batch_size": 4}
    partial = tmp_path / "set.partial"
    process = child(search_in_part, tmp_path)
    try:
        assert process.stdout.readline() == "three\n"
        with pytest.raises(InputError, match="another process"):
            find_min_adversarial(model, images, labels, out=tmp_path / "set", **options)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = rows_done(partial)
    assert done == 3 * 4
    model.seen.unlink()
    result = find_min_adversarial(model, images, labels, out=tmp_path / "set", **options)
    assert rows_seen(model.seen) == set(range(8)) | set(range(done, COUNT))
    assert {path.name for path in tmp_path.iterdir()} == {"seen", "set"}
    check_guarantees(model, images, labels, result)
    check_alike(find_min_adversarial(model, images, labels, **options), result)


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure_memory(folder: str) -> None:
    torch.set_num_threads(1)
    pixels = np.memmap(Path(folder) / "pixels", np.float32, "w+", shape=(10_000, 32, 32, 3))
    images, labels = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.arange(10_000) % 4
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 4))
    find_min_adversarial(model, images[:100], labels[:100], method="deepfool")  # what is loaded at first use
    before, peak, over = anonymous(), [0], threading.Event()

    def eval_sets() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=eval_sets, daemon=True)  # ends with a search that fails
    watcher.start()
    out = Path(folder) / "set"
    result = find_min_adversarial(model, images, labels, method="deepfool", steps=1, out=out)
    over.set()
    watcher.join()
    del result
    loading = anonymous()
    loaded = AdversarialSet.load(out)
    total = float(loaded.images.sum())
    grown = {"search": peak[0] - before, "load": anonymous() - loading}
    print(json.dumps(grown | {"images": loaded.images.nbytes, "total": total}))


def test_memory_does_not_grow_with_the_data(tmp_path) -> None:
    """123 MB of images are searched and 123 MB of results are read, at the price of a few chunks."""
    process = child(measure_memory, tmp_path)
    answer = json.loads(process.communicate(timeout=HANG)[0])
    assert process.returncode == 0
    assert answer["images"] > 1.2e8
    assert 0 < answer["search"] < 6e7
    assert answer["load"] < 1e7
