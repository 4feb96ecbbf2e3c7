"""Arguments that several commands share."""

import argparse
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from amun_ext import defaults
from amun_ext.defaults import LARGE_IMAGE, LARGE_NEAR_COPY, NEAR_COPY, PRESETS
from amun_ext.recipe import BATCH_NORM, OPTIMIZERS, PRECISIONS, TRADES, Recipe
from amun_ext.validation import printable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

RESUMES = "run the same command again to resume"

# Names in OPTIONS, the table of the options that several commands have.
DATA = ("--data", "--data-dir", "--download", "--resize", "--test-fraction", "--device", "--seed")
CHECKPOINT = ("--model", "--arch", "--width")


class Parser(argparse.ArgumentParser):
    """Refuses an empty path, which would be the current folder, and reports an error in one printable line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, path)
        self.register("type", int, integer)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)} ({self.prog} --help says more)\n")


def add_command(
    commands: Commands,
    name: str,
    help: str,  # noqa: A002
    epilog: str = "",
    stopped: str = "no file is half-written",
) -> argparse.ArgumentParser:
    """Add a command, which is run by `run` in amun_ext/cli/NAME.py. `stopped` is the message after Ctrl-C."""
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--quiet", action="store_true", help="print no progress, only the result or the error")
    command.set_defaults(run=name, stopped=stopped)
    command.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return command


def add_options(command: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        command.add_argument(name, **OPTIONS[name])


def add_ids(command: argparse.ArgumentParser, required: bool) -> argparse._MutuallyExclusiveGroup:
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument("--ids", help="row numbers of the data, such as 3,17,40-60")
    which.add_argument(
        "--ids-file",
        type=Path,
        help=".txt with one id per line, .json with a list of ids, or .csv with a column id, key (path of the image in "
        "its folder; row N for other data), sha256 (of the image file) or group",
    )
    command.add_argument(
        "--groups",
        type=Path,
        help=".csv with columns key and group, such as the person in an image; needed if --ids-file has a column group",
    )
    which.add_argument("--fraction", type=float, help="random share of the training set, drawn by --seed")
    which.add_argument("--class", dest="of_class", metavar="CLASS", help="all samples of a class, by name or number")
    return which


def add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    group.add_argument("--preset", choices=PRESETS, help="options from a publication")
    group.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        action="append",
        help="options chosen by amun tune; repeat it for files of other methods or of the other setting",
    )
    add_options(command, "--targets", "--held-out")


def add_recipe(
    command: argparse.ArgumentParser, title: str, default: Recipe | None = None, tuned: Sequence[str] = ()
) -> None:
    """The fields of a `Recipe`, without those that are `tuned`; an option that is not given stays None."""
    group = command.add_argument_group(title)
    for field, settings in RECIPE.items():
        if field not in tuned:
            value = getattr(default, field, None)
            note = "" if value is None or isinstance(value, bool) else f" (default: {value})"
            group.add_argument(f"--{field.replace('_', '-')}", **{**settings, "help": settings["help"] + note})


def given_options(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def given_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `Recipe` that were given."""
    return given_options(options, *RECIPE)


def path(text: str) -> Path:
    """The argument type for Path."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    return Path(text)


def integer(text: str) -> int:
    """The argument type for int: ASCII digits only, where Python takes 1_0 and digits of other scripts as well."""
    if not re.fullmatch("[+-]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {reprlib.repr(text)}")
    return int(text)


def count(text: str) -> int:
    """The argument type for a count from 1 on."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {reprlib.repr(text)}")
    return int(text)


def percent(text: str) -> float:
    """The argument type for a percentage."""
    value = float(text) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,20})?", text) else math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 100, got {reprlib.repr(text)}")
    return value


def device(name: str) -> str:
    """The type of --device. Whether there is such a device is seen when torch is imported, see `dispatch`."""
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {reprlib.repr(name)}")
    return name


