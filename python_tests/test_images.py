"""8-bit images stay 8-bit in memory until a batch is read, and every result is that of the same images in float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from amun_ext import cli, data
from amun_ext.data.images import ImageDataset, as_float, concat, row_hashes, stored, subset
from amun_ext.validation import InputError

SHAPE = (3, 8, 8)
COUNTS = {"train": 700, "test": 60}
TRAINING = "--epochs 1 --batch-size 64 --lr 0.05"
COMMANDS = [
    f"train --model small-cnn --width 4 {TRAINING} --out original.safetensors",
    f"forget --model original.safetensors --ids 0-9 {TRAINING} --retrain --out forgotten",
    "search --model original.safetensors --ids 0-9 --no-curves --out searched",
    "audit --model forgotten/model.safetensors --original original.safetensors --retrain --out audited",
    f"compare --model original.safetensors --ids 0-9 --methods amun,rl --settings with --seeds 1 {TRAINING} --out all",
]
OF_A_RUN = ("facts", "seconds", "speed-up")


def pixels(part: str) -> np.ndarray:
    return np.random.default_rng(len(part)).integers(0, 256, (COUNTS[part], *SHAPE), dtype=np.uint8)


def save(path: Path, *, as_floats: bool) -> None:
    arrays = {}
    for part, count in COUNTS.items():
        images = pixels(part)
        arrays[f"{part}_images"] = images / np.float32(255) if as_floats else images
        arrays[f"{part}_labels"] = np.arange(count) % 3
    np.savez(path, **arrays)


class LargestFloat(TorchDispatchMode):
    """How many images are in one floating-point tensor at most."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor) and each.is_floating_point() and each.shape[1:] == SHAPE:
                self.count = max(self.count, len(each))
        return result


def test_commands_read_batches_and_give_what_they_give_for_floats(tmp_path: Path, monkeypatch) -> None:
    """`predict` has the largest batches, 512 images."""
    monkeypatch.setattr("amun_ext.data.images.FLOAT_BYTES", 2**14)
    largest = {}
    for kind in ("uint8", "float32"):
        (tmp_path / kind).mkdir()
        monkeypatch.chdir(tmp_path / kind)
        save(Path("data.npz"), as_floats=kind == "float32")
        with LargestFloat() as seen:
            for command in COMMANDS:
                assert cli.main([*command.split(), "--data", "data.npz", "--device", "cpu", "--quiet"]) in (0, 3), (
                    command
                )
        largest[kind] = seen.count
    assert largest["uint8"] <= 512 < largest["float32"]

    models = [*tmp_path.glob("uint8/**/*.safetensors")]
    assert len(models) >= 4
    for path in models:
        assert path.read_bytes() == (tmp_path / "float32" / path.relative_to(tmp_path / "uint8")).read_bytes(), path
    for name in ("forgotten/report.json", "audited/audit.json", "searched/searches.json", "all/compare.json"):
        one, other = (without_times(json.loads((tmp_path / kind / name).read_text())) for kind in largest)
        assert one == other, name


def without_times(value: Any) -> Any:
    """JSON values but for what is of a run, not of its data."""
    if isinstance(value, list):
        return [without_times(each) for each in value]
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in OF_A_RUN}
    return value


class TestImageDataset:
    def test_divides_as_numpy(self) -> None:
        every = torch.arange(256, dtype=torch.uint8)
        assert np.array_equal(as_float(every).numpy(), every.numpy() / np.float32(255))

    def test_items_and_subsets(self) -> None:
        images, labels = torch.from_numpy(pixels("test")), torch.arange(60)
        dataset, floats = ImageDataset(images, labels), ImageDataset(as_float(images), labels)
        known = dataset.hashes
        assert known.tolist() == floats.hashes.tolist() == row_hashes(images.double() / 255).tolist()
        assert data.fingerprint(dataset) == data.fingerprint(floats) == data.fingerprint(TensorDataset(*floats.tensors))
        rows = torch.tensor([3, 1, 59])
        for some in (subset(dataset, rows), concat([subset(dataset, rows[:2]), subset(dataset, rows[2:])])):
            assert stored(some)[0].dtype == torch.uint8
            assert torch.equal(some[:][0], as_float(images[rows]))
            assert some.hashes.tolist() == known[rows.numpy()].tolist() == row_hashes(images[rows]).tolist()
        mixed = concat([dataset, TensorDataset(torch.zeros(2, *SHAPE), labels[:2])])
        assert torch.equal(mixed[:][0], torch.cat([as_float(images), torch.zeros(2, *SHAPE)]))

    def test_grey_of_three_channels_is_grey(self) -> None:
        grey = torch.rand(4, 1, 5, 5)
        coloured = grey.repeat(1, 3, 1, 1)
        coloured[3, 0, 0, 0] += 0.5
        same = [one == other for one, other in zip(row_hashes(grey), row_hashes(coloured), strict=True)]
        assert same == [True, True, True, False]

    def test_nothing_has_no_hashes(self) -> None:
        nothing = ImageDataset(torch.zeros(2, 1, 5, 5), torch.zeros(2).long())
        assert subset(nothing, slice(0)).hashes.tolist() == row_hashes(torch.zeros(0, 1, 5, 5)).tolist() == []

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.full((2, 4), 1.5), torch.zeros(2).long(), "inside bounds"),
            (torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2).long(), "floating point"),
            (torch.zeros(0, 4, dtype=torch.uint8), torch.zeros(0).long(), "non-empty"),
            (torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(3).long(), "one per input"),
        ],
    )
    def test_wrong(self, images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
        with pytest.raises(InputError, match=rf"^own .*{message}"):
            ImageDataset(images, labels, "own")
