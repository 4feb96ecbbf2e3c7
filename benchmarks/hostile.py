"""Bad inputs for the command line, drawn by a seed: files of ids, checkpoints, .npz files, image folders, arguments.

Every kind is a function of a random generator and an empty folder. It makes files there and returns the arguments of a
command, most of which are wrong in some way; some happen to be right.
"""

import contextlib
import io
import json
import os
import pickle
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from amun_ext import cli
from amun_ext.models.small_cnn import small_cnn

SAMPLES, CLASSES, SIDE = 60, 4, 8
# fmt: off
# Values of another type, deep, large, of a later version, or no JSON.
JSONS = (
    "", "null", "true", "[]", "{}", "3", "-1", "3.5", '"3"', "NaN", "[NaN]", "1e999", "-Infinity", "[[1]]", "[true]",
    '{"3": 4}', "[1, 2", "[1,]", "[3, 3]", "[-1]", "[1.0]", '["1"]', "9" * 5000, f"[{'9' * 30}]", "[1e3]", "\x00",
    "[" * 50_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "x" * 100_000, "\U0001f600", "\u0663", "0x10",
    '{"epochs": "3", "lr": 0.1}', '{"epochs": 3.5, "lr": 0.1}', '{"epochs": true, "lr": 0.1}', '{"epochs": 3}',
    '{"epochs": 3, "lr": -1}', '{"epochs": 3, "lr": 1e999}', '{"epochs": 3, "lr": [0.1]}', '{"lr": 1, "epochs": null}',
    '{"epochs": 3, "lr": 0.1, "schedule": 5}', '{"epochs": 3, "lr": 0.1, "of_later": {}}', '{"method": ["amun"]}',
    '{"epochs": 1, "lr": 0.1, "batch_size": 0}', '{"epochs": 1, "lr": 0.1, "schedule": ["step:1"]}', "[1, 2, 59, 60]",
)
TEXTS = (
    "", " ", "\x00", "\v", "\x85", "\u2028", "\ufeff", '"', "'", ",", ";", "\t", "\r", "\n", "\r\n", "#", "-", "--",
    "5", "-5", "5-", "5-3", "1-999999999", "1-9999999999999999999999", "\u0663", "\uff11", "5.0", "1e3", "0x5", "5_0",
    "nan", "id", "id,id", "index,id", "\x1b[31m", "a" * 10_000, "../../etc/passwd", "1,2,3", "[1]", "true", "2", "3",
    "7", "59", "60", "=1",
)
NUMBERS = (
    "", "0", "-1", "nan", "inf", "-inf", "1e999", "1e300", "1e-300", "0.5", "3", "2147483648", "9" * 5000, "x",
    "\uff11", "1_0",
)
OPTIONS = (
    "--epochs", "--lr", "--batch-size", "--accumulation-steps", "--seed", "--width", "--num-models", "--fraction",
    "--mask-fraction", "--min-margin", "--refine", "--quantize", "--count", "--seeds", "--trials",
    "--max-accuracy-drop", "--retrain",
)
WORDS = (
    "--method", "--methods", "--schedule", "--precision", "--preset", "--search", "--part", "--class", "--device",
    "--arch", "--objective", "--settings", "--batch-norm", "--ids", "--data", "--model",
)
NAMES = ("amun", "small-cnn", "vgg19", "os:getcwd", "os:_exit", "json:loads", "nowhere:f", "cuda", "cpu:7")
PLACES = (
    "--out", "--model", "--ids-file", "--original", "--references", "--shadows", "--retrained-model", "--tuned",
    "--data",
)
SPOTS = (  # in the folder that the command is given in
    "", ".", "/proc/x", "/dev/null", "/dev/zero", "link", "data.npz/x", "x" * 300, "a\x1b[31m\nb", "tuned.json",
    "link/deeper", "/dev/fd/0",
)
# fmt: on


def seen(images: np.ndarray) -> np.ndarray:
    return (images * 255).astype(np.uint8)


def arrays() -> dict[str, np.ndarray]:
    """Data that are right."""
    draw = np.random.RandomState(0)
    made = {}
    for part, count in (("train", SAMPLES), ("test", 20)):
        made[f"{part}_images"] = seen(draw.rand(count, SIDE, SIDE))
        made[f"{part}_labels"] = np.arange(count) % CLASSES
    return made


def metadata() -> dict[str, str]:
    recipe = json.dumps({"epochs": 1, "lr": 0.1, "batch_size": 32})
    return {"arch": "small-cnn", "width": "2", "recipe": recipe, "forgotten": "[1, 2]", "seconds": "1.500"}


