"""Data sets by name, from the package and from files in each layout, and every way they can be wrong."""

import gzip
import hashlib
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from data_tools import GREY, Items, expect
from torch.utils.data import IterableDataset, TensorDataset

from amun_ext import data
from amun_ext.data import fashion_mnist, vision
from amun_ext.data.embedded import make
from amun_ext.validation import InputError

RANDOM = np.random.RandomState(3)


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_fashion(folder, train=20, test=10, size=28, packed=False):
    """Four IDX files of random images in which each class appears equally often; returns the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        arrays[prefix] = RANDOM.randint(0, 256, (count, size, size)), np.arange(count) % 10
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays[prefix], strict=True):
            name = f"{prefix}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return arrays


@pytest.fixture(autouse=True)
def no_debian(monkeypatch, tmp_path):
    """Results must not depend on whether this machine has Debian's package."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")


class TestEmbedded:
    def test_mini(self):
        splits = data.load("fashion-mnist-mini")
        expect(splits, (2000, 1, 28, 28), (3000, 1, 28, 28), fashion_mnist.CLASSES)
        assert splits.train.tensors[1].bincount().tolist() == [200] * 10
        assert splits.test.tensors[1].bincount().tolist() == [300] * 10
        assert splits.train.tensors[0].mean() == pytest.approx(0.286, abs=0.01)  # Fashion-MNIST's own

    def test_mini_file(self):
        with np.load(fashion_mnist.MINI) as file:
            assert file["train_images"].dtype == np.uint8
            for part, count, size in (("train", 2000, 60_000), ("test", 3000, 10_000)):
                rows = file[f"{part}_rows"]
                assert rows.dtype == np.int32
                assert len(np.unique(rows)) == count
                assert 0 <= rows.min() <= rows.max() < size
        assert fashion_mnist.MINI.stat().st_size < 3_000_000
        licence = (fashion_mnist.MINI.parent / "LICENSE").read_text()
        assert "MIT License" in licence
        assert "Copyright (c) 2017 Zalando SE" in licence

    def test_make_draws_the_same_rows_of_the_original_again(self, tmp_path):
        arrays = write_fashion(tmp_path, 2100, 3100, size=2)
        files = tmp_path / "one.npz", tmp_path / "two.npz"
        for file in files:
            make.make(tmp_path, file)
        assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1
        with np.load(files[0]) as made:
            for part, prefix in (("train", "train"), ("test", "t10k")):
                rows = made[f"{part}_rows"]
                np.testing.assert_array_equal(made[f"{part}_images"], arrays[prefix][0][rows])
                np.testing.assert_array_equal(made[f"{part}_labels"], arrays[prefix][1][rows])
                assert np.bincount(made[f"{part}_labels"]).tolist() == [make.PER_CLASS[part]] * 10

    def test_make_that_fails_leaves_nothing(self, tmp_path, monkeypatch):
        write_fashion(tmp_path / "source", 2100, 3100, size=2)

        def die(file, **arrays):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez_compressed", die)
        with pytest.raises(KeyboardInterrupt):
            make.make(tmp_path / "source", tmp_path / "out" / "mini.npz")
        assert list((tmp_path / "out").iterdir()) == []

    def test_digits(self):
        first, second = data.load("digits"), data.load("digits")
        expect(first, (1197, 1, 8, 8), (600, 1, 8, 8), list("0123456789"))
        assert first.train.tensors[0].max() == 1
        assert first.test.tensors[1].bincount().min() >= 58
        for one, two in ((first.train, second.train), (first.test, second.test)):
            assert all(map(torch.equal, one.tensors, two.tensors))
        rows = {image.numpy().tobytes() for part in (first.train, first.test) for image in part.tensors[0]}
        assert len(rows) == 1797  # no image on both sides


