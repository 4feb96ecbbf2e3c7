"""Data sets: from the package, from files in each layout, from a user's function, and every way they can be wrong."""

import gzip
import hashlib
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

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


def expect(splits, train, test, classes):
    for dataset, shape in ((splits.train, train), (splits.test, test)):
        images, labels = dataset.tensors
        assert (images.shape, images.dtype) == (shape, torch.float32)
        assert (labels.shape, labels.dtype) == (shape[:1], torch.int64)
        assert 0 <= images.min() <= images.max() <= 1
        assert set(labels.tolist()) <= set(range(len(classes)))
    assert splits.classes == tuple(classes)


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

    def test_failed_download_is_told_as_it_is(self, tmp_path, monkeypatch):
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


def write_folder(root, sizes=((4, 6),), mode="L", suffix="png"):
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number, (height, width) in enumerate(sizes):
                value = 10 * number + 100 * label + (part == "test")
                Image.new(mode, (width, height), value).save(root / part / name / f"{number}.{suffix}")


class TestFolder:
    def test_grey(self, tmp_path):
        write_folder(tmp_path, sizes=[(4, 6)] * 3)
        (tmp_path / "train" / "cat" / ".hidden").write_text("passed over")
        splits = data.load(str(tmp_path))
        expect(splits, (6, 1, 4, 6), (6, 1, 4, 6), ["cat", "dog"])
        assert splits.train.tensors[1].tolist() == [0, 0, 0, 1, 1, 1]
        assert (splits.test.tensors[0][:, 0, 0, 0] * 255).round().tolist() == [1, 11, 21, 101, 111, 121]

    def test_one_coloured_makes_all_coloured(self, tmp_path):
        write_folder(tmp_path)
        Image.new("RGB", (6, 4), (255, 0, 51)).save(tmp_path / "test" / "dog" / "0.png")
        splits = data.load(tmp_path)
        expect(splits, (2, 3, 4, 6), (2, 3, 4, 6), ["cat", "dog"])
        assert splits.test.tensors[0][1, :, 2, 3].tolist() == pytest.approx([1, 0, 0.2])
        assert (splits.train.tensors[0][1] * 255).unique().round().tolist() == [100]

    @pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
    def test_modes(self, tmp_path, mode, channels):
        write_folder(tmp_path, mode="L")
        for path in tmp_path.glob("*/*/*.png"):
            Image.open(path).convert(mode).save(path)
        expect(data.load(tmp_path), (2, channels, 4, 6), (2, channels, 4, 6), ["cat", "dog"])

    def test_other_size(self, tmp_path):
        write_folder(tmp_path)
        Image.new("L", (4, 6)).save(tmp_path / "test" / "dog" / "odd.png")
        with pytest.raises(InputError, match=r"odd.png must be of .*0.png's height and width \(4, 6\), got \(6, 4\)"):
            data.load(tmp_path)

    def test_animation(self, tmp_path):
        write_folder(tmp_path)
        frames = [Image.new("L", (6, 4), shade) for shade in (0, 255)]
        frames[0].save(tmp_path / "train" / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match=r"moving\.gif must be an image, got an animation"):
            data.load(tmp_path)

    def test_deep_image(self, tmp_path):
        write_folder(tmp_path)
        Image.fromarray(np.full((4, 6), 60_000, np.uint16)).save(tmp_path / "train" / "cat" / "deep.png")
        with pytest.raises(InputError, match=r"deep.png must be an image with 8 bits per channel, got mode I"):
            data.load(tmp_path)

    def test_no_image(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
        with pytest.raises(InputError, match=r"notes.txt must be an image"):
            data.load(tmp_path)

    def test_damaged_image(self, tmp_path):
        write_folder(tmp_path)
        path = tmp_path / "train" / "cat" / "0.png"
        content = path.read_bytes()
        for damaged in (b"", content[:20], content[:45], b"P5\n4 x\n255\n"):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"0.png must be an image"):
                data.load(tmp_path)

    def test_wrong_layout(self, tmp_path):
        with pytest.raises(InputError, match=r"with train and test, or else told a test fraction .*, got neither"):
            data.load(tmp_path)
        (tmp_path / "test").mkdir()
        with pytest.raises(InputError, match=r"train must be a folder with one folder per class, got nothing"):
            data.load(tmp_path)
        (tmp_path / "test").rmdir()
        (tmp_path / "train").mkdir()
        with pytest.raises(InputError, match=r"train must be a folder with one folder per class, got no folder"):
            data.load(tmp_path)
        write_folder(tmp_path)
        (tmp_path / "test" / "eel").mkdir()
        with pytest.raises(InputError, match=r"test must be the classes of train, cat, dog"):
            data.load(tmp_path)
        (tmp_path / "train" / "eel").mkdir()
        with pytest.raises(InputError, match=r"train/eel must be a folder of images"):
            data.load(tmp_path)

    def test_pillow_absent(self, tmp_path, monkeypatch):
        write_folder(tmp_path)
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(InputError, match=r"pip install amun_ext\[vision\]"):
            data.load(tmp_path)


def arrays(shape=(6, 5, 5), dtype=np.uint8, **other):
    values = RANDOM.randint(0, 256, shape)
    images = values.astype(np.uint8) if dtype == np.uint8 else (values / 255).astype(dtype)
    labels = np.arange(shape[0]) % 3
    return {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels} | other


