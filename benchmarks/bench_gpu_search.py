"""find_min_adversarial and AMUN's training loop on a GPU, end to end: python benchmarks/bench_gpu_search.py

A ResNet-18 is trained on Fashion-MNIST as 3x32x32 images, where the full data set is below --data, else on the embedded
part of it. Its searches run on the images that it gets right, up to 5,000 of them. The published loop, at its batch of
128, runs on the first of these only, and must have found the same distances as method="pgd" there. Then how a batch
size changes the rate, what each way of being faster gives by itself, on what the device spends its time, and images a
second of the training loop against a plain one.

    python benchmarks/bench_gpu_search.py --device cpu --small      a rehearsal: does it run? Writes nothing
"""

import argparse
import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from bench_search import measured
from common import gpu_benchmark, write_gpu
from rivals import published_loop
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from amun_ext import find_min_adversarial
from amun_ext.data import load
from amun_ext.models import build
from amun_ext.search import loop
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.validation import InputError

SAMPLES, RIVAL_SAMPLES, RIVAL_BATCH = 5000, 1280, 128
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
OWN_KERNELS = ("search_step", "attack_loss")
DDN: dict[str, Any] = {"method": "ddn", "steps": 10}


def images(root: str | None, device: str, small: bool) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST as [N, 3, 32, 32]: all training images, or those that come with the package."""
    try:
        data = load("fashion-mnist-mini" if small else "fashion-mnist", root)
    except InputError:
        data = load("fashion-mnist-mini")
    x, labels = data.train.tensors
    if len(x) < SAMPLES:
        x, labels = (torch.cat(parts) for parts in zip(data.train.tensors, data.test.tensors, strict=True))
    x = F.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    if small:
        x, labels = x[:200, :, ::4, ::4], labels[:200]
    return x.to(device).contiguous(), labels.to(device)


def trained(x: Tensor, labels: Tensor, small: bool) -> nn.Module:
    torch.manual_seed(0)
    model = build("resnet18", num_classes=10, in_channels=3, width=4 if small else None).to(x.device)
    recipe = Recipe(epochs=1 if small else 8, lr=0.1, schedule="cosine", precision="bfloat16", channels_last=True)
    fit(model, [Pass([DataPart(TensorDataset(x, labels))])], recipe, RunOptions())
    return model.eval().requires_grad_(False)


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    right = torch.cat([model(batch).argmax(1) for batch in x.split(1000)]) == labels
    return x[right][:count].clone(), labels[right][:count].clone()


def taken(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """The result, and wall seconds until the device is done too."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def compare(model: nn.Module, x: Tensor, labels: Tensor, device: str, small: bool) -> dict[str, Any]:
    """Searches beside each other, in samples a second."""
    few = slice(None, 2 if small else RIVAL_SAMPLES)
    searches: dict[str, tuple[slice, Callable[[Tensor, Tensor], Tensor]]] = {
        "published loop": (few, lambda a, b: published_loop(model, a, b, RIVAL_BATCH)[0]),
        "pgd, those samples": (few, lambda a, b: find_min_adversarial(model, a, b, method="pgd").images),
    }
    if not small:
        searches["pgd"] = slice(None), lambda a, b: find_min_adversarial(model, a, b, method="pgd").images
    for steps in (20, 10):
        ddn = {**DDN, "steps": steps}
        searches[f"ddn, {steps} gradients"] = (
            slice(None),
            lambda a, b, ddn=ddn: find_min_adversarial(model, a, b, **ddn).images,
        )
    table = {}
    for name, (rows, search) in searches.items():
        if not small:
            search(x[:RIVAL_BATCH], labels[:RIVAL_BATCH])
        examples, wall = taken(lambda search=search, rows=rows: search(x[rows], labels[rows]), device)  # type: ignore[misc]
        count = len(examples)
        table[name] = {**measured(model, x[rows], labels[rows], examples), "samples": count, "rate": count / wall}
        print(f"{name:24}", table[name], flush=True)
    return table


def check_equal(base: dict[str, Any], own: dict[str, Any]) -> None:
    """Distances and what was found: rounding of the model's convolutions decides over the last few samples."""
    assert abs(own["found"] - base["found"]) < 0.005, (own, base)
    assert abs(own["mean"] / base["mean"] - 1) < 0.02, (own, base)


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    with mock.patch.object(loop, "cuda_graphed", lambda iterate, device: iterate):
        yield