def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: each.clone() for name, each in small_cnn(CLASSES, 1, 2).state_dict().items()}


def right(folder: Path) -> dict[str, str]:
    """A checkpoint and data that are right, and where the results go."""
    if not (folder / "data.npz").exists():
        np.savez(folder / "data.npz", **arrays())
    if not (folder / "model.safetensors").exists():
        save_file(state(), folder / "model.safetensors", metadata())
    return {"--model": f"{folder}/model.safetensors", "--data": f"{folder}/data.npz", "--out": f"{folder}/out"}


def command(draw: random.Random, options: dict[str, str], *more: str, name: str | None = None) -> list[str]:
    """Of all commands that take a checkpoint, in as short a form as there is."""
    short = {
        "forget": ["--method=ga", "--epochs=1", "--ids=5-9"],
        "search": ["--methods=ffgsm", "--no-curves"],
        "audit": ["--ids=5-29"],
        "shadows": ["--num-models=6", "--method=ga", "--epochs=1"],
        "references": ["--num-models=2", "--epochs=1"],
    }
    name = name or draw.choice(("forget", "search", "audit", "references") * 4 + ("shadows",))  # by what they cost
    default = [each for each in short.get(name, []) if not (each.startswith("--ids") and "--ids-file" in options)]
    return [name, *(part for pair in options.items() for part in pair), *default, *more]


def no_file(draw: random.Random, path: Path) -> None:
    """Something of that name which is no regular file, or none that can be read."""
    ways: list[Callable[[], object]] = [
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("absent"),
        lambda: path.symlink_to(path),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(draw.randbytes(2000)),
        lambda: None,
    ]
    draw.choice(ways)()


def damage(draw: random.Random, path: Path) -> None:
    """Some bytes of a file are others, or missing."""
    content = bytearray(path.read_bytes())
    way = draw.randrange(4)
    if way == 0:
        del content[draw.randrange(len(content)) :]
    elif way == 1:
        for _ in range(draw.choice((1, 3, 100))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif way == 2:  # where headers and lengths are
        for _ in range(draw.choice((1, 8))):
            content[draw.randrange(min(80, len(content)))] = draw.choice((0, 255, draw.randrange(256)))
    else:
        content[draw.randrange(len(content)) : 0] = draw.randbytes(draw.choice((1, 1000)))
    path.write_bytes(content)


def ids(draw: random.Random, folder: Path) -> list[str]:
    options = right(folder)
    name = draw.choice(("ids.txt", "ids.csv", "ids.json", "ids", "i\x1b[31m\nds.csv", "ids.CSV"))
    path, way = folder / name, draw.randrange(8)
    cells = [str(number) for number in draw.sample(range(3, SAMPLES), 5)]
    if way == 0:
        no_file(draw, path)
    elif way == 1:  # large, or of the kind that grows
        unit = draw.choice(("7\n", "7,", "[[],", "1-59\n", '"', "id\n", "0" * 100 + "1\n", "id,"))
        path.write_text(unit * draw.choice((100_000, 12_000_000)))
    elif way == 2:
        path.write_text(draw.choice(JSONS), encoding="utf-8", errors="surrogatepass")
    elif way == 3:
        return command(
            draw,
            options,
            f"--ids={draw.choice(',-')}{','.join([*cells, draw.choice(TEXTS)])}".replace("\0", ""),
            name="forget",
        )
    else:
        for _ in range(draw.choice((0, 1, 1, 3))):
            cells.insert(draw.randrange(len(cells) + 1), draw.choice(TEXTS))
        rows = {".csv": "id\n" + "\n".join(cells), ".json": f"[{', '.join(cells)}]"}.get(path.suffix, "\n".join(cells))
        encoding = draw.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
        path.write_bytes(rows.encode(encoding))
        if way == 7:
            damage(draw, path)
    return command(draw, options | {"--ids-file": str(path)}, name=draw.choice(("forget", "audit")))


def record(draw: random.Random, folder: Path) -> list[str]:
    """Metadata of a checkpoint."""
    told = metadata()
    for _ in range(draw.choice((1, 1, 1, 3))):
        key = draw.choice((*told, "training_data", "unlearning", "manifest", "init", "amun_ext", "format", "\x1b[31m"))
        told[key] = draw.choice((*JSONS, *TEXTS, *NUMBERS)).encode(errors="replace").decode()
    save_file(state(), folder / "model.safetensors", told)
    return command(draw, right(folder))


def weights(draw: random.Random, folder: Path) -> list[str]:
    """The rest of a checkpoint."""
    options, tensors = right(folder), state()
    suffix, way = draw.choice((".safetensors", ".pt", ".pth", ".bin", "")), draw.randrange(8)
    path, name = folder / f"other{suffix}", draw.choice([*tensors])
    odd: list[Callable[[torch.Tensor], object]] = [
        lambda each: each * draw.choice((torch.nan, torch.inf, 0.0)),
        lambda each: torch.zeros(1).expand(2 ** draw.choice((20, 38, 50))),
        lambda each: each.to(draw.choice((torch.complex64, torch.int64, torch.bool, torch.float16, torch.float64))),
        lambda each: each.reshape(-1)[:-1],
        lambda each: each.reshape(1, *each.shape),
        lambda each: torch.ones(3, 2).to_sparse(),
        lambda each: torch.empty(each.shape, device="meta"),
        lambda each: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8),
        lambda each: [1, {"a": None}],
        lambda each: "text",
    ]
    if way == 0:
        no_file(draw, path)
    elif way == 1:
        content = draw.choice(
            (tensors, {"model": tensors}, [tensors], torch.zeros(3), {}, {1: tensors}, None, {"state_dict": 3})
        )
        torch.save(content, path, _use_new_zipfile_serialization=draw.random() < 0.7)
    elif way == 2:
        path.write_bytes(pickle.dumps(draw.choice((tensors, print, Path, os.getcwd, {"a": 1}))))
    elif way == 3:  # a header that claims more than there is
        shape = draw.choice(([2**40], [2**31, 2**31], [-1], [0], ["3"], 3, [[1]]))
        header = {
            "0.weight": {"dtype": draw.choice(("F32", "F64", "X9", 3)), "shape": shape, "data_offsets": [0, 2**42]}
        }
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", draw.choice((len(text), 2**40, 2**63, 0))) + text + bytes(100))
        if draw.random() < 0.3:
            os.truncate(path, 2**42)
    elif way == 4:  # a .pt that unpacks to more than it is
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for each in old.namelist():
                new.writestr(each, old.read(each) if "/data/" not in each else bytes(2**26))
    else:
        with warnings.catch_warnings(action="ignore"):  # quantised tensors are on their way out
            tensors[name] = draw.choice(odd)(tensors[name])
        if draw.random() < 0.3:
            del tensors[draw.choice([*tensors])]
        try:
            save_file(tensors, path, metadata()) if suffix == ".safetensors" else torch.save(tensors, path)
        except Exception:  # of what the format refuses
            torch.save(tensors, path)
        if way == 7:
            damage(draw, path)
    more = ["--arch", "small-cnn", "--width", draw.choice(("2", "2", "2", "3", "90000", "100000000000"))]
    return command(draw, options | {"--model": str(path)}, *more)