class TestNpz:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((6, 5, 7), (6, 1, 5, 7)),
            ((6, 1, 5, 7), (6, 1, 5, 7)),
            ((6, 2, 5, 7), (6, 2, 5, 7)),
            ((6, 5, 7, 3), (6, 3, 5, 7)),
        ],
    )
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16])
    def test_shapes(self, tmp_path, shape, expected, dtype):
        content = arrays(shape, dtype)
        np.savez(tmp_path / "own.npz", **content, more=np.zeros(2))
        splits = data.load(tmp_path / "own.npz")
        expect(splits, expected, expected, "012")
        source = content["train_images"].astype(np.float64) / (255 if dtype == np.uint8 else 1)
        source = source.transpose(0, 3, 1, 2) if shape[-1] == 3 else source.reshape(expected)
        np.testing.assert_allclose(splits.train.tensors[0].numpy(), source, atol=1e-7)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train_images": RANDOM.rand(6, 3, 5, 3)}, "which axis holds the channels"),
            ({"train_images": RANDOM.rand(6, 5)}, r"\[N, H, W\], .* got shape \(6, 5\)"),
            ({"train_images": np.zeros((6, 5, 5), int)}, r"uint8, or floating point in \[0, 1\], got int64"),
            ({"train_images": np.full((6, 5, 5), 1.5)}, "inside bounds"),
            ({"train_images": np.full((6, 5, 5), np.nan)}, "free of NaN"),
            ({"test_images": np.zeros((6, 4, 5), np.uint8)}, r"test images must be of the training images' shape"),
            ({"train_images": np.zeros((0, 5, 5)), "train_labels": np.zeros(0, int)}, "non-empty"),
            ({"train_labels": np.zeros(6)}, "train_labels must be integers, got float64"),
            ({"train_labels": np.zeros(5, int)}, r"train_labels must be of shape \(6,\)"),
            ({"train_labels": np.full(6, -1)}, "values from -1"),
            ({"test_labels": np.full(6, 3)}, r"test labels must be in \[0, 3\), got values from 3"),
            ({"test_labels": np.array([None] * 6)}, "readable .npz file of plain arrays"),
        ],
    )
    def test_wrong_arrays(self, tmp_path, change, message):
        np.savez(tmp_path / "own.npz", **arrays(**change))
        with pytest.raises(InputError, match=message):
            data.load(tmp_path / "own.npz")

    def test_wrong_files(self, tmp_path):
        path = tmp_path / "own.npz"
        with pytest.raises(InputError, match="which does not exist"):
            data.load(path)
        path.write_text("no zip")
        with pytest.raises(InputError, match=r"readable \.npz"):
            data.load(path)
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(InputError, match=r"readable \.npz"):
            data.load(path)
        np.savez(path, train_images=np.zeros((2, 5, 5)), train_labels=np.zeros(2, int))
        with pytest.raises(InputError, match="got one without test_images, test_labels"):
            data.load(path)
        np.savez_compressed(path, **arrays((50, 5, 5)))
        content = bytearray(path.read_bytes())
        content[300:310] = bytes(10)
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"readable \.npz"):
            data.load(path)
        path.write_bytes(content[:-200])
        with pytest.raises(InputError, match=r"readable \.npz"):
            data.load(path)


class Items(Dataset):
    """A map-style dataset of whatever it is given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


GREY = torch.full((1, 3, 3), 0.5)


def own_pair():
    return Items((GREY, 0), (GREY, np.int64(2))), TensorDataset(GREY[None].double(), torch.tensor([1]))


def own_named():
    train, test = own_pair()
    train.classes = ["a", "b", "c"]
    return train, test


def own_splits():
    images = TensorDataset(torch.rand(4, 2, 3, 3), torch.tensor([0, 1, 0, 1], dtype=torch.int32))
    return data.Splits(images, images, ("no", "yes"))


def own_bytes():
    images = TensorDataset(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    return images, images


def own_flat():
    images = TensorDataset(torch.zeros(2, 9), torch.tensor([0, 1]))
    return images, images


def own_nothing():
    return None


class TestFunction:
    @pytest.mark.parametrize(
        ("function", "train", "test", "classes"),
        [
            (own_pair, (2, 1, 3, 3), (1, 1, 3, 3), "012"),
            (own_named, (2, 1, 3, 3), (1, 1, 3, 3), "abc"),
            (own_splits, (4, 2, 3, 3), (4, 2, 3, 3), ["no", "yes"]),
            (own_bytes, (2, 1, 3, 3), (2, 1, 3, 3), "01"),
        ],
    )
    def test_returns(self, function, train, test, classes):
        expect(data.load(f"{__name__}:{function.__name__}"), train, test, classes)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no_such_module:function", "importable module:function, got No module named"),
            (f"{__name__}:absent", "has no attribute 'absent'"),
            ("not an identifier:f", "importable module:function"),
            (f"{__name__}:GREY", "must be a function, got Tensor"),
            (f"{__name__}:own_nothing", "Splits or a pair .* got NoneType"),
            (f"{__name__}:own_flat", r"\[N, C, H, W\], got shape \(2, 9\)"),
        ],
    )
    def test_wrong(self, name, message):
        with pytest.raises(InputError, match=message):
            data.load(name)

    @pytest.mark.parametrize("name", ["mnist", "folder/absent", "cifar10.tar"])
    def test_unknown_name_lists_names_and_forms(self, name):
        with pytest.raises(InputError, match=rf"fashion-mnist-mini, .*cifar10, a folder .*npz.*module.*'{name}'"):
            data.load(name)


class TestAsTensors:
    def test_tensor_dataset_as_it_is(self):
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
    assert set(data.DATASETS) == {"fashion-mnist-mini", "digits", "fashion-mnist", "cifar10"}
    assert Path(data.__file__).parent.joinpath("embedded", "make.py").is_file()
