"""The user's own data: folders of images, .npz files and functions, and every way they can be wrong."""

import sys

import numpy as np
import pytest
import torch
from data_tools import GREY, Items, expect
from PIL import Image
from torch.utils.data import TensorDataset

from amun_ext import data
from amun_ext.validation import InputError

RANDOM = np.random.RandomState(3)


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

    def test_one_coloured_image_makes_all_rgb(self, tmp_path):
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
        with pytest.raises(InputError, match=r"with train and test, or given with a test fraction .*, got neither"):
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
        with pytest.raises(
            InputError, match=rf"fashion-mnist-mini, .*cifar10, tiny-imagenet, a folder .*npz.*module.*'{name}'"
        ):
            data.load(name)
