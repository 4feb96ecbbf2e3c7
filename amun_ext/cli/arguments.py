"""Arguments that several commands have, and what they say."""

import argparse
import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch

from amun_ext.data import DATASETS
from amun_ext.training import Recipe
from amun_ext.training.recipe import BATCH_NORM, OPTIMIZERS, PRECISIONS
from amun_ext.unlearning import PRESETS
from amun_ext.validation import printable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DATA_HELP = (
    f"{', '.join(DATASETS)}; a folder with train/<class>/*.png and test/<class>/*.png; an .npz with train_images, "
    "train_labels, test_images, test_labels; or your own module:function"
)

RESUMES = "the same command goes on where it was"


class Parser(argparse.ArgumentParser):
    """Takes no empty path, which would be the current folder, and says in one printable line what is wrong."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, path)
        self.register("type", int, integer)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)} ({self.prog} --help says more)\n")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    help: str,  # noqa: A002
    epilog: str = "",
    stopped: str = "nothing half-written was left",
) -> argparse.ArgumentParser:
    """A command of the table; `stopped` is what a Ctrl-C is answered with."""
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--quiet", action="store_true", help="no progress: the result alone, or what went wrong")
    command.set_defaults(run=run, stopped=stopped)
    command.add_argument("--debug", action="store_true", help="show where in the code an error comes from")
    return command


def add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", required=True, help=DATA_HELP)
    command.add_argument(
        "--data-dir", type=Path, help="where fashion-mnist and cifar10 keep their files (default: ./data)"
    )
    command.add_argument("--download", action="store_true", help="fetch them if they are not there")
    command.add_argument(
        "--resize",
        type=count,
        metavar="PIXELS",
        help="scale and crop the images of a folder to squares of this size; later commands take it from the model",
    )
    command.add_argument(
        "--test-fraction",
        type=float,
        metavar="SHARE",
        help="test with this share of a folder that has <class>/*.png without train and test; which images follows "
        "from their files, and later commands take it from the model",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    command.add_argument("--device", type=device, default=default, help="(default: %(default)s)")
    command.add_argument("--seed", type=seed, default=0, help="of everything (default: %(default)s)")


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", type=Path, required=True, help="checkpoint: .safetensors, or .pt/.pth (weights only)"
    )
    command.add_argument(
        "--arch",
        help="its architecture, where the checkpoint does not say (not written by amun train), or your own "
        "module:function, which is only run where it is named",
    )
    command.add_argument("--width", type=int, help="of --arch")


def add_ids(command: argparse.ArgumentParser, required: bool) -> argparse._MutuallyExclusiveGroup:
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument("--ids", help="row numbers of the data, such as 3,17,40-60")
    which.add_argument(
        "--ids-file",
        type=Path,
        help=".txt with one id a line, .json, or .csv with a column id, key (a file's path in the folder of images, of "
        "other data row N), sha256 (of a file) or group",
    )
    command.add_argument(
        "--groups",
        type=Path,
        help=".csv with columns key and group, such as the person of each image, for a column group",
    )
    which.add_argument("--fraction", type=float, help="a random share, drawn by --seed")
    which.add_argument("--class", dest="of_class", metavar="CLASS", help="all of a class, by its name or number")
    return which


def add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--with-images",
        action="store_true",
        help="show some of the forgotten images in the page; unless told so no page of this command has any",
    )


def add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--overwrite", action="store_true", help="replace the result of another request or training")


def add_tables(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tables", action="store_true", help="write every table as .csv and .tex, too, into the folder tables of --out"
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    group.add_argument("--preset", choices=PRESETS, help="options that others have published")
    group.add_argument(
        "--tuned",
        type=Path,
        metavar="FILE",
        action="append",
        help="options that amun tune has chosen; may be given again, for other methods or the other setting",
    )
    add_targets(command)


def add_targets(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--targets",
        type=Path,
        metavar="FILE",
        help="out-of-fold logits that amun prepare has written, for the method distill; amun forget removes the rows "
        "of the forgotten samples from it, whatever the method",
    )


def add_recipe(
    command: argparse.ArgumentParser, title: str, default: Recipe | None = None, *, searched: bool = False
) -> None:
    """Nothing is there unless it was given: `recipe` fills in the rest. `searched`: without what amun tune chooses."""

    def told(name: str) -> str:
        return "" if default is None else f" (default: {getattr(default, name)})"

    group = command.add_argument_group(title)
    group.add_argument("--epochs", type=int, help=f"how often to go through the data{told('epochs')}")
    if searched:
        command.set_defaults(lr=None, schedule=None)
    else:
        group.add_argument("--lr", type=float, help=f"learning rate{told('lr')}")
        group.add_argument("--schedule", help=f"constant, cosine or step:N, a tenth every N epochs{told('schedule')}")
    told_of = f"first ones, in which the learning rate rises linearly{told('warmup_epochs')}"
    group.add_argument("--warmup-epochs", type=int, help=told_of)
    group.add_argument("--optimizer", choices=OPTIMIZERS, help=f"sgd with momentum, or adamw{told('optimizer')}")
    group.add_argument("--momentum", type=float, help=f"of sgd; the first beta of adamw{told('momentum')}")
    group.add_argument("--weight-decay", type=float, help=f"for adamw often 0.05 or more{told('weight_decay')}")
    group.add_argument("--batch-size", type=int, help=f"samples of a step{told('batch_size')}")
    group.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="random crop and horizontal flip of true images"
    )
    group.add_argument(
        "--batch-norm",
        choices=BATCH_NORM,
        help="train: batch statistics; frozen: the running ones, as they are; eval: these, and no dropout either"
        + told("batch_norm"),
    )
    group.add_argument(
        "--precision",
        choices=tuple(PRECISIONS)[1:],
        help="of autocast, for mixed precision (default: the model's own)",
    )
    group.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, help="of images in memory: faster for many networks"
    )
    group.add_argument(
        "--accumulation-steps",
        type=int,
        help=f"pieces that a batch is computed in, to need less memory{told('accumulation_steps')}",
    )


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `Recipe` that were given, of those that add_recipe asks for."""
    return given(options, *(field.name for field in fields(Recipe) if field.name in options))


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def path(text: str) -> Path:
    """The type of what is a Path."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    return Path(text)


def integer(text: str) -> int:
    """The type of what is an int: digits alone, where Python takes 1_0 and those of other scripts as well."""
    if not re.fullmatch("[+-]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {reprlib.repr(text)}")
    return int(text)


def count(text: str) -> int:
    """The type of a number that is left out for none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {reprlib.repr(text)}")
    return int(text)


def percent(text: str) -> float:
    """The type of a number from 0 to 100."""
    value = float(text) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,20})?", text) else math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 100, got {reprlib.repr(text)}")
    return value


def device(name: str) -> torch.device:
    """The type of --device."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"must be one that torch has here, got {name!r}: {reason}") from error


def seed(text: str) -> int:
    """The type of --seed."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**31 - 1, got {reprlib.repr(text)}")
    return int(text)