def ways(model: nn.Module, x: Tensor, labels: Tensor, device: str, batch: int) -> dict[str, float]:
    """Samples a second of ddn with 10 gradients, as it is and with one thing changed."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain = contextlib.nullcontext
    changed: dict[str, tuple[nn.Module, dict[str, Any], Callable[[], contextlib.AbstractContextManager[None]]]] = {
        "as it is": (model, {}, plain),
        "no CUDA graph": (model, {}, without_graphs),
        "nothing folded": (model, {"optimize_model": False}, plain),
        "channels_last": (last, {}, plain),
        "bfloat16": (model, {"precision": "bfloat16"}, plain),
        "bfloat16, channels_last": (last, {"precision": "bfloat16"}, plain),
        "as it is, again": (model, {}, plain),
    }
    rates = {}
    for name, (network, options, context) in changed.items():

        def search(network: nn.Module = network, options: dict[str, Any] = options) -> Any:
            return find_min_adversarial(network, x, labels, **DDN, **options, batch_size=batch)

        with context():
            find_min_adversarial(network, x[:batch], labels[:batch], **DDN, **options, batch_size=batch)
            found, wall = taken(search, device)
        rates[name] = len(x) / wall
        print(f"{name:24} {rates[name]:.0f} a second, mean distance {found.distance.mean():.4f}", flush=True)
    return rates


def batch_sizes(model: nn.Module, x: Tensor, labels: Tensor, device: str, small: bool) -> dict[int, float]:
    rates = {}
    for batch in (4, 8) if small else BATCHES:
        find_min_adversarial(model, x[:batch], labels[:batch], **DDN, batch_size=batch)  # chooses kernels
        search = lambda batch=batch: find_min_adversarial(model, x, labels, **DDN, batch_size=batch)  # noqa: E731
        rates[batch] = len(x) / taken(search, device)[1]
        print(f"batch {batch}: {rates[batch]:.0f} a second", flush=True)
    return rates


def shares(model: nn.Module, x: Tensor, labels: Tensor, device: str, batch: int) -> dict[str, float]:
    """Of the wall time of a search: in our kernels, in all others (the model's, for the most part), and idle."""
    search = lambda: find_min_adversarial(model, x, labels, **DDN, batch_size=batch)  # noqa: E731
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        _, wall = taken(search, device)
    kind, of = (
        (DeviceType.CUDA, "self_device_time_total") if device == "cuda" else (DeviceType.CPU, "self_cpu_time_total")
    )
    # Kernels alone: the calls that launched them have their time as well.
    events = [event for event in profiler.key_averages() if event.device_type == kind]
    times = {event.key: getattr(event, of) / 1e6 for event in events}
    own = sum(spent for name, spent in times.items() if any(kernel in name for kernel in OWN_KERNELS))
    busy = sum(times.values())
    result = {"own kernels": own / wall, "others": (busy - own) / wall, "idle": max(0.0, 1 - busy / wall)}
    print({name: f"{share:.1%}" for name, share in result.items()}, flush=True)
    return result


def plain_loop(model: nn.Module, x: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """As a careful user writes it, with the data on the device."""
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    model.train()
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(x), device=x.device).split(recipe.batch_size):
            optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = F.cross_entropy(model(x[batch]), labels[batch])
            loss.backward()
            optimizer.step()


def training(model: nn.Module, x: Tensor, labels: Tensor, device: str) -> dict[str, float]:
    """Images a second of two epochs of fine-tuning."""
    rates = {}
    for name, options in {
        "float32": {},
        "bfloat16, channels_last": {"precision": "bfloat16", "channels_last": True},
    }.items():
        recipe = Recipe(epochs=2, lr=0.01, **options)  # type: ignore[arg-type]
        works = {
            f"fit, {name}": lambda net, recipe=recipe: fit(
                net, [Pass([DataPart(TensorDataset(x, labels))])], recipe, RunOptions()
            ),
            f"plain loop, {name}": lambda net, recipe=recipe: plain_loop(net, x, labels, recipe),
        }
        for row, work in works.items():
            for _ in range(2):  # the first chooses kernels
                net = copy.deepcopy(model).requires_grad_()
                _, wall = taken(lambda work=work, net=net: work(net), device)  # type: ignore[misc]
            rates[row] = recipe.epochs * len(x) / wall
            print(f"{row:40} {rates[row]:.0f} images a second", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder with the full data set")
    options = gpu_benchmark(parser)
    device, small = options.device, options.small
    x, labels = images(options.data, device, small)
    model, seconds = taken(lambda: trained(x, labels, small), device)
    few = correct(model, x, labels, 6 if small else SAMPLES)
    print(f"trained on {len(x)} images in {seconds:.0f} s, {len(few[0])} to search", flush=True)
    result: dict[str, Any] = {"images": len(x), "samples": len(few[0])}

    def keep(name: str, part: Any) -> None:
        """At once, so that what comes later cannot lose it."""
        result[name] = part
        write_gpu("search", result, options)

    keep("searches", searches := compare(model, *few, device, small))
    check_equal(searches["published loop"], searches["pgd, those samples"])
    keep("batch size", rates := batch_sizes(model, *few, device, small))
    best = max(rates, key=lambda batch: rates[batch])
    keep("ways", {"batch size": best, "rate": ways(model, *few, device, best)})
    keep("shares", shares(model, *few, device, best))
    keep("training", training(model, x, labels, device))


if __name__ == "__main__":
    main()