class TestFashionMnist:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("below", ["FashionMNIST/raw", ""])
    def test_layouts(self, tmp_path, packed, below):
        arrays = write_fashion(tmp_path / below, packed=packed)
        splits = data.load("fashion-mnist", root=tmp_path)
        expect(splits, (20, 1, 28, 28), (10, 1, 28, 28), fashion_mnist.CLASSES)
        images, labels = splits.test.tensors
        np.testing.assert_array_equal((images[:, 0] * 255).round().numpy(), arrays["t10k"][0])
        np.testing.assert_array_equal(labels.numpy(), arrays["t10k"][1])

    def test_debian_last(self, tmp_path):
        write_fashion(tmp_path / "debian", train=30, packed=True)
        assert len(data.load("fashion-mnist", root=tmp_path).train) == 30
        write_fashion(tmp_path)
        assert len(data.load("fashion-mnist", root=tmp_path).train) == 20

    def test_default_root_is_data(self, tmp_path, monkeypatch):
        write_fashion(tmp_path / "data")
        monkeypatch.chdir(tmp_path)
        assert len(data.load("fashion-mnist").train) == 20

    def test_nowhere(self, tmp_path):
        with pytest.raises(InputError, match=rf"{tmp_path}/FashionMNIST/raw, .*debian.*download=True.*apt-get install"):
            data.load("fashion-mnist", root=tmp_path)

    def test_download_is_torchvisions(self, tmp_path, monkeypatch):
        def download(root, download):
            assert download
            write_fashion(root / "FashionMNIST" / "raw")

        fake = SimpleNamespace(datasets=SimpleNamespace(FashionMNIST=download))
        monkeypatch.setattr(fashion_mnist, "import_torchvision", lambda: fake)
        assert len(data.load("fashion-mnist", root=tmp_path, download=True).train) == 20

    @pytest.mark.parametrize("packed", [False, True])
    def test_truncated(self, tmp_path, packed):
        write_fashion(tmp_path, packed=packed)
        file = tmp_path / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte.* must be"):
            data.load("fashion-mnist", root=tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "begins with 00000801, got nothing"),
            (idx(np.zeros((20, 2))), "begins with 00000801, got 00000802"),
            (idx(np.zeros(20))[:6], "truncated or damaged"),
            (idx(np.zeros(20)) + b"more", "28 bytes for shape"),
            (idx(np.zeros(19)), "one label per image, got 20 and 19"),
            (idx(np.full(20, 10)), r"in \[0, 10\)"),
        ],
    )
    def test_wrong_labels(self, tmp_path, content, message):
        write_fashion(tmp_path)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
        with pytest.raises(InputError, match=message):
            data.load("fashion-mnist", root=tmp_path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="readable file"):
            fashion_mnist.read_part(tmp_path, "train")


class TestCifar10:
    @staticmethod
    def write(root, monkeypatch):
        """Ten images per file in CIFAR's format, and checksums of these files instead of the real ones."""
        folder = root / "cifar-10-batches-py"
        folder.mkdir()
        contents = {f"data_batch_{number}": {} for number in range(1, 6)} | {"test_batch": {}}
        for batch in contents.values():
            batch |= {"data": RANDOM.randint(0, 256, (10, 3072)).astype(np.uint8), "labels": list(range(10))}
        contents["batches.meta"] = {"label_names": [f"class {number}" for number in range(10)]}
        for name, content in contents.items():
            (folder / name).write_bytes(pickle.dumps(content))
        sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
        cifar = vision.import_torchvision().datasets.CIFAR10
        monkeypatch.setattr(cifar, "train_list", [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)])
        monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": sums["batches.meta"]})
        return contents

    def test_reads(self, tmp_path, monkeypatch):
        contents = self.write(tmp_path, monkeypatch)
        splits = data.load("cifar10", root=tmp_path)
        expect(splits, (50, 3, 32, 32), (10, 3, 32, 32), [f"class {number}" for number in range(10)])
        pixels = (splits.test.tensors[0] * 255).round().reshape(10, 3072)  # CIFAR stores red, green, blue planes
        np.testing.assert_array_equal(pixels.numpy(), contents["test_batch"]["data"])
        assert splits.train.tensors[1].tolist() == list(range(10)) * 5

    def test_absent_or_damaged(self, tmp_path, monkeypatch):
        with pytest.raises(InputError, match=r"cifar-10-batches-py \(download=True gets it\)"):
            data.load("cifar10", root=tmp_path)
        self.write(tmp_path, monkeypatch)
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
        with pytest.raises(InputError, match="CIFAR-10 must be in"):
            data.load("cifar10", root=tmp_path)

    def test_failed_download_raises_torchvisions_error(self, tmp_path, monkeypatch):
        def fail(self):
            raise RuntimeError("no network")

        monkeypatch.setattr(vision.import_torchvision().datasets.CIFAR10, "download", fail)
        with pytest.raises(RuntimeError, match="no network"):
            data.load("cifar10", root=tmp_path, download=True)