def seed(text: str) -> int:
    """The type of --seed."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**31 - 1, got {reprlib.repr(text)}")
    return int(text)


OPTIONS: Mapping[str, dict[str, Any]] = {
    "--data": {
        "required": True,
        "help": f"{', '.join(defaults.names('datasets'))}; a folder with train/<class>/*.png and "
        "test/<class>/*.png; an .npz with train_images, train_labels, test_images, test_labels; or your own "
        "module:function",
    },
    "--data-dir": {
        "type": Path,
        "help": "folder with the files of fashion-mnist, cifar10 or tiny-imagenet (default: ./data)",
    },
    "--download": {"action": "store_true", "help": "download these files if they are missing"},
    "--resize": {
        "type": count,
        "metavar": "PIXELS",
        "help": "scale and crop the images of a folder to squares of this size; later commands read it from the model",
    },
    "--test-fraction": {
        "type": float,
        "metavar": "SHARE",
        "help": "hold out this share as the test set, for a folder of <class>/*.png without train and test; the split "
        "depends only on the contents of the files, and later commands read it from the model",
    },
    "--device": {
        "type": device,
        "help": "cpu, cuda or cuda:N (default: cuda if there is one, otherwise cpu)",
    },
    "--seed": {"type": seed, "default": 0, "help": "random seed (default: %(default)s)"},
    "--model": {
        "type": Path,
        "required": True,
        "help": "checkpoint: .safetensors, or .pt/.pth (weights only)",
    },
    "--arch": {
        "help": "architecture, if the checkpoint does not name it, or your own module:function, which is run only if "
        "you give it here"
    },
    "--width": {"type": int, "help": "channels of the first layer of --arch"},
    "--init": {
        "type": Path,
        "help": "checkpoint with the weights that training started from, for a model that was fine-tuned (default: new "
        "random weights by the seed; your own module:function is called again; frozen weights stay)",
    },
    "--include-duplicates": {"action": "store_true", "help": "also forget identical and near copies under other ids"},
    "--duplicate-distance": {
        "type": float,
        "metavar": "DISTANCE",
        "help": "distance below which images are near copies, from 0 (only identical ones) to 1 (default: "
        f"{LARGE_NEAR_COPY:g}, for images below {LARGE_IMAGE} pixels {NEAR_COPY:g})",
    },
    "--targets": {
        "type": Path,
        "metavar": "FILE",
        "help": "out-of-fold logits from amun prepare, for the method distill; with any method amun forget removes the "
        "rows of the forgotten samples from this file",
    },
    "--held-out": {
        "metavar": "DATA",
        "help": "for the method regun: the training samples of this data set (what --data takes), which must be in "
        "neither set of --data",
    },
    "--workers": {
        "type": int,
        "default": 1,
        "help": "number of processes; each does one model, trial or cell at a time (default: %(default)s)",
    },
    "--out": {"type": Path, "required": True, "help": "folder of the results"},
    "--overwrite": {"action": "store_true", "help": "replace the result of another request or training"},
    "--with-images": {
        "action": "store_true",
        "help": "show some of the forgotten images in the HTML page (default: none)",
    },
    "--profile": {
        "action": "store_true",
        "help": "also print where the time went: the seconds of each stage and their share",
    },
    "--tables": {
        "action": "store_true",
        "help": "also write every table as .csv and .tex into the folder tables in --out",
    },
}
RECIPE: Mapping[str, dict[str, Any]] = {
    "epochs": {"type": int, "help": "passes over the data"},
    "lr": {"type": float, "help": "learning rate"},
    "schedule": {"help": "constant, cosine or step:N (a tenth every N epochs)"},
    "warmup_epochs": {"type": int, "help": "first epochs, in which the learning rate rises linearly"},
    "optimizer": {"choices": OPTIMIZERS, "help": "sgd with momentum, or adamw"},
    "momentum": {"type": float, "help": "momentum of sgd, first beta of adamw"},
    "weight_decay": {"type": float, "help": "for adamw often 0.05 or more"},
    "batch_size": {"type": int, "help": "samples per step"},
    "augment": {
        "action": argparse.BooleanOptionalAction,
        "help": "random crop and horizontal flip, not of adversarial examples",
    },
    "batch_norm": {
        "choices": BATCH_NORM,
        "help": "train: batch statistics; frozen: running statistics, not updated; eval: the same, and no dropout",
    },
    "precision": {
        "choices": PRECISIONS[1:],
        "help": "dtype of autocast, for mixed precision (default: no autocast)",
    },
    "channels_last": {
        "action": argparse.BooleanOptionalAction,
        "help": "channels-last memory format of images, which makes many networks faster",
    },
    "accumulation_steps": {"type": int, "help": "micro-batches per step, which saves memory"},
    "robust": {"choices": tuple(TRADES), "help": "train against adversarial examples, by TRADES (default: no)"},
    "spectral_norm": {
        "type": float,
        "help": "largest operator norm of a convolution or dense layer (default: no limit)",
    },
}
