"""Data that fills the memory, hides something, or looks like other data."""

import gzip
import io
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amun_ext import data
from amun_ext.data.fashion_mnist import read_idx
from amun_ext.reading import check_file
from amun_ext.unlearning.config import load_tuned_options
from amun_ext.validation import InputError, printable, unambiguous


def save(path: Path, **others: np.ndarray) -> Path:
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = np.zeros((4, 8, 8), np.uint8)
        arrays[f"{part}_labels"] = np.arange(4)
    np.savez(path, **arrays | others)
    return path


class TestNpz:
    @pytest.mark.parametrize(
        ("part", "label", "dtype"),
        [
            ("train", 2**32 - 1, np.uint32),
            ("train", 2**64 - 1, np.uint64),
            ("train", 2**16, np.int64),
            ("train", -1, np.int64),
            ("test", 2**63, np.uint64),
        ],
    )
    def test_a_huge_label_is_refused(self, part: str, label: int, dtype: type, tmp_path) -> None:
        path = save(tmp_path / "a.npz", **{f"{part}_labels": np.array([0, 1, 2, label], dtype)})
        tracemalloc.start()
        expected = rf"{part}_labels must be classes in \[0, 65536\), got values from {min(0, label)} to {max(2, label)}"
        with pytest.raises(InputError, match=expected):
            data.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()

    def test_labels_are_integers(self, tmp_path) -> None:
        for labels in (np.arange(4.0), np.arange(4).astype("timedelta64[s]"), np.arange(4) > 1):
            with pytest.raises(InputError, match="train_labels must be integers"):
                data.load(save(tmp_path / "a.npz", train_labels=labels))

    def test_an_archive_that_unpacks_to_more_than_images_do(self, tmp_path) -> None:
        save(tmp_path / "a.npz")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**29,)})
        with zipfile.ZipFile(tmp_path / "a.npz", "a", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("other.npy", header.getvalue() + bytes(2**29))
        with pytest.raises(InputError, match=r"a.npz must be an .npz file of at most 268435456 bytes unpacked"):
            data.load(tmp_path / "a.npz")

    def test_an_array_that_claims_a_terabyte(self, tmp_path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
            packed.writestr("train_images.npy", header.getvalue() + bytes(100))
        with pytest.raises(InputError, match=r"a.npz must be a readable .npz file"):
            data.load(tmp_path / "a.npz")


def picture(path: Path, image: Image.Image | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("L", (8, 8), 7)).save(path, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / "data" / part / name / "0.png")
    return tmp_path / "data"


class TestFolder:
    def test_names_in_another_normal_form_are_escaped(self, folder: Path) -> None:
        picture(folder / "train" / "caf\xe9" / "0.png")
        picture(folder / "test" / "cafe\u0301" / "0.png")
        with pytest.raises(InputError) as refused:
            data.load(folder)
        assert str(refused.value).endswith(
            r"test must be the classes of train, café, cat, dog, got those without café and with cafe\u0301"
        )

    @pytest.mark.parametrize("letter", ["\u200b", "\xad", "\xa0"])
    def test_names_with_invisible_characters_are_escaped(self, letter: str, folder: Path) -> None:
        picture(folder / "train" / "bird" / "0.png")
        picture(folder / "test" / f"bird{letter}" / "0.png")
        told = re.escape(f"those without bird and with bird{ascii(letter)[1:-1]}")
        with pytest.raises(InputError, match=told):
            data.load(folder)

    @pytest.mark.parametrize(
        ("name", "told"), [("a\x1b[31mb", r"a\x1b[31mb"), ("a\nb", r"a\nb"), (os.fsdecode(b"a\xff"), r"a\udcff")]
    )
    def test_names_with_control_characters_are_refused(self, name: str, told: str, folder: Path) -> None:
        for part in ("train", "test"):
            picture(folder / part / name / "0.png")
        with pytest.raises(InputError) as refused:
            data.load(folder)
        assert str(refused.value).endswith(f"train must be of folders with names that can be printed, got {told}")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
    def test_sixteen_bits_a_channel_are_refused(self, mode: str, folder: Path) -> None:
        (folder / "train" / "cat" / "1.png").write_bytes(png_of_16_bits(mode))
        with pytest.raises(InputError, match=r"1.png must be an image with 8 bits per channel, got mode"):
            data.load(folder)

    @pytest.mark.parametrize("name", ["1.ppm", "1.sgi", "1.jp2", "1.j2k", "1.avif"])
    def test_more_bits_in_other_formats(self, name: str, folder: Path) -> None:
        (folder / "train" / "cat" / name).write_bytes(of_more_bits(name))
        with pytest.raises(InputError, match=f"{name} must be an image with 8 bits per channel"):
            data.load(folder)

    def test_an_orientation_is_applied(self, folder: Path) -> None:
        image = Image.new("L", (8, 8))
        image.putpixel((0, 0), 255)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise
        picture(folder / "train" / "cat" / "0.png", image, exif=exif)
        read = data.load(folder).train.tensors[0][0, 0]
        assert read.nonzero().tolist() == [[0, 7]]

    @pytest.mark.parametrize("linked", ["train", "train/cat"])
    def test_warns_of_folders_that_are_links(self, linked: str, folder: Path, tmp_path) -> None:
        (folder / linked).rename(tmp_path / "elsewhere")
        (folder / linked).symlink_to(tmp_path / "elsewhere")
        with pytest.warns(UserWarning, match=r"of \d images are symbolic links that lead out of "):
            data.load(folder)

    def test_warns_of_links_that_lead_out(self, folder: Path, tmp_path) -> None:
        picture(tmp_path / "private.png")
        (folder / "train" / "cat" / "1.png").symlink_to("0.png")
        data.load(folder)
        (folder / "train" / "cat" / "2.png").symlink_to(tmp_path / "private.png")
        with pytest.warns(UserWarning, match=r"1 of 6 images are symbolic links that lead out of .*2\.png"):
            data.load(folder)

    @pytest.mark.parametrize("kind", ["a pipe or a device", "a folder", "does not exist"])
    def test_pipes_among_images_are_refused(self, kind: str, folder: Path) -> None:
        path = folder / "train" / "cat" / "1.png"
        {"a pipe or a device": os.mkfifo, "a folder": os.mkdir}.get(kind, lambda path: path.symlink_to("absent"))(path)
        with pytest.raises(InputError, match=f"data must be a folder of images, got .*1.png, which .*{kind}"):
            data.load(folder)


def of_more_bits(name: str) -> bytes:
    """Pillow writes none: in files that can be compressed, the bytes of their headers say it."""
    if name == "1.ppm":
        return b"P6 8 8 4095\n" + bytes(8 * 8 * 6)
    if name == "1.sgi":
        return struct.pack(">hBBHHHH", 474, 0, 2, 3, 8, 8, 3).ljust(512, b"\0") + bytes(8 * 8 * 6)
    packed = io.BytesIO()
    Image.new("RGB", (8, 8)).save(packed, format={"1.avif": "AVIF"}.get(name, "JPEG2000"), no_jp2=name == "1.j2k")
    content = bytearray(packed.getvalue())
    if name == "1.avif":
        content[content.index(b"av1C") + 6] |= 0x40  # high_bitdepth
        content = content.replace(b"\x03\x08\x08\x08", b"\x03\x0a\x0a\x0a")  # its channels and their bits
    else:
        content[content.index(b"\xff\x4f\xff\x51") + 42] = 11  # 12 bits
    return bytes(content)


def png_of_16_bits(mode: str) -> bytes:
    """Grey or colour, with or without alpha; Pillow writes none but "I;16"."""
    channels, kind = {"L": (1, 0), "RGB": (3, 2), "LA": (2, 4), "RGBA": (4, 6)}[mode]
    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(8 * channels * 2) for _ in range(8))
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return out


@pytest.mark.parametrize("read", [lambda path: check_file("file", path), load_tuned_options, data.load])
def test_pipes_and_devices_are_refused(read, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("pipe.npz", "zero.npz"):
        with pytest.raises(InputError, match="which is a pipe or a device"):
            read(tmp_path / name)


def test_an_endless_packed_file_is_read_to_a_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("amun_ext.data.fashion_mnist.LARGEST", 1000)
    (path := tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + bytes(2**20)))
    with pytest.raises(InputError, match=r"must be 8 bytes for shape \(0,\), got 1000"):
        read_idx(path, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, é, \u200c日本", "plain, é, \u200c日本"),
        ("a\nb\tc\x7f", r"a\nb\tc\x7f"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\u2028\udcff", r"\u2028\udcff"),
    ],
)
def test_printable_escapes(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("e\u0301", r"e\u0301"),
        ("c\u0430t", r"c\u0430t"),
        ("\u0430", r"\u0430"),
        ("\u043a\u043e\u0442", "\u043a\u043e\u0442"),
        ("cat", "cat"),
        ("\u732b", "\u732b"),
    ],
)
def test_names_that_look_alike_are_escaped(name: str, expected: str) -> None:
    """Only letters that could all be Latin ones are escaped: not a whole word of another script."""
    assert unambiguous(name) == expected