def npz(draw: random.Random, folder: Path) -> list[str]:
    options, made, path = right(folder), arrays(), folder / "other.npz"
    part = draw.choice(("train", "test"))
    images, labels = f"{part}_images", f"{part}_labels"
    count = len(made[labels])
    types = ("f8", "f2", "c8", "?", "i8", "u4", "u8", "i1", "M8[s]", "S3", "U3", "O", "f16")
    changes: list[Callable[[], object]] = [
        lambda: made.pop(draw.choice([*made])),
        lambda: made.update({labels: made[labels].astype(draw.choice(types))}),
        lambda: made.update({images: made[images].astype(draw.choice(types))}),
        lambda: made.update({images: made[images] / np.float32(draw.choice((255, 1, -255)))}),
        lambda: made.update({images: np.full((count, SIDE, SIDE), draw.choice((np.nan, np.inf, 2.0, -1e-9)))}),
        lambda: made.update({labels: np.full(count, draw.choice((2**32 - 1, 70_000, 65_535, 200)), np.uint32)}),
        lambda: made.update({labels: np.full(count, draw.choice((-1, -(2**63), 2**62)))}),
        lambda: made.update({labels: made[labels][: draw.randrange(count)]}),
        lambda: made.update({labels: made[labels][:, None]}),
        lambda: made.update({images: made[images][: draw.randrange(count)]}),
        lambda: made.update({images: made[images][:, :0]}),
        lambda: made.update({images: made[images][..., None, None]}),
        lambda: made.update({images: made[images][:, None, :1, :1]}),
        lambda: made.update({images: np.float32(0.5), labels: np.int64(1)}),
        lambda: made.update({name: each[:0] for name, each in made.items()}),
        lambda: made.update({name: each[:1] for name, each in made.items()}),
        lambda: made.update({labels: np.zeros(count, np.int64)}),
    ]
    for _ in range(draw.choice((1, 1, 2))):
        with contextlib.suppress(KeyError, IndexError, ValueError):  # what another change has taken away
            draw.choice(changes)()
    np.savez(path, **made)
    way = draw.randrange(6)
    if way == 0:
        damage(draw, path)
    elif way == 1:
        path.unlink()
        no_file(draw, path)
    elif way == 2:
        header = io.BytesIO()
        shape = draw.choice(((2**40, 8, 8), (2**62,), (10**30,), (-1,), (2**20, 2**20, 0)))
        told = {"descr": draw.choice(("|u1", "<f8", "|O", "<U9")), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, told)
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr(f"{images}.npy", header.getvalue() + bytes(100))
    return command(draw, options | {"--data": str(path)})


