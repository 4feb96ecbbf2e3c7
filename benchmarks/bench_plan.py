"""The plan of a request beside real runs: 1, 2 and 4 processes, of four threads in all, share search and training.

The plan is made by one process with as many threads as a rank has. Times are of the processor, so that what else the
machine does matters less: a rank that waits for others takes none. Of several ranks the slowest counts. Memory is the
most beyond the import, with the images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_memory import Peak, resident
from common import timed, write
from torch.utils.data import TensorDataset

from amun_ext import find_min_adversarial, models, unlearn
from amun_ext.deletion import estimate
from amun_ext.deletion.plan import Sizes, plan
from amun_ext.models import predict
from amun_ext.recipe import Recipe
from amun_ext.unlearning.config import resolve_config

PROCESSES, THREADS = (1, 2, 4), 4
FORGET, RETAIN, TEST = 512, 1536, 512
NETWORKS = {"small-cnn": 32, "resnet18": 8}  # with their width
RECIPE = Recipe(epochs=3, lr=0.01, batch_size=128)
STAGES = ("search", "unlearning")
BANDWIDTH = 1e12  # of a loopback, whose waiting takes no processor time


def problem(network: str) -> tuple[torch.nn.Module, TensorDataset]:
    """An untrained network and random images with the classes that it gives them."""
    torch.manual_seed(0)
    model = models.build(network, num_classes=10, in_channels=3, width=NETWORKS[network]).eval()
    images = torch.rand(FORGET + RETAIN, 3, 32, 32)
    return model, TensorDataset(images, predict(model, images).argmax(1))


def measured(network: str, devices: int) -> dict[str, Any]:
    """The plan for so many devices."""
    model, data = problem(network)
    config = resolve_config("amun", default={"include_forget": False, "recipe": RECIPE})
    costs = estimate.measure(model, data, config, devices=devices, clock=time.process_time)
    stages = plan(costs, Sizes(FORGET, RETAIN, TEST, 0, devices, BANDWIDTH), config, None)
    return {each.name: each._asdict() for each in stages}


def run(network: str, out: Path) -> None:
    """This rank's part of the request."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    estimate.warm_up()
    start = resident("RssAnon")
    model, data = problem(network)
    forget, retain = (TensorDataset(*data[rows]) for rows in (slice(FORGET), slice(FORGET, None)))
    with Peak() as peak:
        found, search = timed(lambda: find_min_adversarial(model, forget, method="ddn"))
    search["MiB"] = peak.most - start
    how: dict[str, Any] = {"adversarial": found, "include_forget": False, "recipe": RECIPE}
    with Peak() as peak:
        _, unlearning = timed(lambda: unlearn(model, forget, retain, **how))
    unlearning["MiB"] = peak.most - start
    (out / f"{rank}.json").write_text(json.dumps({"search": search, "unlearning": unlearning}))
    if dist.is_initialized():
        dist.destroy_process_group()


def in_processes(network: str, count: int) -> dict[str, Any]:
    """Predicted and real CPU seconds of each stage, and what the real ones were off by, in percent."""
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS // count), "OMP_WAIT_POLICY": "PASSIVE"}
    call = [sys.executable, __file__, "--network", network, "--plan-for", str(count)]
    planned = json.loads(subprocess.run(call, env=environment, check=True, stdout=subprocess.PIPE).stdout)

    def ranks(**more: str) -> list[dict[str, Any]]:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        call = [sys.executable, *launch, __file__, "--network", network, "--ranks-of"]
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([*call, out], env=environment | more, check=True)
            return [json.loads(path.read_text()) for path in sorted(Path(out).glob("*.json"))]

    timed_ranks = ranks()
    # freed blocks go back to the system, so that they can be counted; that takes time
    weighed_ranks = ranks(MALLOC_MMAP_THRESHOLD_="131072")
    rows = {}
    for stage in STAGES:
        real = {key: max(rank[stage][key] for rank in timed_ranks) for key in ("cpu", "wall")}
        predicted = planned[stage]["seconds"]
        rows[stage] = {
            "predicted": predicted,
            "real": real["cpu"],
            "error": 100 * (predicted / real["cpu"] - 1),
            "wall": real["wall"],
            "predicted MiB": planned[stage]["memory_bytes"] / 2**20,
            "real MiB": max(rank[stage]["MiB"] for rank in weighed_ranks),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--plan-for", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ranks-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan_for:
        print(json.dumps(measured(options.network, options.plan_for)))
    elif options.ranks_of:
        run(options.network, options.ranks_of)
    else:
        load = os.getloadavg()[0]
        table = {name: {str(count): in_processes(name, count) for count in PROCESSES} for name in NETWORKS}
        write("plan", {"table": table, "threads in all": THREADS, "load": [load, os.getloadavg()[0]]})
        print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