class TestVision:
    def test_absent(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(InputError, match=r"pip install amun_ext\[vision\]"):
            data.load("cifar10", root=tmp_path)

    @pytest.mark.parametrize("message", ["operator torchvision::nms does not exist", "something else"])
    def test_operators_missing(self, monkeypatch, message):
        """Beside a CPU build of torch the first import fails; only that failure is repaired."""
        stub = "torchvision._meta_registrations"
        monkeypatch.setitem(sys.modules, stub, ModuleType("before"))
        del sys.modules[stub]
        working = ModuleType("torchvision")

        def fake_import(name):
            if stub not in sys.modules:
                raise RuntimeError(message)
            return working

        monkeypatch.setattr(vision.importlib, "import_module", fake_import)
        if message == "something else":
            with pytest.raises(RuntimeError, match="something else"):
                vision.import_torchvision()
        else:
            assert vision.import_torchvision() is working


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class TestAsTensors:
    def test_tensor_dataset_gives_its_own_tensors(self):
        images, labels = torch.rand(3, 2), torch.arange(3)
        got = data.as_tensors(TensorDataset(images, labels), "own")
        assert got[0] is images
        assert got[1] is labels

    def test_stacks(self):
        images, labels = data.as_tensors(Items((GREY, 3), (GREY / 2, torch.tensor(4))), "own")
        assert torch.equal(images, torch.stack([GREY, GREY / 2]))
        assert torch.equal(labels, torch.tensor([3, 4]))

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (Items(), "own must be non-empty"),
            (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), "own must be non-empty"),
            (TensorDataset(torch.zeros(2, 2)), "got 1 tensors"),
            (TensorDataset(torch.zeros(2, 2), torch.zeros(2)), "own labels must be integers"),
            (Items((GREY, 0), (GREY[:, :2], 0)), r"own\[1\] must be an image like own\[0\], \(1, 3, 3\) .*\(1, 2, 3\)"),
            (Items((GREY, 0), (GREY.double(), 0)), r"own\[1\] .*torch.float32, got .*torch.float64"),
            (Items((GREY, 0), (GREY, 0.5)), r"own\[1\] must be a pair .* got \(Tensor, float\)"),
            (Items((GREY, 0), (GREY.numpy(), 0)), r"own\[1\] must be a pair .* got \(ndarray, int\)"),
            (Items((GREY, 0), (GREY, torch.tensor([1, 2]))), r"own\[1\] must be a pair"),
            (Items((GREY, 0), GREY), r"own\[1\] must be a pair .* got \(Tensor\)"),
            (Items((GREY, 0), None), r"own\[1\] must be a pair .* got \(NoneType\)"),
            (Stream(), "own must be a map-style dataset"),
        ],
    )
    def test_wrong(self, dataset, message):
        with pytest.raises(InputError, match=message):
            data.as_tensors(dataset, "own")


def test_every_name_is_listed_once():
    assert set(data.DATASETS) == {"fashion-mnist-mini", "digits", "fashion-mnist", "cifar10", "tiny-imagenet"}
    assert Path(data.__file__).parent.joinpath("embedded", "make.py").is_file()
