"""The command line: amun demo | train | forget | audit | references | search | compare | tune | info."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import amun_ext
from amun_ext import audit as audits
from amun_ext import deletion, info, models, tuning
from amun_ext.checks import InputError, require, whole
from amun_ext.data import DATASETS, Splits, fingerprint, load
from amun_ext.deletion import Request, forget_ids
from amun_ext.deletion.ids import some_ids
from amun_ext.deletion.request import RETRAIN_SEED, retraining, sets, write
from amun_ext.evaluation import accuracy, predict
from amun_ext.experiments import compare, demo, searches
from amun_ext.experiments.comparison import SETTINGS
from amun_ext.models.state import count_classes
from amun_ext.search import METHODS
from amun_ext.training import Part, Pass, Recipe, Run, fit
from amun_ext.training.recipe import BATCH_NORM, PRECISIONS
from amun_ext.unlearning import METHODS as UNLEARNING
from amun_ext.unlearning import PRESETS
from amun_ext.unlearning.choices import load_about, load_choices
from amun_ext.unlearning.plan import Plan, plan

DATA_HELP = (
    f"{', '.join(DATASETS)}; a folder with train/<class>/*.png and test/<class>/*.png; an .npz with train_images, "
    "train_labels, test_images, test_labels; or your own module:function"
)

DEFAULT_COUNT = 200  # samples that amun search takes
LEFT_OUT = "; amun tune has looked at the others"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a failure, 2 for bad input, 3 when some samples have no adversarial example."""
    options = parser().parse_args(arguments)
    sys.path.insert(0, "")  # a user's own module:function is found where they stand
    warnings.showwarning = lambda message, *_, **__: print(f"amun: warning: {message}", file=sys.stderr)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"amun: error: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"amun: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"amun: stopped; {options.stopped}", file=sys.stderr)
        return 130


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
        made.set_defaults(run=function, stopped="nothing half-written was left")
        return made

    show = command(
        "demo", run_demo, "train a small network on the embedded images, forget a tenth, compare with retraining"
    )
    show.add_argument(
        "--out", type=Path, default=Path("amun-demo"), help="folder of the results (default: %(default)s)"
    )
    show.add_argument("--seed", type=seed, default=0, help="of everything (default: %(default)s)")

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
    add_recipe(train, "training", demo.TRAINING)

    forget = command(
        "forget",
        run_forget,
        "unlearn some training samples, with AMUN unless told otherwise, and report on it",
        "examples:\n"
        "  amun forget --model original.safetensors --data fashion-mnist-mini --ids 3,17,40-60 --out forgotten\n"
        "  amun forget --model net.pt --arch my_net:build --data my_data:load --ids-file ids.csv --out forgotten\n\n"
        "writes model.safetensors, report.json and report.html into the folder --out; its model can forget more.\n"
        "A command that was stopped leaves what it has there, and goes on with it when called again.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 some samples could not be forgotten (their ids are told)",
    )
    forget.set_defaults(stopped="the same command goes on where it was")
    add_data(forget)
    add_checkpoint(forget)
    add_ids(forget, required=True)
    forget.add_argument("--out", type=Path, required=True, help="folder of the results")
    forget.add_argument("--with-copies", action="store_true", help="forget equal images under other ids as well")
    forget.add_argument(
        "--without-retain", action="store_true", help="fine-tune without the rest of the data (which is still measured)"
    )
    forget.add_argument("--method", choices=UNLEARNING, default="amun", help="(default: %(default)s)")
    add_settings(forget)
    forget.add_argument(
        "--keep", type=float, metavar="RATIO", help="change only this fraction of the weights, by a saliency mask"
    )
    forget.add_argument(
        "--with-forget",
        dest="include_forget",
        action=argparse.BooleanOptionalAction,
        help="fine-tune on the forget samples too (D_F), the main form of AMUN's paper (default: no)",
    )
    forget.add_argument("--search", choices=METHODS, help="of the adversarial examples (default: ddn)")
    forget.add_argument("--retrain", action="store_true", help="also retrain from scratch, to compare with")
    title = (
        "fine-tuning; the learning rate decides most, see the report (presets, files and other methods have their own)"
    )
    add_recipe(forget, title, demo.FINE_TUNING)

    search = command(
        "search",
        run_search,
        "search the closest adversarial examples of some samples with several methods, and compare these",
        "examples:\n"
        "  amun search --model original.safetensors --data fashion-mnist-mini --methods pgd,ddn,deepfool,ffgsm "
        "--out searches\n"
        "  amun search --model net.pt --arch my_net:build --data my_data:load --part test --count 1000 --no-curves "
        "--out searches\n\n"
        "writes METHOD.safetensors (amun_ext.AdversarialSet.load reads it), searches.json and searches.html into the\n"
        "folder --out, and what the curves are made of into its folder curves; with the same arguments a command that\n"
        "was stopped goes on where it was, and searches nothing twice\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 some samples have no example (their ids are told)",
    )
    search.set_defaults(stopped="the same command goes on where it was")
    add_data(search)
    add_checkpoint(search)
    search.add_argument("--part", default="train", metavar="train|test", help="of the data (default: %(default)s)")
    add_ids(search, required=False).add_argument(
        "--count", type=int, help="so many at random, drawn by --seed (default: 200, or all)"
    )
    search.add_argument("--out", type=Path, required=True, help="folder of the results")
    add_searches(search)

    comparison = command(
        "compare",
        run_compare,
        "unlearn the same samples with several methods and seeds, retrain, and set all of them beside each other",
        "examples:\n"
        "  amun compare --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --out compared\n"
        "  amun compare --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --methods ft,amun,salun "
        "--settings with --tuned tuned.json --out compared\n\n"
        "writes compare.json and compare.html into the folder --out, and each result into its folder cells when it is\n"
        "there: a command that was stopped goes on where it was, and a later one takes from there what is the same.\n"
        "Rows for retraining and for the model as it is are always there. A method that --preset or --tuned has not\n"
        "got has its own options. --seed draws a --fraction; the seeds from 0 on are those of methods and retraining.",
    )
    comparison.set_defaults(stopped="the same command goes on where it was")
    add_data(comparison)
    add_checkpoint(comparison)
    add_ids(comparison, required=True)
    comparison.add_argument("--out", type=Path, required=True, help="folder of the results")
    comparison.add_argument("--with-copies", action="store_true", help="forget equal images under other ids as well")
    comparison.add_argument(
        "--methods",
        default=",".join(compare.DEFAULT),
        help=f"some of {', '.join(UNLEARNING)}; amun:no-forget is amun without D_F, amun:with-forget with it (default: "
        "%(default)s)",
    )
    comparison.add_argument("--seeds", type=int, default=5, help="how many (default: %(default)s)")
    comparison.add_argument(
        "--settings",
        choices=("both", *SETTINGS),
        default="both",
        help="with the retain set, without, or both (default: %(default)s)",
    )
    add_settings(comparison)
    add_recipe(comparison, "retraining (default: as the checkpoint says that it was trained)")

    tuner = command(
        "tune",
        run_tune,
        "search the options to unlearn with, on other training samples that stand in for those to be forgotten",
        "examples:\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --fraction 0.1 --out tuned\n"
        "  amun tune --model original.safetensors --data fashion-mnist-mini --ids-file ids.csv --methods amun,rl,ft "
        "--by retrain --trials 50 --workers 4 --out tuned\n\n"
        "writes tuned.json (for amun forget --tuned and amun compare --tuned), trials.json and tuning.html into the\n"
        "folder --out, and keeps there what it goes on with: with the same arguments a command that was stopped does\n"
        "nothing twice, and with more --trials it adds some. Half of the test set, drawn by --seed, is looked at.\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 a method has no trial that keeps the accuracy",
    )
    tuner.set_defaults(stopped="the same command goes on where it was")
    add_data(tuner)
    add_checkpoint(tuner)
    add_ids(tuner, required=True)
    tuner.add_argument("--out", type=Path, required=True, help="folder of the results")
    tuner.add_argument(
        "--methods", default="amun", help=f"some of {', '.join(tuning.tunable())} (default: %(default)s)"
    )
    tuner.add_argument("--trials", type=int, default=30, help="of each method (default: %(default)s)")
    tuner.add_argument(
        "--by",
        choices=tuning.OBJECTIVES,
        default="held-out",
        help="likeness to what retraining is expected to give, by the model's own accuracy on held-out data; or to a "
        "model that is retrained for this (default: %(default)s)",
    )
    told = "points of held-out accuracy that may be lost (default: %(default)s)"
    tuner.add_argument("--max-drop", type=float, default=tuning.MAX_DROP, help=told)
    tuner.add_argument("--without-retain", action="store_true", help="fine-tune without the rest of the data")
    tuner.add_argument("--workers", type=int, default=1, help="trials at once, a process each (default: %(default)s)")
    add_recipe(tuner, "fine-tuning; lr and schedule are searched", tuning.RECIPE, searched=True)

    judge = command(
        "audit",
        run_audit,
        "measure how well a model has forgotten, by membership inference, and give a verdict with its uncertainty",
        "examples:\n"
        "  amun audit --model forgotten/model.safetensors --original original.safetensors --data fashion-mnist-mini "
        "--retrain --out audit\n"
        "  amun audit --model forgotten/model.safetensors --data fashion-mnist-mini --fraction 0.1 "
        "--references references --out audit\n\n"
        "writes audit.json, audit.md and audit.html into the folder --out, with --retrain retrained.safetensors too.\n"
        "FT AUC is compared with that of a model that was retrained without the ids, or, where --references are given\n"
        "and the ids are a random draw, with 50.\n"
        "exit status: 0 done, 1 failed, 2 bad input; the verdict is in the report",
    )
    judge.set_defaults(stopped="the same command goes on where it was")
    add_data(judge)
    add_checkpoint(judge)
    add_ids(judge, required=False)
    judge.add_argument("--out", type=Path, required=True, help="folder of the results")
    judge.add_argument("--original", type=Path, help="checkpoint of the model before, of the same architecture")
    anew = judge.add_mutually_exclusive_group()
    anew.add_argument("--retrained", type=Path, help="checkpoint of a model that was trained without the ids")
    anew.add_argument("--retrain", action="store_true", help="train one, as the checkpoint says that it was trained")
    judge.add_argument("--references", type=Path, help="a folder that amun references has written")
    judge.add_argument(
        "--random-draw", action="store_true", help="the ids are a random draw of the training set (--fraction is one)"
    )
    judge.add_argument(
        "--margin", type=float, default=audits.MARGIN, help="points of FT AUC that are none (default: %(default)s)"
    )

    reference = command(
        "references",
        run_references,
        "train reference models on random halves of the data, for audits to compare with",
        "example:\n"
        "  amun references --model original.safetensors --data fashion-mnist-mini --models 16 --workers 2 "
        "--out references\n\n"
        "writes what each model says of every sample into the folder --out, 8 bytes a sample; with the same arguments\n"
        "a command that was stopped goes on where it was, and with more --models it adds some. One set serves every\n"
        "request and every method that starts from this architecture, recipe and data.",
    )
    reference.set_defaults(stopped="the same command goes on where it was")
    add_data(reference)
    add_checkpoint(reference)
    reference.add_argument("--out", type=Path, required=True, help="folder of the references")
    reference.add_argument("--models", type=int, default=16, help="an even number (default: %(default)s)")
    reference.add_argument(
        "--workers", type=int, default=1, help="models at once, a process each (default: %(default)s)"
    )
    add_recipe(reference, "training (default: as the checkpoint says that it was trained)")

    command("info", lambda _: print(info.text()), "print versions, ops available per device, and build flags")
    return top