def images(draw: random.Random, folder: Path) -> list[str]:
    options, root = right(folder), folder / "folder"
    names = [*"abcd"]
    odd = ("caf\xe9", "cafe\u0301", "\x1b[31m", "a\nb", os.fsdecode(b"\xff"), "\u202egpj", " ", "x" * 200, ".hidden")
    if draw.random() < 0.3:
        names[draw.randrange(4)] = draw.choice(odd)
    for part in ("train", "test"):
        for name in names:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(15 if part == "train" else 5):
                pixels = Image.frombytes("L", (SIDE, SIDE), draw.randbytes(SIDE * SIDE))
                pixels.save(root / part / name / f"{number:02}.png")
    where = root / draw.choice(("train", "test"))
    path = where / names[0] / "00.png"
    side = draw.choice((1, SIDE - 1, SIDE, 3000))
    form, mode = (
        draw.choice(("PNG", "TIFF", "GIF", "BMP")),
        draw.choice(("L", "RGB", "RGBA", "1", "P", "LA", "I;16", "F", "CMYK")),
    )
    changes: list[Callable[[], object]] = [
        lambda: (path.unlink(), no_file(draw, path)),
        lambda: damage(draw, path),
        lambda: path.write_bytes(draw.randbytes(draw.choice((0, 10, 5000)))),
        lambda: path.write_bytes(header_of(draw.choice((1, 2**16, 2**31 - 1)))),
        lambda: Image.new(mode, (side, SIDE)).save(path, form),
        lambda: (where / draw.choice(odd)).mkdir(exist_ok=True),
        lambda: os.rename(where / names[1], where / draw.choice(odd)),
        lambda: [each.unlink() for each in (where / names[1]).iterdir()],
        lambda: (where / names[2] / "deeper").mkdir(),
        lambda: (where / names[2] / "notes.txt").write_text("hello"),
        lambda: os.rename(where, root / "elsewhere"),
        lambda: (where / "e").symlink_to(draw.choice((where, "/proc/self", "/dev", "absent"))),
        lambda: (where / names[2] / draw.choice(("n\x1b[31m.png", os.fsdecode(b"\xff.png")))).write_text("no image"),
    ]
    for _ in range(draw.choice((1, 1, 2))):
        with contextlib.suppress(OSError, ValueError):  # or a mode that the format has not
            draw.choice(changes)()
    return command(draw, options | {"--data": str(root)})


def header_of(side: int) -> bytes:
    """Of a PNG that claims to be large."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0) + bytes(50)


def options_of(name: str) -> set[str]:
    """What a command takes, by what it says of itself."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
    return set(re.findall(r"--[a-z-]+", said.getvalue()))


def arguments(draw: random.Random, folder: Path) -> list[str]:
    commands = ("forget", "search", "audit", "shadows", "references", "compare", "tune", "train")
    options, name, more = right(folder), draw.choice(commands), []
    (folder / "link").symlink_to(folder / "absent")
    (folder / "tuned.json").write_text(draw.choice(JSONS), encoding="utf-8", errors="replace")
    pools = ((OPTIONS, NUMBERS), (WORDS, (*TEXTS, *NUMBERS, *NAMES)), (PLACES, SPOTS))
    known = options_of(name)
    for _ in range(draw.choice((1, 1, 2, 3))):
        pool, values = draw.choice(pools)
        has = [option for option in pool if option in known or draw.random() < 0.02]
        option, value = draw.choice(has), draw.choice(values).replace("\0", "")
        if option in options:
            options[option] = value
        else:
            more.append(f"{option}={value}")
    if name == "train":
        options["--model"] = draw.choice(("small-cnn", options["--model"]))
        options["--out"] += ".safetensors"
        more += ["--epochs=1", "--width=2"]
    if name in ("compare", "tune") and not any(each.startswith(("--ids", "--fraction", "--class")) for each in more):
        more.append("--ids=5-9")
    return command(draw, options, *more, name=name)


KINDS = {each.__name__: each for each in (ids, record, weights, npz, images, arguments)}
