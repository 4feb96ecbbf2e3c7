"""Sets whose images are not kept in memory: equal to those that are, and within a bound of memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_tools import Items
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import InputError, data, evaluate, find_min_adversarial, unlearn
from amun_ext.data import find_near_copies, lazy
from amun_ext.data.images import concat, hashes_of, is_lazy, subset
from amun_ext.data.splits import read_dataset
from amun_ext.deletion import split
from amun_ext.training import Recipe

CLASSES = 1000  # of the large folder, with an image of 3x224x224 in training and test set: 1.2 GB as float32
BOUND = 640  # MiB beyond the import, at batches of 32


def draw(root: Path, classes: int, count: int, size: int, grey: bool = False) -> None:
    """Smooth images, all different; the first one is grey if asked for."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(classes):
            folder = root / part / f"{label:04}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(generator.integers(0, 256, (7, 7, 3), np.uint8)).resize((size, size))
                first = grey and label == number == 0
                (image.convert("L") if first else image).save(folder / f"{number}.jpg")


@pytest.fixture
def both(tmp_path: Path, monkeypatch) -> tuple[data.Splits, data.Splits]:
    """A folder in memory, and the same one read when it is used."""
    draw(tmp_path, classes=3, count=6, size=8, grey=True)
    in_memory = data.load(str(tmp_path))
    monkeypatch.setattr(lazy, "IN_MEMORY_BYTES", 0)
    large = data.load(str(tmp_path))
    assert [is_lazy(each.train) for each in (in_memory, large)] == [False, True]
    return in_memory, large


def same(some: TensorDataset, others: TensorDataset) -> None:
    assert all(map(torch.equal, some.tensors, others.tensors))
    assert (hashes_of(some) == hashes_of(others)).all()


class TestLazyFolder:
    def test_has_the_images_that_it_would_have_in_memory(self, both) -> None:
        in_memory, large = both
        for part in ("train", "test"):
            same(getattr(in_memory, part), getattr(large, part))
        assert torch.equal(in_memory.train[3][0], large.train[3][0])
        for rows in (torch.tensor([5, 0, 5]), torch.arange(18) % 2 == 0, slice(2, 4)):
            same(subset(in_memory.train, rows), subset(large.train, rows))
        same(concat([in_memory.train, in_memory.test]), concat([large.train, large.test]))
        pairs = [find_near_copies(each.train, torch.arange(4), 1.0) for each in both]
        assert pairs[0] == pairs[1] != []

    def test_keeps_its_rows_when_files_are_erased(self, both, tmp_path: Path) -> None:
        in_memory, large = both
        (tmp_path / "train/0001/2.jpg").unlink()
        metadata = {"manifest": data.manifest_of(in_memory), "forgotten": "[8]"}
        found = data.aligned(data.load(str(tmp_path)), metadata)
        kept = torch.arange(18) != 8
        assert found.absent == (8,)
        assert is_lazy(found.train)
        assert found.train[8][0].max() == 0
        same(subset(found.train, kept), subset(large.train, kept))

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_is_unlearned_as_in_memory(self, both, num_workers: int) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        weights, reports = [], []
        for splits in both:
            forget, retain = split(splits.train, torch.tensor([7, 2, 11]))
            found = find_min_adversarial(model, forget, method="ddn")
            how = {"adversarial": found, "recipe": Recipe(2, 0.1, batch_size=5, augment=True), "mask": 0.5}
            unlearned = unlearn(model, forget, retain, num_workers=num_workers, **how)
            weights.append(torch.cat([weight.flatten() for weight in unlearned.parameters()]))
            sets = {"forget": forget, "retain": retain, "test": splits.test}
            reports.append(evaluate({"no-op": model, "AMUN": unlearned}, **sets, baseline=None, adversarial=found))
        assert torch.equal(*weights)
        assert reports[0].rows == reports[1].rows


class TestLazyDataset:
    def test_is_read_again_whenever_it_is_used(self, monkeypatch) -> None:
        images = torch.rand(40, 2, 3)
        monkeypatch.setattr(lazy, "IN_MEMORY_BYTES", 0)
        found = read_dataset(Items(*zip(images, range(40), strict=True)), "own")
        assert is_lazy(found)
        same(found, TensorDataset(images, torch.arange(40)))

    def test_must_be_the_same_every_time(self, monkeypatch) -> None:
        class Random(Items):
            def __getitem__(self, index):
                return torch.rand(2, 3), 0

        monkeypatch.setattr(lazy, "IN_MEMORY_BYTES", 0)
        with pytest.raises(InputError, match=r"^own\[0\] must be the same"):
            read_dataset(Random(0, 1), "own")

    def test_names_a_bad_item(self, monkeypatch) -> None:
        monkeypatch.setattr(lazy, "IN_MEMORY_BYTES", 0)
        items = [(torch.rand(2, 3), 0)] * 50
        for bad, reason in (
            (torch.rand(2, 4), r"^own\[40\] must be an image like"),
            (torch.full((2, 3), 2.0), "bounds"),
        ):
            with pytest.raises(InputError, match=reason):
                read_dataset(Items(*items[:40], (bad, 0), *items[41:]), "own")


def tiny(num_classes: int, in_channels: int) -> nn.Module:
    """A network that takes little memory of its own, for the command line."""
    return nn.Sequential(nn.Conv2d(in_channels, 4, 16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14**2, num_classes))


def peak(*command: str) -> float:
    """MiB beyond the import that a command takes at most."""
    code = (
        "import resource, sys, torch; from amun_ext.cli import main; torch.set_num_threads(1)\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = used()\n"
        "status = main(sys.argv[1:]); print(used() - before); sys.exit(status)"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    call = [sys.executable, "-c", code, *command, "--quiet"]
    printed = subprocess.run(call, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(printed.splitlines()[-1])


@pytest.mark.slow
def test_large_folder_takes_bounded_memory(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    draw(folder, CLASSES, count=1, size=224)
    how = ["--data", str(folder), "--device", "cpu"]
    small = ["--epochs", "1", "--lr", "0.01", "--batch-size", "32"]
    net, model, forgotten = "test_large_inputs:tiny", str(tmp_path / "original.safetensors"), tmp_path / "forgotten"
    commands = {
        "train": ["--model", net, *small, "--out", model],
        "search": ["--arch", net, "--model", model, "--ids", "0-99", "--out", str(tmp_path / "search")],
        "forget": ["--arch", net, "--model", model, "--ids", "0-99", *small, "--out", str(forgotten)],
        "audit": ["--arch", net, "--model", str(forgotten / "model.safetensors"), "--out", str(tmp_path / "audit")],
    }
    taken = {name: peak(name, *how, *options) for name, options in commands.items()}
    assert max(taken.values()) < BOUND, taken