def add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", required=True, help=DATA_HELP)
    command.add_argument("--root", type=Path, help="where fashion-mnist and cifar10 keep their files (default: ./data)")
    command.add_argument("--download", action="store_true", help="fetch them if they are not there")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    command.add_argument("--device", type=device, default=default, help="(default: %(default)s)")
    command.add_argument("--seed", type=seed, default=0, help="of everything (default: %(default)s)")


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", type=Path, required=True, help="checkpoint: .safetensors, or .pt/.pth (weights only)"
    )
    command.add_argument(
        "--arch", help="its architecture, where the checkpoint does not say (not written by amun train)"
    )
    command.add_argument("--width", type=int, help="of --arch")


def add_ids(command: argparse.ArgumentParser, required: bool) -> argparse._MutuallyExclusiveGroup:
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument("--ids", help="row numbers of the data, such as 3,17,40-60")
    which.add_argument("--ids-file", type=Path, help=".txt with one id a line, .csv with a column id, or .json")
    which.add_argument("--fraction", type=float, help="a random share, drawn by --seed")
    return which


def add_searches(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("search")
    chosen = ",".join(searches.DEFAULT)
    group.add_argument("--methods", default=chosen, help=f"some of {', '.join(METHODS)} (default: %(default)s)")
    group.add_argument(
        "--refine", type=int, default=0, help="forward passes that bring each example closer (default: %(default)s)"
    )
    group.add_argument(
        "--quantize", type=int, metavar="LEVELS", help="255: examples that survive being saved as 8-bit images"
    )
    group.add_argument(
        "--margin", type=float, default=0.0, help="logits by which the wrong class is to lead (default: %(default)s)"
    )
    group.add_argument("--precision", help="bfloat16: most of the iterations in it (default: that of the model)")
    group.add_argument(
        "--curves",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"search up to {searches.CURVE_SAMPLES} of the samples with other numbers of steps as well, for the "
        "picture of distance against gradients; with 200 samples this doubles the time (default: on)",
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
        "--accumulate", type=int, help=f"pieces that a batch is computed in, to need less memory{told('accumulate')}"
    )


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `Recipe` that were given."""
    return given(
        options,
        *(
            "epochs",
            "lr",
            "schedule",
            "batch_size",
            "augment",
            "batch_norm",
            "precision",
            "channels_last",
            "accumulate",
        ),
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def run_demo(options: argparse.Namespace) -> None:
    check_folder(options.out)
    torch.set_num_threads(1)  # so small a network gains little from a second one, and loses much on a busy machine
    report, trained, ids = demo.run(options.seed, progress=True)
    demo.write(report, trained, ids, options.out)
    print(f"{report.to_text()}\n\nwrote report.html, report.json and two checkpoints into {options.out}")


def run_train(options: argparse.Namespace) -> None:
    training = replace(demo.TRAINING, **recipe(options))
    check_folder(options.out.parent)
    require(options.out.suffix == ".safetensors", "--out", "a path that ends in .safetensors", options.out)
    require(not options.out.is_dir(), "--out", "a file", f"the folder {options.out}")
    splits = load(options.data, options.root, options.download)
    images, _ = splits.train.tensors
    shape = {"num_classes": len(splits.classes), "in_channels": images.shape[1]}
    torch.manual_seed(options.seed)
    model = models.build(options.model, **shape, width=options.width).to(options.device)
    count_classes(model, images)
    fit(model, [Pass([Part(splits.train)])], training, Run(seed=options.seed, progress=True))
    metadata = {
        "arch": options.model,
        "training_data": fingerprint(splits.train),
        "recipe": json.dumps(asdict(training)),
    }
    metadata |= {} if options.width is None else {"width": str(options.width)}
    models.save_checkpoint(options.out, model, metadata)
    sets = {"training": splits.train.tensors, "test": splits.test.tensors}
    reached = {name: accuracy(predict(model, images), labels) for name, (images, labels) in sets.items()}
    told = " and ".join(f"{percent:.2f} % on the {name} set" for name, percent in reached.items())
    print(f"accuracy {told}; wrote {options.out}")


def run_forget(options: argparse.Namespace) -> int:
    check_folder(options.out)
    chosen = forget_plan(options)
    check_free(options.out, "model.safetensors", "report.json", "report.html")
    splits = load(options.data, options.root, options.download)
    total = len(splits.train)
    ids = forget_ids(total, ids=options.ids, file=options.ids_file, fraction=options.fraction, seed=options.seed)
    original, metadata = rebuilt(options, splits)
    request = Request(
        ids=ids,
        with_copies=options.with_copies,
        plan=retraining(original, metadata, recipe(options)) if options.method == "retrain" else chosen,
        retrain=options.retrain and options.method != "retrain",
        seed=options.seed,
        metadata=metadata,
    )
    test, tested_on = unseen(options, splits)
    measured = replace(splits, test=test)
    outcome = deletion.forget(original, measured, request, folder=options.out, facts=tested_on, progress=True)
    write(outcome, options.out)
    print(f"{outcome.report.to_text()}\n\nwrote model.safetensors, report.json and report.html into {options.out}")
    if outcome.not_forgotten:
        shown = ", ".join(map(str, outcome.not_forgotten))
        print(f"amun: not forgotten, for want of an adversarial example: ids {shown}", file=sys.stderr)
        return 3
    return 0


def forget_plan(options: argparse.Namespace) -> Plan:
    """How to unlearn, but for the recipe of retraining, which the checkpoint knows."""
    method = UNLEARNING[options.method]
    default = {"include_forget": False, "recipe": demo.FINE_TUNING} if "include_forget" in method.options else {}
    return plan(
        options.method,
        not options.without_retain,
        **chosen_options(options),
        default=default,
        keep=options.keep,
        recipe=recipe(options),
        **given(options, "include_forget", "search"),
    )


def chosen_options(options: argparse.Namespace) -> dict[str, Any]:
    """What add_settings says, as `plan` takes it."""
    files = [load_choices(path) for path in options.tuned or ()]
    keys = [key for file in files for key in file]
    must_be = "files that choose for different methods or settings"
    require(len(set(keys)) == len(keys), "--tuned", must_be, "two for the same")
    choices = {key: chosen for file in files for key, chosen in file.items()}
    return {"preset": options.preset, "choices": choices if files else None}


def run_search(options: argparse.Namespace) -> int:
    check_folder(options.out)
    check_free(options.out, "searches.json", "searches.html")
    require(options.part in ("train", "test"), "--part", "train or test", options.part)
    methods = [method.strip() for method in options.methods.split(",")]
    searches.check_methods(methods)
    splits = load(options.data, options.root, options.download)
    images, labels = getattr(splits, options.part).tensors
    ids = chosen_ids(options, len(images))
    model, metadata = rebuilt(options, splits)
    found = searches.compare(
        model,
        images[ids],
        labels[ids],
        methods,
        common=searches.Common(options.refine, options.quantize, options.margin, options.precision),
        curves=options.curves,
        ids=ids,
        classes=splits.classes,
        out=options.out,
        facts=about(options, metadata) | {"part": options.part, "seed": options.seed},
        progress=True,
    )
    searches.write(found, options.out)
    print(f"{found.to_text()}\n\nwrote searches.json, searches.html and the examples into {options.out}")
    for method, missing in found.missing.items():
        print(f"amun: no adversarial example by {method}: ids {', '.join(map(str, missing))}", file=sys.stderr)
    return 3 if found.missing else 0


def run_compare(options: argparse.Namespace) -> None:
    check_folder(options.out)
    check_free(options.out, "compare.json", "compare.html")
    names = [name.strip() for name in options.methods.split(",")]
    settings = [*SETTINGS] if options.settings == "both" else [options.settings]
    chosen = chosen_options(options)
    rows = {setting: compare.plans(names, setting == "with", **chosen) for setting in settings}
    whole("seeds", options.seeds, 1)
    splits = load(options.data, options.root, options.download)
    total = len(splits.train)
    ids = forget_ids(total, ids=options.ids, file=options.ids_file, fraction=options.fraction, seed=options.seed)
    original, metadata = rebuilt(options, splits)
    test, tested_on = unseen(options, splits)
    compared = compare.compare(
        original,
        test,
        sets(splits, ids, metadata, with_copies=options.with_copies),
        rows,
        retraining(original, metadata, recipe(options)),
        seeds=options.seeds,
        out=options.out,
        facts={
            **about(options, metadata),
            **({} if options.fraction is None else {"forget set": f"drawn by seed {options.seed}"}),
            **tested_on,
        },
        progress=True,
    )
    compare.write(compared, options.out)
    print(f"{compared.to_text()}\n\nwrote compare.json and compare.html into {options.out}")


def run_references(options: argparse.Namespace) -> None:
    check_folder(options.out)
    splits = load(options.data, options.root, options.download)
    model, metadata = rebuilt(options, splits)
    anew = retraining(model, metadata, recipe(options))
    how = {"models": options.models, "seed": options.seed, "workers": options.workers, "progress": True}
    made = audits.train_references(model, splits, anew.recipe, out=options.out, **how)
    print(f"{len(made)} references of {made.membership.shape[1]} samples are in {options.out}")


def run_audit(options: argparse.Namespace) -> None:
    check_folder(options.out)
    check_free(options.out, *audits.FILES)
    splits = load(options.data, options.root, options.download)
    model, metadata = rebuilt(options, splits)
    forgotten = json.loads(metadata.get("forgotten", "[]"))
    given = {"ids": options.ids, "file": options.ids_file, "fraction": options.fraction}
    if all(way is None for way in given.values()):
        require(bool(forgotten), "--ids", "given, because the checkpoint has forgotten none", "none")
        given["ids"] = forgotten
    ids = forget_ids(len(splits.train), **given, seed=options.seed)
    before = sorted({*forgotten} - {*ids.tolist()})
    known = metadata.get("training_data")
    require(known in (None, fingerprint(splits.train)), "--data", "what the checkpoint was trained on", "others")
    original = None if options.original is None else rebuilt(options, splits, options.original)[0]
    references = None if options.references is None else audits.load_references(options.references)
    retrained = None if options.retrained is None else rebuilt(options, splits, options.retrained)[0]
    if options.retrain:
        gone = {name: value for name, value in metadata.items() if name != "forgotten"}
        asked = sets(splits, torch.cat([ids, torch.tensor(before, dtype=torch.int64)]), gone, with_copies=True)
        retrained = retraining(model, metadata).unlearn(
            model,
            asked.forget,
            asked.retain,
            seed=options.seed + RETRAIN_SEED,
            checkpoint=options.out / "retraining.safetensors",
            progress=True,
        )
        models.save_checkpoint(options.out / "retrained.safetensors", retrained, metadata)
        (options.out / "retraining.safetensors").unlink()
    found = audits.audit(
        model,
        splits,
        ids,
        original=original,
        retrained=retrained,
        references=references,
        before=before,
        random_draw=options.random_draw or options.fraction is not None,
        margin=options.margin,
        facts={
            **about(options, metadata),
            "ids": ids.tolist(),
            "ids forgotten before": before,
            "references": None if references is None else len(references),
            "versions": info.versions(),
        },
    )
    found.write(options.out)
    print(f"{found.to_text()}\n\nwrote {', '.join(audits.FILES)} into {options.out}")


def run_tune(options: argparse.Namespace) -> int:
    check_folder(options.out)
    check_free(options.out, "tuned.json", "trials.json", "tuning.html")
    splits = load(options.data, options.root, options.download)
    total = len(splits.train)
    ids = forget_ids(total, ids=options.ids, file=options.ids_file, fraction=options.fraction, seed=options.seed)
    original, metadata = rebuilt(options, splits)
    tuned = tuning.tune(
        original,
        splits,
        ids,
        [name.strip() for name in options.methods.split(",")],
        out=options.out,
        trials=options.trials,
        by=options.by,
        with_retain=not options.without_retain,
        recipe=replace(tuning.RECIPE, **recipe(options)),
        max_drop=options.max_drop,
        metadata=metadata,
        workers=options.workers,
        seed=options.seed,
        facts=about(options, metadata),
        progress=True,
    )
    tuning.write(tuned, options.out)
    print(f"{tuned.to_text()}\n\nwrote tuned.json, trials.json and tuning.html into {options.out}")
    missing = [method for method in tuned.trials if tuned.best(method) is None]
    for method in missing:
        print(f"amun: no trial of {method} keeps the accuracy (--max-drop, --trials)", file=sys.stderr)
    return 3 if missing else 0


def unseen(options: argparse.Namespace, splits: Splits) -> tuple[TensorDataset, dict[str, str]]:
    """The test samples to measure on, not those that options were chosen with; and the fact for a reader."""
    abouts = [load_about(path) for path in options.tuned or ()]
    seeds: set[int] = {about["seed"] for about in abouts if "seed" in about}
    require(len(seeds) <= 1, "--tuned", "files of one seed, which have held out the same test samples", sorted(seeds))
    test = tuning.halves(splits.test, seeds.pop())[1] if seeds else splits.test
    told = f"{len(test)} of {len(splits.test)} test samples" + LEFT_OUT * (len(test) < len(splits.test))
    return test, {"tested on": told}


def chosen_ids(options: argparse.Namespace, total: int) -> Tensor:
    """The rows to search."""
    ways = {"ids": options.ids, "file": options.ids_file, "fraction": options.fraction, "count": options.count}
    given = {name: way for name, way in ways.items() if way is not None} or {"count": min(DEFAULT_COUNT, total)}
    return some_ids(total, **given, seed=options.seed)


def about(options: argparse.Namespace, metadata: dict[str, str]) -> dict[str, object]:
    """Facts of a page, with no more of where things are on this machine than their names."""
    data = Path(options.data).name
    return {"model": options.model.name, "arch": metadata["arch"], "data": data, "device": str(options.device)}


def rebuilt(options: argparse.Namespace, splits: Splits, path: Path | None = None) -> tuple[nn.Module, dict[str, str]]:
    """The model at `path`, by default that of --model, and what its checkpoint says of it."""
    path = options.model if path is None else path
    metadata = models.read_metadata(path) if path.suffix == ".safetensors" else {}
    arch = options.arch or metadata.get("arch")
    require(arch is not None, "--arch", f"given, because {path} does not name its architecture", "none")
    width = int(metadata["width"]) if options.width is None and "width" in metadata else options.width
    images = splits.train.tensors[0]
    model = models.build(str(arch), num_classes=len(splits.classes), in_channels=images.shape[1], width=width)
    models.load_checkpoint(path, model)
    model = model.to(options.device)
    classes = count_classes(model, images)
    require(classes == len(splits.classes), "--data", f"of the model's {classes} classes", len(splits.classes))
    return model, metadata | {"arch": str(arch)} | ({} if width is None else {"width": str(width)})


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
    if not (text.isascii() and text.isdecimal() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**31 - 1, got {text!r}")
    return int(text)


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that results cannot be written to."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    require(existing.is_dir(), "--out", "in a folder", f"{existing}, which is a file")
    require(os.access(existing, os.W_OK), "--out", "in a folder that can be written to", existing)


def check_free(folder: Path, *names: str) -> None:
    for name in names:
        require(not (folder / name).is_dir(), "--out", f"free to hold a file {name}", "a folder of that name")


if __name__ == "__main__":
    sys.exit(main())
