"""The command line: amun demo | train | forget | info."""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import amun_ext
from amun_ext import info, models
from amun_ext.checks import InputError, require
from amun_ext.data import DATASETS, load
from amun_ext.deletion import forget_ids, split
from amun_ext.evaluation import evaluate
from amun_ext.experiments import demo
from amun_ext.search import find_min_adversarial
from amun_ext.training import Part, Recipe, fit
from amun_ext.unlearning import overlap, unlearn
from amun_ext.unlearning.amun import RECIPE

DATA_HELP = (
    f"{', '.join(DATASETS)}; a folder with train/<class>/*.png and test/<class>/*.png; an .npz with train_images, "
    "train_labels, test_images, test_labels; or your own module:function"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 for a failure and 2 for bad input, each with one line on standard error."""
    options = parser().parse_args(arguments)
    sys.path.insert(0, "")  # a user's own module:function is found where they stand
    warnings.showwarning = lambda message, *_, **__: print(f"amun: warning: {message}", file=sys.stderr)
    try:
        options.run(options)
    except InputError as error:
        print(f"amun: error: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"amun: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("amun: stopped; nothing half-written was left", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="amun",
        description="Make a trained image classifier forget some of its training samples, and measure how well it did.",
        epilog="Start with: amun demo",
    )
    top.add_argument("--version", action="version", version=f"amun_ext {amun_ext.__version__}")
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, function: object, help: str, epilog: str = "") -> argparse.ArgumentParser:  # noqa: A002
        made = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=function)
        return made

    show = command(
        "demo", run_demo, "train a small network on the embedded images, forget a tenth, compare with retraining"
    )
    show.add_argument(
        "--out", type=Path, default=Path("amun-demo"), help="folder of the results (default: %(default)s)"
    )
    show.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")

    train = command(
        "train",
        run_train,
        "train a classifier and keep its checkpoint",
        "example:\n  amun train --data fashion-mnist-mini --model small-cnn --epochs 60 --lr 0.05 --schedule cosine "
        "--out original.safetensors",
    )
    add_data(train)
    train.add_argument("--model", required=True, help=f"{', '.join(models.MODELS)}, or your own module:function")
    train.add_argument("--width", type=int, help="channels of the first layer (default: the architecture's own)")
    train.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    add_recipe(train, demo.TRAINING)

    forget = command(
        "forget",
        run_forget,
        "unlearn some training samples with AMUN and report on it",
        "examples:\n"
        "  amun forget --model original.safetensors --data fashion-mnist-mini --ids 3,17,40-60 --out forgotten\n"
        "  amun forget --model net.pt --arch my_net:build --data my_data:load --ids-file ids.csv --out forgotten\n\n"
        "writes model.safetensors, report.json and report.html into the folder --out",
    )
    add_data(forget)
    forget.add_argument(
        "--model", type=Path, required=True, help="checkpoint: .safetensors, or .pt/.pth (weights only)"
    )
    forget.add_argument(
        "--arch", help="its architecture, where the checkpoint does not say (not written by amun train)"
    )
    forget.add_argument("--width", type=int, help="of --arch")
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", help="rows of the training set, such as 3,17,40-60")
    which.add_argument("--ids-file", type=Path, help=".txt with one id a line, .csv with a column id, or .json")
    which.add_argument("--fraction", type=float, help="a random share, drawn by --seed")
    forget.add_argument("--out", type=Path, required=True, help="folder of the results")
    forget.add_argument("--no-retain", action="store_true", help="fine-tune without the rest of the training set")
    forget.add_argument("--without-forget", action="store_true", help="leave the forget samples themselves out (D_F)")
    forget.add_argument("--retrain", action="store_true", help="also retrain from scratch, to compare with")
    add_recipe(forget, RECIPE)

    command("info", lambda _: print(info.text()), "print versions, ops available per device, and build flags")
    return top


def add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", required=True, help=DATA_HELP)
    command.add_argument("--root", type=Path, help="where fashion-mnist and cifar10 keep their files (default: ./data)")
    command.add_argument("--download", action="store_true", help="fetch them if they are not there")
    command.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")


def add_recipe(command: argparse.ArgumentParser, default: Recipe) -> None:
    group = command.add_argument_group("fine-tuning" if default is RECIPE else "training")
    group.add_argument("--epochs", type=int, default=default.epochs, help="(default: %(default)s)")
    group.add_argument("--lr", type=float, default=default.lr, help="learning rate (default: %(default)s)")
    group.add_argument(
        "--schedule",
        default=default.schedule,
        help="constant, cosine or step:N, a tenth every N epochs (default: %(default)s)",
    )
    group.add_argument("--batch-size", type=int, default=default.batch_size, help="(default: %(default)s)")
    group.add_argument("--augment", action="store_true", help="random crop and horizontal flip of true images")


def recipe(options: argparse.Namespace) -> Recipe:
    names = ("epochs", "lr", "schedule", "batch_size", "augment")
    return Recipe(**{name: getattr(options, name) for name in names})


def run_demo(options: argparse.Namespace) -> None:
    check_folder(options.out)
    torch.set_num_threads(1)  # so small a network gains little from a second one, and loses much on a busy machine
    report, trained = demo.run(options.seed, progress=True)
    shape = {"arch": demo.MODEL, "num_classes": "10", "in_channels": "1", "recipe": json.dumps(asdict(demo.TRAINING))}
    models.save_checkpoint(options.out / "original.safetensors", trained[demo.ORIGINAL], shape)
    models.save_checkpoint(options.out / "unlearned.safetensors", trained[demo.HEADLINE], shape)
    write_report(report, options.out)


def run_train(options: argparse.Namespace) -> None:
    plan = recipe(options)
    check_folder(options.out.parent)
    require(options.out.suffix == ".safetensors", "--out", "a path that ends in .safetensors", options.out)
    splits = load(options.data, options.root, options.download)
    images, labels = splits.train.tensors
    shape = {"num_classes": len(splits.classes), "in_channels": images.shape[1]}
    torch.manual_seed(options.seed)
    model = models.build(options.model, **shape, width=options.width).to(device(options))
    fit(model, [Part(images, labels)], plan, seed=options.seed, progress=True)
    width = {} if options.width is None else {"width": str(options.width)}
    metadata = {"arch": options.model, "data": options.data, "recipe": json.dumps(asdict(plan))} | width
    models.save_checkpoint(options.out, model, metadata | {key: str(value) for key, value in shape.items()})
    report = evaluate({"trained": model}, forget=splits.train, retain=splits.train, test=splits.test, baseline=None)
    row = report.rows["trained"]
    print(f"accuracy {row['RA']:.2f} % on the training set, {row['TA']:.2f} % on the test set; wrote {options.out}")


def run_forget(options: argparse.Namespace) -> None:
    plan = recipe(options)
    check_folder(options.out)
    splits = load(options.data, options.root, options.download)
    ids = forget_ids(
        len(splits.train), ids=options.ids, file=options.ids_file, fraction=options.fraction, seed=options.seed
    )
    forget, retain = split(splits.train, ids)
    kept = sorted(set(range(len(splits.train))) - set(ids.tolist()))
    copies = [f"{ids[row]} = {kept[other]}" for row, other in overlap(forget, retain)]
    require(not copies, "the ids", "complete", f"samples with copies under ids that are retained: {copies[:5]}")
    original, metadata = rebuilt(options, len(splits.classes), splits.train.tensors[0].shape[1])
    if options.retrain:
        require("recipe" in metadata, "--retrain", "used with a checkpoint that amun train wrote", options.model)

    seconds, made = {}, {"no-op (original)": original}
    start = time.perf_counter()
    adversarial = find_min_adversarial(original, *forget.tensors, progress=True)
    made["AMUN"] = unlearn(
        original,
        forget,
        None if options.no_retain else retain,
        include_forget=not options.without_forget,
        adversarial=adversarial,
        recipe=plan,
        seed=options.seed,
        progress=True,
    )
    seconds["AMUN"] = time.perf_counter() - start
    if options.retrain:
        start = time.perf_counter()
        training = Recipe(**json.loads(metadata["recipe"]))
        made["retrain"] = unlearn(
            original, forget, retain, method="retrain", recipe=training, seed=options.seed + 1000, progress=True
        )
        seconds["retrain"] = time.perf_counter() - start
    report = evaluate(
        made,
        forget=forget,
        retain=retain,
        test=splits.test,
        seconds=seconds,
        baseline="retrain" if options.retrain else None,
        headline="AMUN",
        adversarial=adversarial,
        classes=splits.classes,
        facts={
            "data": options.data,
            "model": str(options.model),
            "forgotten": len(ids),
            "sets": " + ".join(
                name
                for name, used in (("D_R", not options.no_retain), ("D_F", not options.without_forget), ("D_A", True))
                if used
            ),
            "seed": options.seed,
            "fine-tuning": asdict(plan),
            "versions": info.versions(),
        },
    )
    models.save_checkpoint(options.out / "model.safetensors", made["AMUN"], metadata)
    write_report(report, options.out)


def rebuilt(options: argparse.Namespace, num_classes: int, in_channels: int) -> tuple[nn.Module, dict[str, str]]:
    """The model of --model, and what its checkpoint says of it."""
    metadata = models.read_metadata(options.model) if options.model.suffix == ".safetensors" else {}
    arch = options.arch or metadata.get("arch")
    require(arch is not None, "--arch", f"given, because {options.model} does not name its architecture", "none")
    width = options.width or (int(metadata["width"]) if "width" in metadata else None)
    model = models.build(str(arch), num_classes=num_classes, in_channels=in_channels, width=width)
    models.load_checkpoint(options.model, model)
    return model.to(device(options)), metadata | {"arch": str(arch)}


def device(options: argparse.Namespace) -> torch.device:
    try:
        return torch.empty(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device must be one that torch has here, got {options.device!r}: {error}") from error


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that results cannot be written to."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    require(existing.is_dir(), "--out", "in a folder", f"{existing}, which is a file")
    require(os.access(existing, os.W_OK), "--out", "in a folder that can be written to", existing)


def write_report(report: "amun_ext.evaluation.Report", folder: Path) -> None:
    report.to_json(folder / "report.json")
    report.to_html(folder / "report.html")
    print(f"{report.to_text()}\n\nwrote {folder}/report.html, report.json and the checkpoints")


if __name__ == "__main__":
    sys.exit(main())
