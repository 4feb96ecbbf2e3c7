"""find_min_adversarial against the published loop's logic and against plain PyTorch, with and without torch.compile.

The same model, samples and threads in one process, the published loop first and last; it and plain PyTorch work at
its batch size, 128. Every example is checked by us: it must be inside the box and misclassified. ResNet-18 of width 16
on the embedded Fashion-MNIST images, training and test images.
"""

import argparse
import math

import torch
from common import peak_memory_mib, timed, write
from rivals import PlainPGD, published_loop
from torch import Tensor, nn

from amun_ext import find_min_adversarial
from amun_ext.data import load
from amun_ext.models import build
from amun_ext.training import Part, Recipe, fit

BATCH_SIZE, WIDTH = 128, 16
TRAINING = Recipe(epochs=12, lr=0.05, schedule="cosine", batch_size=64)


class Counting(nn.Module):
    """Counts forward and backward evaluations, in samples."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda grad: setattr(self, "backwards", self.backwards + len(grad)))
        return self.model(x)


def bench(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    compiled = PlainPGD(model, compiled=True)
    compiled.batch(inputs[:BATCH_SIZE], labels[:BATCH_SIZE])  # compiles; not timed

    counting = Counting(model)
    plain = PlainPGD(counting)

    def ours(**options: object) -> Tensor:
        return find_min_adversarial(counting, inputs, labels, **options).images

    searches = {
        "published loop": lambda: published_loop(counting, inputs, labels, BATCH_SIZE)[0],
        "amun_ext pgd": ours,
        "amun_ext pgd, batch 128": lambda: ours(batch_size=BATCH_SIZE),
        "plain PyTorch": lambda: plain(inputs, labels, BATCH_SIZE)[0],
        "torch.compile": lambda: compiled(inputs, labels, BATCH_SIZE)[0],
        "published loop, again": lambda: published_loop(counting, inputs, labels, BATCH_SIZE)[0],
    }
    rows = {}
    for name, search in searches.items():
        counting.forwards = counting.backwards = 0
        examples, seconds = timed(search)
        rows[name] = {
            **measured(model, inputs, labels, examples),
            "forwards": counting.forwards / len(inputs) or math.nan,
            "backwards": counting.backwards / len(inputs) or math.nan,
            **seconds,
            "peak MiB": peak_memory_mib(),
        }
    base = {key: (rows["published loop"][key] + rows["published loop, again"][key]) / 2 for key in ("wall", "cpu")}
    for row in rows.values():
        row |= {f"{key} ratio": row[key] / base[key] for key in base}
        row |= {key: None if math.isnan(value) else round(value, 4) for key, value in row.items()}
    return rows


@torch.no_grad()
def measured(model: nn.Module, inputs: Tensor, labels: Tensor, examples: Tensor) -> dict[str, float]:
    found = torch.cat([model(batch) for batch in examples.split(BATCH_SIZE)]).argmax(1) != labels
    found &= ((examples >= 0) & (examples <= 1)).flatten(1).all(1)
    distance = (examples - inputs).flatten(1).norm(dim=1)[found]
    return {
        "found": float(found.float().mean()),
        "mean": float(distance.mean()),
        "median": float(distance.median()),
        "p95": float(distance.quantile(0.95)),
    }


def check(rows: dict[str, dict[str, float]]) -> None:
    """The searches are one and the same before their times are compared."""
    base = rows["published loop"]
    for name in ("amun_ext pgd", "amun_ext pgd, batch 128", "plain PyTorch", "torch.compile"):
        assert rows[name]["found"] == base["found"] == 1.0, (name, rows[name], base)
        for key in ("mean", "median", "p95"):
            assert abs(rows[name][key] / base[key] - 1) < 0.01, (name, key, rows[name], base)
    assert rows["amun_ext pgd"]["backwards"] <= 1.005 * base["backwards"], (rows["amun_ext pgd"], base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    splits = load("fashion-mnist-mini")
    model = build("resnet18", num_classes=10, in_channels=1, width=WIDTH)
    fit(model, [Part(*splits.train.tensors)], TRAINING, progress=True)
    model.eval().requires_grad_(False)

    tables = {}
    for name, dataset in (("training images", splits.train), ("test images", splits.test)):
        images, labels = dataset.tensors
        right = (torch.cat([model(batch) for batch in images[:2000].split(500)]).argmax(1) == labels[:2000]).nonzero()
        chosen = right[torch.randperm(len(right))[: options.samples], 0]
        tables[name] = bench(model, images[chosen], labels[chosen])
        print(name)
        for row, values in tables[name].items():
            print(f"  {row:28} " + "  ".join(f"{key} {value}" for key, value in values.items()))
        check(tables[name])
    settings = {"model": f"resnet18, width {WIDTH}", "samples": options.samples, "batch_size": BATCH_SIZE}
    write("search", {**settings, "tables": tables})


if __name__ == "__main__":
    main()
